"""Slot attention of small slots by the kernels of triton_entry.py: one launch forward, two backward."""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from ..dispatch import TRITON_INTERPRETED
from ..elementary import accumulator, all_registers
from ..launch import launcher
from .triton import PROGRAMS, input_gradient, plan, prefetches, product_precision
from .triton_entry import entry_backward_kernel, entry_kernel
from .weights import SlotAttentionWeights

ENTRY_WIDTH = 32  # of C and of D: rows in registers; 64 spill 312 bytes on sm_90, with eight warps 88
ENTRY_HIDDEN = 64  # of F
ENTRY_SLOTS = 16
# More inputs than a program should walk over want to be split, unless there are entries for all programs.
ENTRY_INPUTS = 512


def fits(inputs: Tensor, slot_count: int, width: int, hidden: int, heads: int) -> bool:
    """Whether a program is to own a batch entry: predicted, and on an H100 105 us for 338 (docs/kernels/h100.md)."""
    batch, count, channels = inputs.shape
    small = max(channels, width) <= ENTRY_WIDTH and hidden <= ENTRY_HIDDEN and slot_count <= ENTRY_SLOTS
    return heads == 1 and small and (count <= ENTRY_INPUTS or 2 * batch >= PROGRAMS)


def _options(inputs: Tensor, width: int, hidden: int, dtype: torch.dtype) -> dict[str, object]:
    """Compile-time arguments; rows of a tile are padded to what a matrix instruction takes."""
    padded = [max(16, triton.next_power_of_2(size)) for size in (inputs.shape[2], width, hidden)]
    return {
        "PRECISION": product_precision(inputs.dtype),
        "ACC": accumulator(dtype),
        "BLOCK_N": 32,
        "BLOCK_S": ENTRY_SLOTS,
        **dict(zip(("C", "D", "F"), (inputs.shape[2], width, hidden), strict=True)),
        **dict(zip(("BLOCK_C", "BLOCK_D", "BLOCK_F"), padded, strict=True)),
        "num_warps": 4,
        "num_stages": 1,
        **all_registers(),
    }


def _backward_tile() -> dict[str, int]:
    """Options of the backward pass that differ: four warps and 32 inputs were compiled and timed on Hopper.

    On sm_80 they spill 16 bytes and on sm_100 up to 24; eight warps spill none on sm_80, and with 64 inputs none on
    sm_100 with GELU, 8 bytes with ReLU, 16 with a mask and biases.
    """
    if TRITON_INTERPRETED or prefetches():
        return {}
    target = triton.runtime.driver.active.get_current_target()
    if target.backend != "cuda":
        return {}
    return {"num_warps": 8, "BLOCK_N": 64 if target.arch >= 100 else 32}


@launcher
def forward(
    inputs: Tensor,
    slots: Tensor,
    attention: Tensor,
    saved: Sequence[Tensor],
    w: SlotAttentionWeights,
    biases: dict[str, bool],
    mask: Tensor | None,
    eps: float,
    gelu: bool,
) -> Tensor:
    """Slots in their dtype; fills attention and what the backward pass needs.

    Args:
        saved: empty tensors of `Saved`'s shapes.
        w: contiguous weights, any tensor in place of absent biases.
        biases: QUERY_BIAS, KEY_BIAS, VALUE_BIAS, whether they are there.
    """
    mean, inverse, rows, wide, scalars = saved
    batch, count, _ = inputs.shape
    slot_count, width = slots.shape[1:]
    hidden = w.mlp_in_weight.shape[0]
    out = torch.empty(slots.shape, dtype=slots.dtype, device=slots.device)
    counted, mask_strides = (inputs, (0, 0)) if mask is None else (mask, mask.stride())
    entry_kernel[(batch,)](
        inputs, slots, mean, inverse, counted, rows, wide, scalars, out, attention,
        batch * slot_count, count, slot_count, len(rows), eps, width**-0.5,
        *inputs.stride(), *slots.stride(), *mask_strides,
        w.norm_inputs_weight, w.norm_inputs_bias, w.norm_slots_weight, w.norm_slots_bias,
        w.query_weight, w.key_weight, w.value_weight,
        w.gru_weight_ih, w.gru_weight_hh, w.gru_bias_ih, w.gru_bias_hh,
        w.norm_mlp_weight, w.norm_mlp_bias, w.mlp_in_weight, w.mlp_in_bias, w.mlp_out_weight, w.mlp_out_bias,
        w.query_bias, w.key_bias, w.value_bias,
        MASKED=mask is not None, GELU=gelu, **biases, **_options(inputs, width, hidden, rows.dtype),
    )  # fmt: skip
    return out


@launcher
def backward(
    g_slots: Tensor,
    g_attention: Tensor | None,
    saved: Sequence[Tensor],
    inputs: Tensor,
    g_inputs: Tensor | None,
    gradients: tuple[Tensor, Tensor, Tensor],
    w: SlotAttentionWeights,
    biases: dict[str, bool],
    mask: Tensor | None,
    eps: float,
    gelu: bool,
    first: int,
) -> None:
    """Fills the inputs' gradient, if wanted, and the workspaces g_rows, g_wide, g_scalars from iteration `first`."""
    mean, inverse, rows, wide, scalars = saved
    g_rows, g_wide, g_scalars = gradients
    batch, count, channels = inputs.shape
    slot_count, width = g_slots.shape[1:]
    hidden, iters = w.mlp_in_weight.shape[0], len(rows)
    new = {"dtype": rows.dtype, "device": inputs.device}
    coefficients = torch.empty(2, iters - first, batch * slot_count, count, **new)  # type: ignore[call-overload]
    sums = torch.empty(2, batch, count, **new)  # type: ignore[call-overload]
    counted, mask_strides = (inputs, (0, 0)) if mask is None else (mask, mask.stride())
    entry_backward_kernel[(batch,)](
        g_slots, inputs if g_attention is None else g_attention, inputs, mean, inverse, counted,
        rows, wide, scalars, g_rows, g_wide, g_scalars, *coefficients, *sums,
        batch * slot_count, count, slot_count, iters, first, eps, width**-0.5,
        *inputs.stride(), *g_slots.stride(), *mask_strides,
        *((0, 0, 0) if g_attention is None else g_attention.stride()),
        w.norm_inputs_weight, w.norm_inputs_bias, w.norm_slots_weight, w.query_weight, w.key_weight, w.value_weight,
        w.gru_weight_ih, w.gru_weight_hh, w.norm_mlp_weight, w.mlp_in_weight, w.mlp_out_weight, w.key_bias,
        MASKED=mask is not None, ATTENTION=g_attention is not None, GELU=gelu, KEY_BIAS=biases["KEY_BIAS"],
        **{**_options(inputs, width, hidden, rows.dtype), **_backward_tile()},
    )  # fmt: skip
    if g_inputs is not None:
        g_sums, layout = g_wide[first:, :, 2 * channels :], plan(inputs, slot_count, 1, rows.dtype)
        input_gradient(
            inputs, (mean, inverse), wide[first:], w.norm_inputs_weight, g_sums, coefficients, sums, g_inputs, layout
        )
