"""The fused frame_error as a torch.library operator with its gradient."""

from typing import Any

import torch
from torch import Tensor

from ..autograd import attach_gradient, direct, fake, operator
from . import cpp


@operator("frame_error")
def error_op(decoded: Tensor, frames: Tensor, mean: Tensor, factor: Tensor, weights: Tensor | None) -> Tensor:
    """Sums (N,) by the C++ kernel."""
    return cpp.frame_error(decoded, frames, mean, factor, weights)


@fake(error_op)
def _(decoded: Tensor, frames: Tensor, mean: Tensor, factor: Tensor, weights: Tensor | None) -> Tensor:
    return decoded.new_empty(decoded.shape[0], dtype=torch.float32)


@operator("frame_error_backward")
def error_backward_op(
    g_sums: Tensor, decoded: Tensor, frames: Tensor, mean: Tensor, factor: Tensor, weights: Tensor | None
) -> Tensor:
    """Gradient of the decoded images, channels-last in memory."""
    return cpp.frame_error_backward(g_sums, decoded, frames, mean, factor, weights)


@fake(error_backward_op)
def _(g_sums: Tensor, decoded: Tensor, frames: Tensor, mean: Tensor, factor: Tensor, weights: Tensor | None) -> Tensor:
    batch, channels, height, width = decoded.shape
    return decoded.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, g_sums: Tensor) -> tuple[Any, ...]:
    return direct_error_backward(g_sums, *ctx.saved_tensors), None, None, None, None


FrameErrorFunction = attach_gradient(error_op, _setup_context, _backward)

direct_error, direct_error_backward = direct(error_op), direct(error_backward_op)
