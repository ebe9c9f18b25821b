"""Whitened patches on CPU in C++: the frames are read once, the patches written once, nothing in between.

uint8 or float32 frames with any strides, patches in float32 or bfloat16. `instructions` names one of the extension's
instruction_sets(), "" takes the best. The same bits for any number of threads.
"""

import torch
from torch import Tensor

from ..extension import addresses, describe, describe_pixels, load


def frame_patches(
    frames: Tensor,
    mean: Tensor,
    factor: Tensor,
    before: Tensor | None,
    patch_size: int,
    stack: int,
    dtype: torch.dtype,
    instructions: str = "",
) -> Tensor:
    """Patches (B, T, H / p, W / p, S C p p)."""
    batch, length, channels, height, width = frames.shape
    size = stack * channels * patch_size**2
    patches = torch.empty(batch, length, height // patch_size, width // patch_size, size, dtype=dtype)
    planes = [tensor.expand(frames.shape[2:]).contiguous() for tensor in (mean, factor)]  # (C, H, W)
    load().frame_patches(
        (describe_pixels(frames), describe(before)),
        frames.dtype == torch.uint8,
        addresses(*planes),
        patch_size,
        stack - 1,
        patches.data_ptr(),
        dtype == torch.bfloat16,
        torch.get_num_threads(),
        instructions,
    )
    return patches
