"""The fused slot attention, all iterations, as a torch.library operator with its gradient."""

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..autograd import attach_gradient, fake, operator
from ..shapes import accumulation_dtype

WEIGHTS = slice(2, 22)  # of the operator's arguments, in the order of SlotAttentionWeights


@functools.cache
def _fused() -> Any:
    return importlib.import_module("aime.kernels.slot_attention.fused")


def saved_shapes(inputs: Tensor, slots: Tensor, hidden: int, iters: int, heads: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of what the forward pass saves; contents in triton_slots.py."""
    batch, count, channels = inputs.shape
    rows, width = batch * slots.shape[1], slots.shape[2]
    norms, of_heads = (batch, count), (iters, rows * heads)
    return norms, norms, (iters, rows, 10 * width + 2 * hidden), (*of_heads, 3 * channels), (*of_heads, 2)


@operator("slot_attention")
def slot_attention_op(
    inputs: Tensor,
    slots: Tensor,
    norm_inputs_weight: Tensor,
    norm_inputs_bias: Tensor,
    norm_slots_weight: Tensor,
    norm_slots_bias: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    gru_weight_ih: Tensor,
    gru_weight_hh: Tensor,
    gru_bias_ih: Tensor,
    gru_bias_hh: Tensor,
    norm_mlp_weight: Tensor,
    norm_mlp_bias: Tensor,
    mlp_in_weight: Tensor,
    mlp_in_bias: Tensor,
    mlp_out_weight: Tensor,
    mlp_out_bias: Tensor,
    query_bias: Tensor | None,
    key_bias: Tensor | None,
    value_bias: Tensor | None,
    mask: Tensor | None,
    iters: int,
    eps: float,
    gelu: bool,
    heads: int,
    implicit: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Slots (B, S, D), attention (B, S, N), and five tensors for the backward pass; `slot_attention` documents."""
    weights = (
        norm_inputs_weight, norm_inputs_bias, norm_slots_weight, norm_slots_bias, query_weight, key_weight,
        value_weight, gru_weight_ih, gru_weight_hh, gru_bias_ih, gru_bias_hh, norm_mlp_weight, norm_mlp_bias,
        mlp_in_weight, mlp_in_bias, mlp_out_weight, mlp_out_bias, query_bias, key_bias, value_bias,
    )  # fmt: skip
    out, attention, saved = _fused().forward(inputs, slots, weights, mask, iters, eps, gelu, heads)
    return out, attention, *saved


@fake(slot_attention_op)
def _(inputs: Tensor, slots: Tensor, *others: Any) -> tuple[Tensor, ...]:
    mlp_in_weight = others[13]
    iters, _, _, heads, _ = others[-5:]
    dtype = accumulation_dtype(inputs, slots)
    shapes = saved_shapes(inputs, slots, mlp_in_weight.shape[0], iters, heads)
    attention = inputs.new_empty(inputs.shape[0], slots.shape[1], inputs.shape[1], dtype=dtype)
    out = torch.empty(slots.shape, dtype=slots.dtype, device=slots.device)
    return out, attention, *(inputs.new_empty(shape, dtype=dtype) for shape in shapes)


@operator("slot_attention_backward")
def slot_attention_backward_op(
    g_slots: Tensor,
    g_attention: Tensor | None,
    saved: Sequence[Tensor],
    inputs: Tensor,
    slots: Tensor,
    weights: Sequence[Tensor],
    query_bias: Tensor | None,
    key_bias: Tensor | None,
    value_bias: Tensor | None,
    mask: Tensor | None,
    eps: float,
    gelu: bool,
    heads: int,
    implicit: bool,
    needed: Sequence[bool],
) -> list[Tensor]:
    """Gradients of inputs, slots, and all twenty weights; attention is made again.

    Empty for absent biases, and where `needed` (of all twenty-two) is false, but for the slots.
    """
    fused = _fused()
    every = (*weights, query_bias, key_bias, value_bias)
    g_inputs, g_initial, g_weights = fused.backward(
        g_slots, g_attention, fused.Saved(*saved), inputs, slots, every, mask, eps, gelu, heads, implicit, needed
    )
    return [g_inputs, g_initial, *g_weights]


@fake(slot_attention_backward_op)
def _(
    g_slots: Tensor,
    g_attention: Tensor | None,
    saved: Sequence[Tensor],
    inputs: Tensor,
    slots: Tensor,
    weights: Sequence[Tensor],
    *others: Any,
) -> list[Tensor]:
    every, needed = (inputs, slots, *weights, *others[:3]), (others[-1][0], True, *others[-1][2:])
    return [
        torch.empty(
            0 if t is None or not wanted else t.shape, dtype=(inputs if t is None else t).dtype, device=inputs.device
        )
        for t, wanted in zip(every, needed, strict=True)
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, ctx.eps, ctx.gelu, ctx.heads, ctx.implicit = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*output[2:], *tensors)
    ctx.count = len(output) - 2


def _backward(ctx: Any, g_slots: Tensor | None, g_attention: Tensor | None, *_: Any) -> tuple[Any, ...]:
    saved, (inputs, slots, *weights, mask) = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    if g_slots is None:
        g_slots = torch.zeros_like(slots)
    needed = [bool(need) for need in ctx.needs_input_grad[: 2 + len(weights)]]  # false for absent biases
    gradients = slot_attention_backward_op(
        g_slots, g_attention, saved, inputs, slots, weights[:-3], *weights[-3:], mask,
        ctx.eps, ctx.gelu, ctx.heads, ctx.implicit, needed,
    )  # fmt: skip
    return *(g if need else None for g, need in zip(gradients, needed, strict=True)), None, *(None,) * 5


SlotAttentionFunction = attach_gradient(slot_attention_op, _setup_context, _backward)
