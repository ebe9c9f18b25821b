"""The pass over the inputs of slot attention as a torch.library operator with its gradient."""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from ..autograd import attach_gradient, fake, operator


@functools.cache
def _backend(name: str) -> Any:
    return importlib.import_module(f"aime.kernels.slot_attention.{name}")


@operator("slot_attend")
def attend_op(
    inputs: Tensor, seen: Tensor, offset: Tensor, mask: Tensor | None, eps: float, want_attention: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Slots compete for normalised inputs xn = LayerNorm(inputs) without affine part.

    logits = seen.xn + offset, softmax over slots, coefficients = attention + eps (0 where masked).

    Args:
        inputs: (B, N, C); seen: (B, S, C); offset: (B, S); mask: (B, N) bool or None.

    Returns:
        float32 sums over inputs of coefficient times xn (B, S, C), of coefficients (B, S), and the attention (B, S,
        N), empty unless wanted.
    """
    return _backend(backend).attend(inputs, seen, offset, mask, eps, want_attention)  # type: ignore[no-any-return]


@fake(attend_op)
def _(
    inputs: Tensor, seen: Tensor, offset: Tensor, mask: Tensor | None, eps: float, want_attention: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    batch, count, _ = inputs.shape
    attention = (batch, seen.shape[1], count) if want_attention else (0,)
    shapes = (seen.shape, seen.shape[:2], attention)
    return tuple(torch.empty(shape, dtype=torch.float32, device=inputs.device) for shape in shapes)  # type: ignore[return-value]


@operator("slot_attend_backward")
def attend_backward_op(
    g_sums: Tensor,
    g_totals: Tensor,
    g_attention: Tensor | None,
    inputs: Tensor,
    seen: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of inputs in their dtype, of seen and offset in float32; the attention is made again."""
    gradients = (g_sums, g_totals, g_attention)
    return _backend(backend).attend_backward(*gradients, inputs, seen, offset, mask, eps)  # type: ignore[no-any-return]


@fake(attend_backward_op)
def _(
    g_sums: Tensor,
    g_totals: Tensor,
    g_attention: Tensor | None,
    inputs: Tensor,
    seen: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    g_inputs = torch.empty(inputs.shape, dtype=inputs.dtype, device=inputs.device)
    return g_inputs, *(torch.empty(t.shape, dtype=torch.float32, device=t.device) for t in (seen, offset))  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, ctx.want_attention, ctx.backend = inputs
    if not ctx.want_attention:
        ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, g_sums: Tensor, g_totals: Tensor, g_attention: Tensor) -> tuple[Any, ...]:
    inputs, seen, offset, mask = ctx.saved_tensors
    upstream = g_attention if ctx.want_attention else None
    arguments = (g_sums, g_totals, upstream, inputs, seen, offset, mask, ctx.eps, ctx.backend)
    g_inputs, g_seen, g_offset = attend_backward_op(*arguments)
    return g_inputs, g_seen.to(seen.dtype), g_offset.to(offset.dtype), None, None, None, None


SlotAttendFunction = attach_gradient(attend_op, _setup_context, _backward)
