"""Slot attention by the kernels of triton.py and of the slot side: all iterations, forward and backward.

Launches: statistics, first queries, and in each iteration a pass over the inputs and the slot side; backward the same
and the gradient of the inputs. The slot side is one launch (fused_rows.py), or some six with columns split over
programs (fused_columns.py); slot_side.py chooses. Small slots take one launch forward and two backward
(fused_entry.py). The gradients of the weights are products over the slots of all iterations, of one head in one launch
(triton_weights.py).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..launch import launcher
from ..shapes import accumulation_dtype
from . import fused_columns, fused_entry, fused_rows
from .fused_operator import saved_shapes
from .slot_side import Gradients, SlotSide, Structure, empty_pass, slot_side
from .triton import attend_backward_kernel, attend_kernel, input_gradient, plan, statistics
from .triton_weights import FUSED_WIDTH, fused_weight_gradients
from .weight_gradients import weight_gradients
from .weights import SlotAttentionWeights


class Saved(NamedTuple):
    """What the backward pass needs; contents in triton_slots.py."""

    mean: Tensor  # (B, N)
    inverse: Tensor  # (B, N)
    rows: Tensor  # (iterations, B S, 10 D + 2 F)
    wide: Tensor  # (iterations, B S heads, 3 C)
    scalars: Tensor  # (iterations, B S heads, 2)


def _structure(side: SlotSide) -> Structure:
    if side.split is None:
        return fused_rows
    return fused_columns


def _biases(weights: Sequence[Tensor | None]) -> dict[str, bool]:
    """Which of the projections have a bias, as the kernels ask."""
    return dict(zip(("QUERY_BIAS", "KEY_BIAS", "VALUE_BIAS"), (bias is not None for bias in weights[-3:]), strict=True))


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
    workspaces = saved_shapes(inputs, slots, hidden, iters, heads)
    w = _contiguous(weights, inputs)
    if fused_entry.fits(inputs, slot_count, width, hidden, heads):
        saved = Saved(*(torch.empty(shape, **new) for shape in workspaces))  # type: ignore[call-overload]
        out = fused_entry.forward(inputs, slots, attention, saved, w, _biases(weights), mask, eps, gelu)
        return out, attention, saved
    layout = plan(inputs, slot_count, heads, dtype)
    mean, inverse = statistics(inputs, layout, dtype)
    rows, wide, scalars = (torch.empty(shape, **new) for shape in workspaces[2:])  # type: ignore[call-overload]
    saved = Saved(mean, inverse, rows, wide, scalars)
    count_rows = batch * slot_count
    rows[0, :, :width] = slots.reshape(count_rows, width)
    side = slot_side(inputs, (rows, wide, scalars), w, _biases(weights), layout, gelu)
    structure, given = _structure(side), empty_pass(side)
    coefficients = torch.empty(count_rows * heads, count, **new)  # type: ignore[call-overload]
    out = torch.empty(slots.shape, **new)  # type: ignore[call-overload]
    structure.prepare(side)
    structure.queries(side, 0)
    counted, mask_strides = _mask_arguments(inputs, mask)
    for iteration in range(iters):
        attend_kernel[(batch * layout.parts,)](
            inputs, mean, inverse, wide[iteration], w.norm_inputs_weight, scalars[iteration], counted, coefficients,
            *given, attention, count, slot_count, channels, heads, eps, layout.parts,
            *inputs.stride(), *mask_strides, 3 * channels, 2,
            MASKED=mask is not None, ATTENTION=iteration == iters - 1, **layout.attend,
        )  # fmt: skip
        structure.update(side, given, out, iteration)
    return out.to(slots.dtype), attention, saved


@launcher
def _backward_by_iteration(
    g_slots: Tensor,
    g_attention: Tensor | None,
    saved: Saved,
    inputs: Tensor,
    g_inputs: Tensor | None,
    gradients: tuple[Tensor, Tensor, Tensor],
    w: SlotAttentionWeights,
    biases: dict[str, bool],
    mask: Tensor | None,
    eps: float,
    gelu: bool,
    first: int,
    heads: int,
) -> None:
    """Arguments as `fused_entry.backward`: slot side and pass of each iteration, the gradient of the inputs."""
    batch, count, channels = inputs.shape
    slot_count, width = g_slots.shape[1:]
    mean, inverse, rows, wide, scalars = saved
    g_rows, g_wide, g_scalars = gradients
    dtype, iters = rows.dtype, len(wide)
    layout = plan(inputs, slot_count, heads, dtype)
    count_rows = batch * slot_count
    new = {"dtype": dtype, "device": inputs.device}
    g_rows[iters, :, :width] = g_slots.reshape(count_rows, width)
    side = slot_side(inputs, (rows, wide, scalars), w, biases, layout, gelu)
    structure, given = _structure(side), empty_pass(side)
    coefficients = torch.empty(2, iters - first, count_rows * heads, count, **new)  # type: ignore[call-overload]
    along, flat = (torch.empty(batch, count, **new) for _ in range(2))  # type: ignore[call-overload]
    counted, mask_strides = _mask_arguments(inputs, mask)
    structure.prepare(side)
    for iteration in range(iters - 1, first - 2, -1):
        structure.update_backward(side, given, Gradients(*gradients), iteration, iteration >= first)
        if iteration < first:
            break
        upstream = g_attention if iteration == iters - 1 else None
        attend_backward_kernel[(batch * layout.parts,)](
            inputs, mean, inverse, wide[iteration], w.norm_inputs_weight, scalars[iteration], counted,
            g_wide[iteration, :, 2 * channels :], g_scalars[iteration, :, 1:], inputs if upstream is None else upstream,
            *coefficients[:, iteration - first], along, flat, *given,
            count, slot_count, channels, heads, eps, layout.parts, *inputs.stride(), *mask_strides,
            *((0, 0, 0) if upstream is None else upstream.stride()), 3 * channels, 2, 4 * channels,
            MASKED=mask is not None, ATTENTION=upstream is not None, FIRST=iteration == iters - 1,
            **layout.attend_backward,
        )  # fmt: skip
    if g_inputs is not None:
        g_sums = g_wide[first:, :, 2 * channels :]
        input_gradient(
            inputs,
            (mean, inverse),
            wide[first:],
            w.norm_inputs_weight,
            g_sums,
            coefficients,
            (along, flat),
            g_inputs,
            layout,
        )


def _weight_gradients(
    workspaces: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    inputs: Tensor,
    weights: Sequence[Tensor | None],
    needed: Sequence[bool],
    width: int,
    channels: int,
    hidden: int,
    heads: int,
) -> list[Tensor]:
    """Of the wanted weights, in their dtypes; empty for others, of the inputs' dtype for absent ones."""
    result = [(inputs if weight is None else weight).new_empty(0) for weight in weights]
    if heads > 1 or max(channels, width) > FUSED_WIDTH:
        gradients = weight_gradients(*workspaces, width, channels, hidden, heads)
        for place, weight in enumerate(weights):
            if weight is not None and needed[place]:
                make = gradients[place]
                result[place] = make().reshape(weight.shape).to(weight.dtype)
        return result
    for place, weight in enumerate(weights):
        if weight is not None and needed[place]:
            result[place] = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    wanted = [place for place, gradient in enumerate(result) if gradient.numel()]
    if wanted:
        names = [SlotAttentionWeights._fields[place] for place in wanted]
        named = fused_weight_gradients(*workspaces, width, channels, hidden, names)
        found = [named[name] for name in names]
        torch._foreach_copy_([result[place] for place in wanted], found)
    return result


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
    needed: Sequence[bool] | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of inputs, slots, and of the weights in their order (empty for absent ones).

    Args:
        needed: of inputs, slots and the weights, which gradients to make, all by default; the others are empty, but for
            that of the slots, which the iterations need.
    """
    batch, _, channels = inputs.shape
    slot_count, width = slots.shape[1:]
    needed = (True,) * (2 + len(weights)) if needed is None else needed
    g_inputs = torch.empty(inputs.shape if needed[0] else 0, dtype=inputs.dtype, device=inputs.device)
    if batch == 0:
        of_weights = [
            inputs.new_empty(0) if weight is None or not wanted else torch.zeros_like(weight)
            for weight, wanted in zip(weights, needed[2:], strict=True)
        ]
        return g_inputs, torch.empty_like(slots), of_weights
    rows, wide, _ = saved[2:]
    iters, rows_count = len(wide), batch * slot_count
    first = iters - 1 if implicit else 0
    w = _contiguous(weights, inputs)
    hidden = w.mlp_in_weight.shape[0]
    new = {"dtype": rows.dtype, "device": inputs.device}
    g_rows = torch.empty(iters + 1, rows_count, 9 * width + hidden, **new)  # type: ignore[call-overload]
    g_wide = torch.empty(iters, rows_count * heads, 4 * channels, **new)  # type: ignore[call-overload]
    g_scalars = torch.empty(iters, rows_count * heads, 2, **new)  # type: ignore[call-overload]
    of_inputs, biases = g_inputs if needed[0] else None, _biases(weights)
    call = (g_slots, g_attention, saved, inputs, of_inputs, (g_rows, g_wide, g_scalars), w, biases, mask, eps, gelu)
    if fused_entry.fits(inputs, slot_count, width, hidden, heads):
        fused_entry.backward(*call, first)
    else:
        _backward_by_iteration(*call, first, heads)
    workspaces = rows[first:], wide[first:], g_rows[first:], g_wide[first:], g_scalars[first:]
    of_weights = _weight_gradients(workspaces, inputs, weights, needed[2:], width, channels, hidden, heads)
    if implicit:
        return g_inputs, torch.zeros_like(slots), of_weights
    return g_inputs, g_rows[0, :, :width].reshape(slots.shape).to(slots.dtype, copy=True), of_weights
