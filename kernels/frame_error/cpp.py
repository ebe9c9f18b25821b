"""Squared errors against whitened frames on CPU in C++: one pass over decoded images and frames each way.

Nothing is stored between the passes: the backward one reads both again, less than the errors it would read otherwise.
`instructions` names one of the extension's instruction_sets(), "" takes the best. The same bits for any number of
threads.
"""

import torch
from torch import Tensor

from ..extension import addresses, describe, describe_pixels, load


def _planes(mean: Tensor, factor: Tensor, decoded: Tensor) -> list[Tensor]:
    """Mean and factor (H, W, C), as the decoded images lie in memory."""
    return [tensor.expand(decoded.shape[1:]).permute(1, 2, 0).contiguous() for tensor in (mean, factor)]


def frame_error(
    decoded: Tensor, frames: Tensor, mean: Tensor, factor: Tensor, weights: Tensor | None, instructions: str = ""
) -> Tensor:
    """Sums (N,) float32 of weight (decoded - (frame - mean) factor)^2."""
    sums = torch.empty(decoded.shape[0], dtype=torch.float32)
    planes = _planes(mean, factor, decoded)
    load().frame_error(
        (describe(decoded), describe_pixels(frames), describe(weights)),
        frames.dtype == torch.uint8,
        addresses(*planes),
        sums.data_ptr(),
        torch.get_num_threads(),
        instructions,
    )
    return sums


def frame_error_backward(
    g_sums: Tensor,
    decoded: Tensor,
    frames: Tensor,
    mean: Tensor,
    factor: Tensor,
    weights: Tensor | None,
    instructions: str = "",
) -> Tensor:
    """Gradient of the decoded images (N, C, H, W) in their dtype, channels-last in memory."""
    batch, channels, height, width = decoded.shape
    gradient = torch.empty(batch, height, width, channels, dtype=decoded.dtype)
    planes = _planes(mean, factor, decoded)
    load().frame_error_backward(
        (describe(decoded), describe_pixels(frames), describe(weights)),
        frames.dtype == torch.uint8,
        addresses(*planes),
        describe(g_sums),
        gradient.data_ptr(),
        torch.get_num_threads(),
        instructions,
    )
    return gradient.permute(0, 3, 1, 2)
