# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""Codes as the lookup's products take them, in Triton: scaled as in codes.py, split, and padded to whole tiles.

A float32 number is the sum of two TF32 ones, high and low, to 2^-21 of itself. They are parted here, once a codebook:
the lookup then copies both from memory to the matrix unit without a register between.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import TRITON_INTERPRETED
from ..launch import launcher
from .codes import HEADROOM, SMALL, first_equal

LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
SMALLEST, ROOM = tl.constexpr(SMALL), tl.constexpr(HEADROOM)
HALF_DROPPED, KEPT = tl.constexpr(1 << 12), tl.constexpr(-1 << 13)  # TF32 has 13 bits of mantissa less


@triton.jit
def round_to_tf32(x):
    """Nearest TF32 number, as float32; towards zero where the nearest is beyond float32's end. Inf and NaN stay."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = ((bits + HALF_DROPPED) & KEPT).to(tl.float32, bitcast=True)
    rounded = tl.where(tl.abs(rounded) <= LARGEST, rounded, (bits & KEPT).to(tl.float32, bitcast=True))
    return tl.where(x == x, rounded, x)


@triton.jit
def load_codes(codes, V, D, stride_q, stride_v, stride_d, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr):
    """A program's codes, zeros for one that is not finite; which are finite; their numbers and channels."""
    head = tl.program_id(1).to(tl.int64)
    v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    d = tl.arange(0, BLOCK_D)
    mask = (v[:, None] < V) & (d[None, :] < D)
    offsets = v[:, None].to(tl.int64) * stride_v + d[None, :].to(tl.int64) * stride_d
    values = tl.load(codes + head * stride_q + offsets, mask=mask, other=0.0).to(tl.float32)
    finite = tl.min((tl.abs(values) <= LARGEST).to(tl.int32), 1) > 0
    return tl.where(finite[:, None], values, 0.0), finite, head, v, d


@triton.jit
def largest_code_kernel(
    codes, largest, V, D, stride_q, stride_v, stride_d, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr
):
    values, _, head, _, _ = load_codes(codes, V, D, stride_q, stride_v, stride_d, BLOCK_V, BLOCK_D)
    # the bits of numbers that are not negative order as the numbers do
    tl.atomic_max(largest + head, tl.max(tl.max(tl.abs(values), 1), 0).to(tl.int32, bitcast=True), sem="relaxed")


@triton.jit
def scale_codes_kernel(
    codes, largest, high, low, half_norms, V, D, PADDED_V, PADDED_D, stride_q, stride_v, stride_d,
    SCALE: tl.constexpr, SPLIT: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # as scale_codes in codes.py; padded codes are zeros with half a norm of Inf, nobody's nearest
    values, finite, head, v, d = load_codes(codes, V, D, stride_q, stride_v, stride_d, BLOCK_V, BLOCK_D)
    moved = values
    if SCALE:
        exponent = (tl.load(largest + head) >> 23) - 126
        shift = exponent + tl.where(exponent > SMALLEST, ROOM, 0)
        shift = tl.maximum(-126, tl.minimum(126, shift))
        moved = values * ((127 - shift) << 23).to(tl.float32, bitcast=True)
    row = head * PADDED_V + v
    half_norm = tl.where(finite & (v < V), tl.sum(values * moved, 1) / 2, float("inf"))
    tl.store(half_norms + row, half_norm, mask=v < PADDED_V)
    at = row[:, None] * PADDED_D + d[None, :]
    inside = (v[:, None] < PADDED_V) & (d[None, :] < PADDED_D)
    if SPLIT:
        rounded = round_to_tf32(moved)
        tl.store(low + at, round_to_tf32(moved - rounded), mask=inside)
        moved = rounded
    tl.store(high + at, moved, mask=inside)


@launcher
def scale_codes(
    codebook: Tensor, dtype: torch.dtype, split: bool, block_v: int, block_d: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (Q, V, D), both padded to whole blocks, as `dtype`, and half norms (Q, V), as in codes.py.

    With `split` the codes' high and low TF32 parts, else the codes twice. float16 keeps its scale: its numbers and
    their squares are far from float32's ends, and it has no room for another.
    """
    heads, codes, width = codebook.shape
    padded = triton.cdiv(codes, block_v) * block_v, triton.cdiv(width, block_d) * block_d
    largest = torch.zeros(heads, dtype=torch.int32, device=codebook.device)
    high = torch.empty(heads, *padded, dtype=dtype, device=codebook.device)
    low = torch.empty_like(high) if split else high
    half_norms = torch.empty(heads, padded[0], dtype=torch.float32, device=codebook.device)
    blocks = {"BLOCK_V": 16, "BLOCK_D": triton.next_power_of_2(padded[1]), "num_warps": 4}
    grid = (triton.cdiv(padded[0], 16), heads)
    moved = dtype != torch.float16
    if moved:
        largest_code_kernel[grid](codebook, largest, codes, width, *codebook.stride(), **blocks)
    scale_codes_kernel[grid](
        codebook, largest, high, low, half_norms, codes, width, *padded, *codebook.stride(),
        SCALE=moved, SPLIT=split, **blocks,
    )  # fmt: skip
    if TRITON_INTERPRETED:  # NumPy's products round by the place of a column, a matrix unit's do not
        place = torch.arange(codes, device=codebook.device)
        half_norms[:, :codes].masked_fill_(first_equal(codebook.float()) != place, torch.inf)
    return high, low, half_norms
