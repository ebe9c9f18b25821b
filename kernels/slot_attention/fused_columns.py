"""Launches of the slot side of slot attention with columns split over programs: kernels of triton_columns.py.

Forward one launch for the shifts, two for the first queries, six an update, four in the last; backward one for the
shifts, four an update, two for the queries after it where there are any, and one for the first slots.
"""

from torch import Tensor

from ..elementary import all_registers
from ..launch import launcher
from .slot_side import Columns, Gradients, Pass, SlotSide, Tile
from .triton import prefetches
from .triton_columns import (
    gates_kernel,
    hidden_kernel,
    queries_kernel,
    result_kernel,
    seen_kernel,
    shifts_kernel,
    updates_kernel,
)
from .triton_columns_backward import (
    gates_backward_kernel,
    hidden_backward_kernel,
    product_kernel,
    queries_backward_kernel,
    slots_backward_kernel,
    updates_backward_kernel,
)


def _split(side: SlotSide) -> Columns:
    if side.split is None:
        raise RuntimeError(f"slot_attention: no row of COLUMNS for D={side.width}, {side.slot_count} slots")
    return side.split


def _grid(side: SlotSide, columns: int) -> tuple[int, int]:
    split = _split(side)
    return -(-side.slot_count // split.block), -(-columns // split.product.columns)


def _gates_grid(side: SlotSide) -> tuple[int, int]:
    split = _split(side)
    return -(-side.slot_count // split.block), -(-side.width // split.gates.columns)


def _options(side: SlotSide, tile: Tile) -> dict[str, object]:
    """Compile-time arguments of a product."""
    return {
        **side.options,
        "BLOCK_R": _split(side).block,
        "BLOCK_O": tile.columns,
        "BLOCK_K": tile.depth,
        "num_warps": tile.warps,
        "num_stages": tile.stages if prefetches() else 1,
        **all_registers(),
    }


@launcher
def prepare(side: SlotSide) -> None:
    """As `Structure.prepare`: `side.shifts`."""
    w = side.w
    shifts_kernel[(-(-side.width // 16),)](
        side.shifts, side.width, side.layout.channels, w.norm_inputs_bias, w.key_weight, w.value_weight,
        w.key_bias, w.value_bias, KEY_BIAS=side.biases["KEY_BIAS"], VALUE_BIAS=side.biases["VALUE_BIAS"],
        ACC=side.options["ACC"], BLOCK_O=16, BLOCK_K=64, num_warps=4,
    )  # fmt: skip


@launcher
def queries(side: SlotSide, iteration: int) -> None:
    """As `Structure.queries`."""
    w, sizes = side.w, (side.slot_count, side.width)
    queries_kernel[_grid(side, side.width)](
        side.rows, iteration, *sizes, side.hidden, side.factor,
        w.norm_slots_weight, w.norm_slots_bias, w.query_weight, w.query_bias,
        QUERY_BIAS=side.biases["QUERY_BIAS"], **_options(side, _split(side).product),
    )  # fmt: skip
    seen_kernel[_grid(side, side.layout.channels)](
        side.rows, side.wide, side.scalars, side.shifts, iteration, *sizes, side.layout.channels, side.hidden,
        w.key_weight, **_options(side, _split(side).product),
    )  # fmt: skip


@launcher
def update(side: SlotSide, given: Pass, out: Tensor, iteration: int) -> None:
    """As `Structure.update`."""
    w, layout, options = side.w, side.layout, _options(side, _split(side).product)
    sizes, last = (side.slot_count, side.width, side.hidden), iteration == len(side.wide) - 1
    updates_kernel[_grid(side, side.width)](
        *given, side.rows, side.wide, side.scalars, iteration, side.slot_count, layout.slots, side.width,
        layout.channels, side.hidden, layout.parts,
        w.norm_inputs_weight, w.norm_inputs_bias, w.value_weight, w.value_bias,
        VALUE_BIAS=side.biases["VALUE_BIAS"], **options,
    )  # fmt: skip
    gates_kernel[_gates_grid(side)](
        side.rows, iteration, *sizes, w.gru_weight_ih, w.gru_weight_hh, w.gru_bias_ih, w.gru_bias_hh,
        **_options(side, _split(side).gates),
    )  # fmt: skip
    hidden_kernel[_grid(side, side.hidden)](
        side.rows, iteration, *sizes, w.norm_mlp_weight, w.norm_mlp_bias, w.mlp_in_weight, w.mlp_in_bias,
        GELU=side.gelu, **options,
    )  # fmt: skip
    result_kernel[_grid(side, side.width)](
        side.rows, out, iteration, *sizes, w.mlp_out_weight, w.mlp_out_bias, LAST=last, **options
    )
    if not last:
        queries(side, iteration + 1)


@launcher
def _queries_backward(side: SlotSide, given: Pass, gradients: Gradients, iteration: int) -> None:
    """From the parts of a pass of this iteration to the gradients of its queries and of the slots' LayerNorm."""
    w, layout, options = side.w, side.layout, _options(side, _split(side).product)
    queries_backward_kernel[_grid(side, side.width)](
        *given, *gradients, iteration, side.slot_count, layout.slots, side.width, layout.channels, side.hidden,
        layout.parts, side.factor, w.norm_inputs_weight, w.norm_inputs_bias, w.key_weight, w.key_bias,
        KEY_BIAS=side.biases["KEY_BIAS"], **options,
    )  # fmt: skip
    product_kernel[_grid(side, side.width)](
        gradients.rows, iteration, side.slot_count, side.width, side.hidden, w.query_weight, 2 * side.width, side.width,
        side.width, **options,
    )  # fmt: skip


@launcher
def update_backward(side: SlotSide, given: Pass, gradients: Gradients, iteration: int, update: bool) -> None:
    """As `Structure.update_backward`."""
    w, options, sizes = side.w, _options(side, _split(side).product), (side.slot_count, side.width, side.hidden)
    after = iteration < len(side.wide) - 1
    if after:
        _queries_backward(side, given, gradients, iteration + 1)
    if not update:
        slots_backward_kernel[_grid(side, side.width)](
            side.rows, gradients.rows, side.pending, iteration + 1, *sizes, w.norm_slots_weight,
            **{name: value for name, value in options.items() if name != "PRECISION"},
        )  # fmt: skip
        return
    hidden_backward_kernel[_grid(side, side.hidden)](
        side.rows, gradients.rows, side.pending, iteration, *sizes, w.norm_slots_weight, w.mlp_out_weight,
        QUERIES=after, GELU=side.gelu, **options,
    )  # fmt: skip
    product_kernel[_grid(side, side.width)](
        gradients.rows, iteration, *sizes, w.mlp_in_weight, 9 * side.width, 8 * side.width, side.hidden, **options
    )
    gates_backward_kernel[_gates_grid(side)](
        side.rows, gradients.rows, side.pending, iteration, *sizes, w.norm_mlp_weight, w.gru_weight_ih, w.gru_weight_hh,
        **_options(side, _split(side).gates),
    )  # fmt: skip
    updates_backward_kernel[_grid(side, side.layout.channels)](
        side.rows, side.scalars, side.shifts, *gradients, iteration, side.slot_count, side.width, side.layout.channels,
        side.hidden, w.norm_inputs_weight, w.value_weight, **options,
    )  # fmt: skip
