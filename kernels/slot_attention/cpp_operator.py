"""Slot attention in C++, all iterations, as a torch.library operator with its gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..autograd import attach_gradient, direct, fake, operator
from . import cpp


@operator("slot_attention_cpp")
def slot_attention_cpp_op(
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
    implicit: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Slots (B, S, D), attention (B, S, N), and what the backward pass needs (made again if not saved)."""
    weights = (
        norm_inputs_weight, norm_inputs_bias, norm_slots_weight, norm_slots_bias, query_weight, key_weight,
        value_weight, gru_weight_ih, gru_weight_hh, gru_bias_ih, gru_bias_hh, norm_mlp_weight, norm_mlp_bias,
        mlp_in_weight, mlp_in_bias, mlp_out_weight, mlp_out_bias, query_bias, key_bias, value_bias,
    )  # fmt: skip
    return cpp.forward(inputs, slots, weights, mask, iters, eps, gelu, save)


@fake(slot_attention_cpp_op)
def _(inputs: Tensor, slots: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    mlp_in_bias, iters, save = others[14], others[-5], others[-1]
    attention = inputs.new_empty((inputs.shape[0], slots.shape[1], inputs.shape[1]), dtype=torch.float32)
    shape = cpp.saved_shape(inputs, slots, mlp_in_bias.shape[0], iters) if save else (0,)
    out = torch.empty(slots.shape, dtype=slots.dtype, device=slots.device)
    return out, attention, inputs.new_empty(shape, dtype=torch.float32)


@operator("slot_attention_cpp_backward")
def slot_attention_cpp_backward_op(
    g_slots: Tensor,
    g_attention: Tensor | None,
    saved: Tensor,
    inputs: Tensor,
    slots: Tensor,
    weights: Sequence[Tensor],
    query_bias: Tensor | None,
    key_bias: Tensor | None,
    value_bias: Tensor | None,
    mask: Tensor | None,
    iters: int,
    eps: float,
    gelu: bool,
    implicit: bool,
    needed: Sequence[bool],
) -> list[Tensor]:
    """Gradients of inputs, slots, and all twenty weights; empty for absent biases and where `needed` is false."""
    every = (*weights, query_bias, key_bias, value_bias)
    if saved.dim() == 1:  # nobody asked to keep it
        saved = cpp.forward(inputs, slots, every, mask, iters, eps, gelu, save=True)[2]
    return cpp.backward(g_slots, g_attention, saved, inputs, slots, every, mask, iters, eps, gelu, implicit, needed)


@fake(slot_attention_cpp_backward_op)
def _(
    g_slots: Tensor,
    g_attention: Tensor | None,
    saved: Tensor,
    inputs: Tensor,
    slots: Tensor,
    weights: Sequence[Tensor],
    *others: Any,
) -> list[Tensor]:
    every = (inputs, slots, *weights, *others[:3])
    return [
        torch.empty(
            0 if t is None or not need else t.shape, dtype=(inputs if t is None else t).dtype, device=inputs.device
        )
        for t, need in zip(every, others[-1], strict=True)
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.iters, ctx.eps, ctx.gelu, ctx.implicit, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(output[2], *tensors)


def _backward(ctx: Any, g_slots: Tensor | None, g_attention: Tensor | None, _: Any) -> tuple[Any, ...]:
    saved, inputs, slots, *weights, mask = ctx.saved_tensors
    if g_slots is None:
        g_slots = torch.zeros_like(slots)
    needed = [bool(need) for need in ctx.needs_input_grad[: 2 + len(weights)]]  # false for absent biases
    gradients = slot_attention_cpp_backward_op(
        g_slots, g_attention, saved, inputs, slots, weights[:-3], *weights[-3:], mask,
        ctx.iters, ctx.eps, ctx.gelu, ctx.implicit, needed,
    )  # fmt: skip
    return *(g if need else None for g, need in zip(gradients, needed, strict=True)), None, *(None,) * 5


SlotAttentionCppFunction = attach_gradient(slot_attention_cpp_op, _setup_context, _backward)
run = direct(slot_attention_cpp_op)
