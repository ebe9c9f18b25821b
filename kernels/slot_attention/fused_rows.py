"""Launches of the slot side of slot attention with a program for 16 slots: kernels of triton_slots.py."""

from torch import Tensor

from ..elementary import all_registers
from ..launch import launcher
from .slot_side import Gradients, Pass, SlotSide
from .triton import prefetches
from .triton_slots import first_queries_kernel, update_backward_kernel, update_kernel

BLOCK_ROWS = 16  # slots a program, the least that a matrix instruction takes


def _tile(side: SlotSide) -> dict[str, object]:
    """Compile-time arguments of a program for 16 slots.

    It walks through a chain of dependent products, so on Hopper a tile is as large as registers allow and the next one
    is on its way: 26 steps an update instead of 104 at 128 channels. Elsewhere, and where heads make products narrow,
    64 x 32: with 64 x 64 tf32x3 spills on sm_80.
    """
    tile = {"BLOCK_O": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 1}
    if side.layout.heads == 1 and prefetches():
        wide = 128 if side.width > 64 else 64
        tile = {"BLOCK_O": wide, "BLOCK_K": 64, "num_warps": wide // 16, "num_stages": 2}
    return {**side.options, "BLOCK_R": BLOCK_ROWS, **tile, **all_registers()}


def prepare(side: SlotSide) -> None:
    """As `Structure.prepare`: nothing."""


@launcher
def queries(side: SlotSide, iteration: int) -> None:
    """As `Structure.queries`, of the first iteration: `update` makes the others'."""
    if iteration:
        raise ValueError(f"slot_attention: queries of iteration {iteration}: its update makes them")
    w, layout = side.w, side.layout
    first_queries_kernel[(-(-side.slot_count // BLOCK_ROWS),)](
        side.rows, side.wide, side.scalars, side.slot_count, side.width, layout.channels, side.hidden, layout.heads,
        side.factor, w.norm_slots_weight, w.norm_slots_bias, w.query_weight, w.query_bias, w.key_weight, w.key_bias,
        w.norm_inputs_bias, QUERY_BIAS=side.biases["QUERY_BIAS"], KEY_BIAS=side.biases["KEY_BIAS"], **_tile(side),
    )  # fmt: skip


@launcher
def update(side: SlotSide, given: Pass, out: Tensor, iteration: int) -> None:
    """As `Structure.update`."""
    w, layout = side.w, side.layout
    update_kernel[(-(-side.slot_count // BLOCK_ROWS),)](
        *given, side.rows, side.wide, side.scalars, out, iteration, side.slot_count, layout.slots, side.width,
        layout.channels, side.hidden, layout.heads, layout.parts, side.factor,
        w.norm_inputs_weight, w.norm_inputs_bias, w.norm_slots_weight, w.norm_slots_bias,
        w.query_weight, w.key_weight, w.value_weight, w.gru_weight_ih, w.gru_weight_hh, w.gru_bias_ih, w.gru_bias_hh,
        w.norm_mlp_weight, w.norm_mlp_bias, w.mlp_in_weight, w.mlp_in_bias, w.mlp_out_weight, w.mlp_out_bias,
        w.query_bias, w.key_bias, w.value_bias,
        LAST=iteration == len(side.wide) - 1, GELU=side.gelu, **side.biases, **_tile(side),
    )  # fmt: skip


@launcher
def update_backward(side: SlotSide, given: Pass, gradients: Gradients, iteration: int, update: bool) -> None:
    """As `Structure.update_backward`."""
    w, layout = side.w, side.layout
    update_backward_kernel[(-(-side.slot_count // BLOCK_ROWS),)](
        *given, side.rows, side.wide, side.scalars, *gradients, iteration, side.slot_count, layout.slots, side.width,
        layout.channels, side.hidden, layout.heads, layout.parts, side.factor,
        w.norm_inputs_weight, w.norm_inputs_bias, w.norm_slots_weight, w.query_weight, w.key_weight, w.value_weight,
        w.gru_weight_ih, w.gru_weight_hh, w.norm_mlp_weight, w.mlp_in_weight, w.mlp_out_weight, w.key_bias,
        QUERIES=iteration < len(side.wide) - 1, UPDATE=update, GELU=side.gelu, KEY_BIAS=side.biases["KEY_BIAS"],
        **_tile(side),
    )  # fmt: skip
