"""The slot side of slot attention: what its two structures share, and which of them a call takes.

A program for 16 slots (fused_rows.py), or columns split over programs (fused_columns.py).
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..elementary import accumulator
from .triton import Layout, product_precision
from .weights import SlotAttentionWeights


class Tile(NamedTuple):
    """Compile-time sizes of a program's product."""

    columns: int  # BLOCK_O
    depth: int  # BLOCK_K
    warps: int
    stages: int  # tiles in flight and in use, on Hopper; one elsewhere


class Columns(NamedTuple):
    """A row of COLUMNS: from which sizes on columns are split, and the tiles of a program."""

    width: int  # least D
    rows: int  # least B S
    block: int  # BLOCK_R, slots of a program
    product: Tile
    gates: Tile  # of the GRU's six products
    basis: str  # "measured" on a named machine, or "predicted"


# The first row that a call reaches, of one head; a program for 16 slots if none. All are predicted from launches,
# bytes and dependent products (docs/kernels/slot_attention.md): no GPU has run them.
COLUMNS = (
    Columns(128, 1024, 64, Tile(32, 32, 4, 4), Tile(32, 16, 4, 4), "predicted"),
    Columns(128, 0, 16, Tile(32, 64, 4, 3), Tile(32, 32, 4, 4), "predicted"),
)


class SlotSide(NamedTuple):
    """What the slot side of a call reads and writes; contents of the workspaces in triton_slots.py."""

    rows: Tensor  # (iterations, B S, 10 D + 2 F)
    wide: Tensor  # (iterations, B S heads, 3 C)
    scalars: Tensor  # (iterations, B S heads, 2)
    w: SlotAttentionWeights
    biases: dict[str, bool]  # QUERY_BIAS, KEY_BIAS, VALUE_BIAS
    layout: Layout
    gelu: bool
    width: int  # D
    hidden: int  # F
    split: Columns | None
    options: dict[str, object]  # PRECISION and ACC
    shifts: Tensor  # (2, D) if split, see triton_columns.py
    pending: Tensor  # (B S, D) if split, see triton_columns_backward.py

    @property
    def slot_count(self) -> int:
        """Slots of all batch entries."""
        return self.layout.batch * self.layout.slots

    @property
    def factor(self) -> float:
        """Of the logits."""
        return float((self.width // self.layout.heads) ** -0.5)


class Pass(NamedTuple):
    """What a pass over the inputs gives, a part for each of its programs."""

    sums: Tensor  # (B, parts, S heads, C) of inputs; backward, gradients of seen queries
    totals: Tensor  # (B, parts, S heads) of coefficients; backward, gradients of offsets


class Gradients(NamedTuple):
    """Workspaces of the backward pass."""

    rows: Tensor  # (iterations + 1, B S, 9 D + F)
    wide: Tensor  # (iterations, B S heads, 4 C)
    scalars: Tensor  # (iterations, B S heads, 2)


class Structure(Protocol):
    """What a module of launches offers."""

    def prepare(self, side: SlotSide) -> None:
        """Whatever is made once a call and direction."""

    def queries(self, side: SlotSide, iteration: int) -> None:
        """Seen queries and offsets of an iteration from its slots in `rows`."""

    def update(self, side: SlotSide, given: Pass, out: Tensor, iteration: int) -> None:
        """From the parts of a pass to the next iteration's slots and seen queries; in the last to `out` (B, S, D)."""

    def update_backward(self, side: SlotSide, given: Pass, gradients: Gradients, iteration: int, update: bool) -> None:
        """Back through the queries of the iteration after this one, if there is one, and, if `update`, this update.

        Args:
            side: of the call.
            given: what the pass over the inputs of the iteration after this one left.
            gradients: workspaces; the gradient of the last slots is in `rows`.
            iteration: counts from 0; -1 has queries after it alone.
            update: whether this iteration has a gradient.
        """


def columns(width: int, rows: int, heads: int) -> Columns | None:
    """Row of COLUMNS for D, B S and heads; None: a program for 16 slots."""
    if heads > 1:
        return None
    return next((row for row in COLUMNS if width >= row.width and rows >= row.rows), None)


def slot_side(
    inputs: Tensor,
    workspaces: tuple[Tensor, Tensor, Tensor],
    w: SlotAttentionWeights,
    biases: dict[str, bool],
    layout: Layout,
    gelu: bool,
) -> SlotSide:
    """The slot side of a call: sizes, and the structure that its sizes choose."""
    rows, wide, scalars = workspaces
    width, hidden = w.norm_slots_weight.shape[0], w.mlp_in_weight.shape[0]
    split = columns(width, rows.shape[1], layout.heads)
    options: dict[str, object] = {"PRECISION": product_precision(inputs.dtype), "ACC": accumulator(rows.dtype)}
    shifts, pending = (rows.new_empty((count, width) if split else 0) for count in (2, rows.shape[1]))
    return SlotSide(rows, wide, scalars, w, biases, layout, gelu, width, hidden, split, options, shifts, pending)


def empty_pass(side: SlotSide) -> Pass:
    """Room for the parts of a pass."""
    layout = side.layout
    shape = (layout.batch, layout.parts, layout.slots * layout.heads)
    new = {"dtype": side.rows.dtype, "device": side.rows.device}
    return Pass(torch.empty(*shape, layout.channels, **new), torch.empty(shape, **new))  # type: ignore[call-overload]
