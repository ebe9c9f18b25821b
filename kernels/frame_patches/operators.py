"""frame_patches as a torch.library operator; it has no gradient."""

import torch
from torch import Tensor

from ..autograd import direct, fake, operator
from . import cpp


@operator("frame_patches")
def patches_op(
    frames: Tensor,
    mean: Tensor,
    factor: Tensor,
    before: Tensor | None,
    patch_size: int,
    stack: int,
    dtype: torch.dtype,
) -> Tensor:
    """Patches (B, T, H / p, W / p, S C p p) by the C++ kernel."""
    return cpp.frame_patches(frames, mean, factor, before, patch_size, stack, dtype)


@fake(patches_op)
def _(
    frames: Tensor,
    mean: Tensor,
    factor: Tensor,
    before: Tensor | None,
    patch_size: int,
    stack: int,
    dtype: torch.dtype,
) -> Tensor:
    batch, length, channels, height, width = frames.shape
    size = stack * channels * patch_size**2
    return mean.new_empty(batch, length, height // patch_size, width // patch_size, size, dtype=dtype)


direct_patches = direct(patches_op)  # past the dispatcher where nobody watches
