"""Whitened patches and their changes in plain PyTorch: the definition, and what runs where the C++ kernel does not."""

import torch
from torch import Tensor
from torch.nn import functional as F


def frame_patches_reference(
    frames: Tensor,
    mean: Tensor,
    factor: Tensor,
    before: Tensor | None,
    patch_size: int,
    stack: int,
    dtype: torch.dtype,
) -> Tensor:
    """Patches (B, T, H / p, W / p, S C p p); arguments as the op."""
    whitened = (frames.to(torch.promote_types(mean.dtype, torch.float32)) - mean) * factor  # (B, T, C, H, W)
    length, earlier = whitened.shape[1], stack - 1
    images = whitened
    if earlier:
        if before is None:
            before = whitened[:, :1].expand(-1, earlier, -1, -1, -1)
        series = torch.cat([before.to(whitened.dtype), whitened], 1)  # (B, S - 1 + T, C, H, W)
        changes = series[:, 1:] - series[:, :-1]
        planes = [whitened, *(changes[:, earlier - k : earlier - k + length] for k in range(1, stack))]
        images = torch.cat(planes, 2)  # (B, T, S C, H, W)
    images = images.to(dtype)
    bottom, right = -images.shape[-2] % patch_size, -images.shape[-1] % patch_size
    if bottom or right:
        images = F.pad(images.flatten(0, 1), (0, right, 0, bottom), mode="replicate").unflatten(0, images.shape[:2])
    tiles = images.unflatten(4, (-1, patch_size)).unflatten(3, (-1, patch_size))  # (B, T, S C, H / p, p, W / p, p)
    patches: Tensor = tiles.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)
    return patches
