"""Slot attention by the kernels of triton.py and triton_slots.py: all iterations, forward and backward.

Launches: statistics and first queries, two an iteration; backward two an iteration, the last queries and the gradient
of the inputs. The weights' gradients are one product each over the slots of all iterations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..elementary import all_registers
from ..launch import launcher
from ..shapes import accumulation_dtype
from .fused_operator import saved_shapes
from .reference import LAYER_NORM_EPS
from .triton import (
    Layout,
    attend_backward_kernel,
    attend_kernel,
    input_gradient_kernel,
    plan,
    product_precision,
    statistics,
)
from .triton_slots import first_queries_kernel, update_backward_kernel, update_kernel
from .weights import SlotAttentionWeights

BLOCK_ROWS = 16  # slots a program of the slot side, the least that a matrix instruction takes
# Columns and depth of a product's tile: with 64 x 64 tf32x3 spills on sm_80 (bench/results/ahead-of-time.md).
BLOCK_OUT, BLOCK_DEPTH = 64, 32


class Saved(NamedTuple):
    """What the backward pass needs; contents in triton_slots.py."""

    mean: Tensor  # (B, N)
    inverse: Tensor  # (B, N)
    rows: Tensor  # (iterations, B S, 10 D + 2 F)
    wide: Tensor  # (iterations, B S heads, 3 C)
    scalars: Tensor  # (iterations, B S heads, 2)


def _slot_options(inputs: Tensor, layout: Layout) -> dict[str, object]:
    return {
        "PRECISION": product_precision(inputs.dtype),
        "ACC": layout.options["ACC"],
        "BLOCK_R": BLOCK_ROWS,
        "BLOCK_O": BLOCK_OUT,
        "BLOCK_K": BLOCK_DEPTH,
        "num_warps": 4,
        "num_stages": 1,
        **all_registers(),
    }


def _mask_arguments(inputs: Tensor, mask: Tensor | None) -> tuple[Tensor, tuple[int, ...]]:
    return (inputs, (0, 0)) if mask is None else (mask, mask.stride())


def _contiguous(weights: Sequence[Tensor | None], stand_in: Tensor) -> SlotAttentionWeights:
    """Weights as the kernels read them; parameters are contiguous already. Absent biases are never read."""
    return SlotAttentionWeights(*(stand_in if weight is None else weight.contiguous() for weight in weights))


@launcher
def forward(
    inputs: Tensor,
    slots: Tensor,
    weights: Sequence[Tensor | None],
    mask: Tensor | None,
    iters: int,
    eps: float,
    gelu: bool,
    heads: int,
) -> tuple[Tensor, Tensor, Saved]:
    """Slots (B, S, D) in their dtype, attention (B, S, N), and what the backward pass needs."""
    batch, count, channels = inputs.shape
    slot_count, width = slots.shape[1:]
    dtype = accumulation_dtype(inputs, slots)
    hidden = SlotAttentionWeights(*weights).mlp_in_weight.shape[0]  # type: ignore[arg-type]
    new = {"dtype": dtype, "device": inputs.device}
    attention = torch.empty(batch, slot_count, count, **new)  # type: ignore[call-overload]
    if batch == 0:
        shapes = saved_shapes(inputs, slots, hidden, iters, heads)
        return torch.empty_like(slots), attention, Saved(*(torch.empty(shape, **new) for shape in shapes))  # type: ignore[call-overload]
    layout = plan(inputs, slot_count, heads, dtype)
    mean, inverse = statistics(inputs, layout, dtype)
    workspaces = saved_shapes(inputs, slots, hidden, iters, heads)[2:]
    rows, wide, scalars = (torch.empty(shape, **new) for shape in workspaces)  # type: ignore[call-overload]
    saved = Saved(mean, inverse, rows, wide, scalars)
    count_rows = batch * slot_count
    rows[0, :, :width] = slots.reshape(count_rows, width)
    sums = torch.empty(batch, layout.parts, slot_count * heads, channels, **new)  # type: ignore[call-overload]
    totals = torch.empty(batch, layout.parts, slot_count * heads, **new)  # type: ignore[call-overload]
    coefficients = torch.empty(count_rows * heads, count, **new)  # type: ignore[call-overload]
    out = torch.empty(slots.shape, **new)  # type: ignore[call-overload]
    w = _contiguous(weights, inputs)
    biases = {"QUERY_BIAS": weights[-3] is not None, "KEY_BIAS": weights[-2] is not None}
    options = _slot_options(inputs, layout)
    factor = (width // heads) ** -0.5
    grid = (-(-count_rows // BLOCK_ROWS),)
    first_queries_kernel[grid](
        rows, wide, scalars, count_rows, width, channels, hidden, heads, factor,
        w.norm_slots_weight, w.norm_slots_bias, w.query_weight, w.query_bias, w.key_weight, w.key_bias,
        w.norm_inputs_bias, **biases, **options,
    )  # fmt: skip
    counted, mask_strides = _mask_arguments(inputs, mask)
    for iteration in range(iters):
        last = iteration == iters - 1
        attend_kernel[(batch * layout.parts,)](
            inputs, mean, inverse, wide[iteration], w.norm_inputs_weight, scalars[iteration], counted, coefficients,
            sums, totals, attention, count, slot_count, channels, heads, eps, layout.parts,
            *inputs.stride(), *mask_strides, 3 * channels, 2,
            MASKED=mask is not None, ATTENTION=last, **layout.options,
        )  # fmt: skip
        update_kernel[grid](
            sums, totals, rows, wide, scalars, out, iteration, count_rows, slot_count, width, channels, hidden, heads,
            layout.parts, factor, w.norm_inputs_weight, w.norm_inputs_bias, w.norm_slots_weight, w.norm_slots_bias,
            w.query_weight, w.key_weight, w.value_weight,
            w.gru_weight_ih, w.gru_weight_hh, w.gru_bias_ih, w.gru_bias_hh,
            w.norm_mlp_weight, w.norm_mlp_bias, w.mlp_in_weight, w.mlp_in_bias, w.mlp_out_weight, w.mlp_out_bias,
            w.query_bias, w.key_bias, w.value_bias,
            LAST=last, GELU=gelu, VALUE_BIAS=weights[-1] is not None, **biases, **options,
        )  # fmt: skip
    return out.to(slots.dtype), attention, saved


@launcher
def backward(
    g_slots: Tensor,
    g_attention: Tensor | None,
    saved: Saved,
    inputs: Tensor,
    slots: Tensor,
    weights: Sequence[Tensor | None],
    mask: Tensor | None,
    eps: float,
    gelu: bool,
    heads: int,
    implicit: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of inputs, slots, and of the weights in their order (empty for absent ones)."""
    batch, count, channels = inputs.shape
    slot_count, width = slots.shape[1:]
    g_inputs = torch.empty(inputs.shape, dtype=inputs.dtype, device=inputs.device)
    if batch == 0:
        return (
            g_inputs,
            torch.empty_like(slots),
            [torch.zeros_like(w) if w is not None else inputs.new_empty(0) for w in weights],
        )
    mean, inverse, rows, wide, scalars = saved
    dtype, iters = rows.dtype, len(wide)
    first = iters - 1 if implicit else 0
    layout = plan(inputs, slot_count, heads, dtype)
    w = _contiguous(weights, inputs)
    hidden, count_rows = w.mlp_in_weight.shape[0], batch * slot_count
    new = {"dtype": dtype, "device": inputs.device}
    g_rows = torch.empty(iters + 1, count_rows, 9 * width + hidden, **new)  # type: ignore[call-overload]
    g_rows[iters, :, :width] = g_slots.reshape(count_rows, width)
    g_wide = torch.empty(iters, count_rows * heads, 4 * channels, **new)  # type: ignore[call-overload]
    g_scalars = torch.empty(iters, count_rows * heads, 2, **new)  # type: ignore[call-overload]
    part_seen = torch.empty(batch, layout.parts, slot_count * heads, channels, **new)  # type: ignore[call-overload]
    part_offset = torch.empty(batch, layout.parts, slot_count * heads, **new)  # type: ignore[call-overload]
    coefficients = torch.empty(2, iters - first, count_rows * heads, count, **new)  # type: ignore[call-overload]
    along, flat = (torch.empty(batch, count, **new) for _ in range(2))  # type: ignore[call-overload]
    options = _slot_options(inputs, layout)
    counted, mask_strides = _mask_arguments(inputs, mask)
    for iteration in range(iters - 1, first - 2, -1):
        update_backward_kernel[(-(-count_rows // BLOCK_ROWS),)](
            part_seen, part_offset, rows, wide, scalars, g_rows, g_wide, g_scalars, iteration,
            count_rows, slot_count, width, channels, hidden, heads, layout.parts, (width // heads) ** -0.5,
            w.norm_inputs_weight, w.norm_inputs_bias, w.norm_slots_weight, w.query_weight, w.key_weight, w.value_weight,
            w.gru_weight_ih, w.gru_weight_hh, w.norm_mlp_weight, w.mlp_in_weight, w.mlp_out_weight, w.key_bias,
            QUERIES=iteration < iters - 1, UPDATE=iteration >= first, GELU=gelu, KEY_BIAS=weights[-2] is not None,
            **options,
        )  # fmt: skip
        if iteration < first:
            break
        upstream = g_attention if iteration == iters - 1 else None
        attend_backward_kernel[(batch * layout.parts,)](
            inputs, mean, inverse, wide[iteration], w.norm_inputs_weight, scalars[iteration], counted,
            g_wide[iteration, :, 2 * channels :], g_scalars[iteration, :, 1:], inputs if upstream is None else upstream,
            *coefficients[:, iteration - first], along, flat, part_seen, part_offset,
            count, slot_count, channels, heads, eps, layout.parts, *inputs.stride(), *mask_strides,
            *((0, 0, 0) if upstream is None else upstream.stride()), 3 * channels, 2, 4 * channels,
            MASKED=mask is not None, ATTENTION=upstream is not None, FIRST=iteration == iters - 1, **layout.options,
        )  # fmt: skip
    chunks = -(-channels // int(layout.options["BLOCK_C"]))  # type: ignore[call-overload]
    input_gradient_kernel[(batch * layout.tiles * chunks,)](
        inputs, mean, inverse, wide[first], w.norm_inputs_weight, g_wide[first, :, 2 * channels :],
        *coefficients, along, flat, g_inputs, iters - first, count, slot_count, channels, heads, layout.tiles, chunks,
        *inputs.stride(), 3 * channels, 4 * channels, wide[0].numel(), g_wide[0].numel(), coefficients[0, 0].numel(),
        **layout.options,
    )  # fmt: skip
    workspaces = rows[first:], wide[first:], g_rows[first:], g_wide[first:], g_scalars[first:]
    gradients = _weight_gradients(*workspaces, width, channels, hidden, heads)
    of_weights = [
        inputs.new_empty(0) if weight is None or gradient is None else gradient.reshape(weight.shape).to(weight.dtype)
        for gradient, weight in zip(gradients, weights, strict=True)
    ]
    if implicit:
        return g_inputs, torch.zeros_like(slots), of_weights
    return g_inputs, g_rows[0, :, :width].reshape(slots.shape).to(slots.dtype, copy=True), of_weights


def _weight_gradients(
    rows: Tensor,
    wide: Tensor,
    g_rows: Tensor,
    g_wide: Tensor,
    g_scalars: Tensor,
    D: int,
    C: int,
    hidden: int,
    heads: int,
) -> SlotAttentionWeights:
    """One product or sum a weight, over the slots of all iterations that count."""
    after = g_rows[1:, :, :D].flatten(0, 1)  # gradients of the slots that an iteration gives
    rows, g_rows = rows.flatten(0, 1), g_rows[:-1].flatten(0, 1)
    of_heads = (len(rows), heads, -1)
    slots, normed, query, updates = (rows[:, i * D : (i + 1) * D] for i in range(4))
    state, normed_mlp, active = rows[:, 8 * D : 9 * D], rows[:, 9 * D : 10 * D], rows[:, 10 * D + hidden :]
    g_normed, g_query, g_updates = (g_rows[:, i * D : (i + 1) * D] for i in range(1, 4))
    g_gates, g_normed_mlp, g_hidden = g_rows[:, 4 * D : 8 * D], g_rows[:, 8 * D : 9 * D], g_rows[:, 9 * D :]
    seen, means, moved = wide.flatten(0, 1).view(len(rows), heads, 3 * C).split(C, -1)  # (rows, heads, C)
    g_scaled, g_seen, _, g_moved = g_wide.flatten(0, 1).view(len(rows), heads, 4 * C).split(C, -1)
    g_offset = g_scalars.flatten(0, 1)[:, 0].view(len(rows), heads, 1)
    of_state = g_gates.t() @ slots  # (4 D, D): gates r, z, the candidate's n, the state's share of it
    of_biases = g_gates.sum(0)
    unit, unit_mlp = F.layer_norm(slots, (D,), eps=LAYER_NORM_EPS), F.layer_norm(state, (D,), eps=LAYER_NORM_EPS)
    return SlotAttentionWeights(
        norm_inputs_weight=(g_moved * means).sum((0, 1)) + (g_scaled * seen).sum((0, 1)),
        norm_inputs_bias=g_moved.sum((0, 1)) + (g_offset * seen).sum((0, 1)),
        norm_slots_weight=(g_normed * unit).sum(0),
        norm_slots_bias=g_normed.sum(0),
        query_weight=g_query.t() @ normed,
        key_weight=torch.einsum("rhk,rhc->hkc", query.reshape(of_heads), g_seen),
        value_weight=torch.einsum("rhk,rhc->hkc", g_updates.reshape(of_heads), moved),
        gru_weight_ih=g_gates[:, : 3 * D].t() @ updates,
        gru_weight_hh=torch.cat((of_state[: 2 * D], of_state[3 * D :])),
        gru_bias_ih=of_biases[: 3 * D],
        gru_bias_hh=torch.cat((of_biases[: 2 * D], of_biases[3 * D :])),
        norm_mlp_weight=(g_normed_mlp * unit_mlp).sum(0),
        norm_mlp_bias=g_normed_mlp.sum(0),
        mlp_in_weight=g_hidden.t() @ normed_mlp,
        mlp_in_bias=g_hidden.sum(0),
        mlp_out_weight=after.t() @ active,
        mlp_out_bias=after.sum(0),
        query_bias=g_query.sum(0),
        key_bias=(g_offset * query.reshape(of_heads)).sum(0),
        value_bias=g_updates.sum(0),
    )
