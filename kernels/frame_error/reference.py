"""Squared errors against whitened frames in plain PyTorch: the definition, and what runs where C++ does not."""

import torch
from torch import Tensor
from torch.nn import functional as F


def frame_error_reference(
    decoded: Tensor, frames: Tensor, mean: Tensor, factor: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Sums (N,) of weight (decoded - (frame - mean) factor)^2; arguments as the op."""
    wide = torch.promote_types(torch.promote_types(decoded.dtype, mean.dtype), torch.float32)
    target = (frames.to(wide) - mean) * factor  # (N, C, H, W)
    squared = F.mse_loss(decoded.to(wide), target.to(wide), reduction="none")  # one pass forward, one backward
    if weights is not None:
        squared = squared * weights.to(wide)[:, None]
    return squared.sum((1, 2, 3))
