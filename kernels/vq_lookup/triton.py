# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""vq_lookup in Triton; its codes are prepared in triton_codes.py, statistics are in triton_statistics.py.

Forward: one program owns BLOCK_N rows of one head and streams over the codes. score = |c|^2 / 2 - x.c from tensor
cores; the running minimum and its index are element-wise over BLOCK_N x BLOCK_V and lanes meet once, at the end. Then
the winning rows are gathered, and distance, index and code are written: N x V is never in memory.

Up to 128 channels the rows are read and split once and stay on chip, and the loop over codes is one software
pipeline: while a tile is multiplied the next ones are copied. Above, a step of that one pipeline is a chunk of channels
of a tile of codes.

Exact: float32 products are split into three TF32 ones on NVIDIA, taken in full float32 on AMD; bfloat16 and float16
inputs multiply exactly into the float32 accumulator. Fast: one TF32 or bfloat16 product.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import TRITON_INTERPRETED
from ..elementary import all_registers
from ..launch import launcher
from .triton_codes import round_to_tf32, scale_codes
from .triton_statistics import statistics, two_leading_axes

__all__ = ["lookup", "lookup_backward", "statistics"]

MAX_WIDTH = 512
RESIDENT = 128  # channels of rows that stay on chip
PROCESSORS = 132  # of an H100


class Config(NamedTuple):
    """Launch parameters of the forward kernel."""

    block_n: int
    block_v: int
    block_d: int
    num_warps: int
    num_stages: int
    resident: bool  # rows stay on chip


def target() -> tuple[str, int]:
    """("cuda", compute capability), ("hip", 0) or, under the interpreter, ("cpu", 0)."""
    if TRITON_INTERPRETED:
        return "cpu", 0
    current = triton.runtime.driver.active.get_current_target()
    return current.backend, current.arch if current.backend == "cuda" else 0


# Chosen by registers and shared memory of the ahead-of-time compile; an H100 has timed them (docs/kernels/h100.md), but
# nothing in their place. A warpgroup of four warps owns 64 rows, the height of Hopper's matrix instruction: with two of
# them beside each other both multiplied every row. Minimum, index and accumulator are three tiles in registers, 96
# numbers a thread; 128 codes a tile would make it 192.
def choose_config(rows: int, heads: int, width: int, size: int) -> Config:
    """Rows a program so that the busiest of PROCESSORS has the fewest; of equals the most: codes are read less often.

    Args:
        size: bytes of a channel as the product takes it, both parts of a split number counted.
    """
    busiest = {n: -(-(-(-rows // n) * heads) // PROCESSORS) * n for n in (64, 128)}
    block_n = min(busiest, key=lambda n: (busiest[n], -n))
    block_d = max(16, triton.next_power_of_2(width))
    backend, capability = target()
    # mma.sync takes rows from registers: 64 numbers a thread for 64 split channels, where 64 codes spill 168 bytes (and
    # 72 for 128 channels in one part)
    in_registers = backend == "cuda" and capability < 90
    resident = width <= RESIDENT and not (in_registers and block_d * size > 512)
    if not resident:
        block_d = 64 if size == 2 else 32
    # beside 128 split rows of 128 channels 64 codes exceed shared memory
    block_v = 32 if block_d * size > 512 or (in_registers and (size == 8 or block_d * size == 512)) else 64
    return Config(block_n, block_v, block_d, block_n // 16, 3 if size <= 4 else 2, resident)


@triton.jit
def tile_product(x, x_low, high, low, offsets, dots, SPLIT: tl.constexpr, PRECISION: tl.constexpr):
    """dots + x times the codes at offsets; of split numbers without low times low, small products first."""
    code = tl.load(high + offsets)
    if SPLIT:
        dots = tl.dot(x_low, code, dots, input_precision=PRECISION)
        dots = tl.dot(x, tl.load(low + offsets), dots, input_precision=PRECISION)
    return tl.dot(x, code, dots, input_precision=PRECISION)


@triton.jit
def keep_best(best, best_index, dots, half_norms, v):
    """Element-wise running minimum over a tile of codes v, and its index."""
    score = tl.load(half_norms + v)[None, :] - dots
    smaller = score < best  # NaN is never smaller
    return tl.where(smaller, score, best), tl.where(smaller, v[None, :], best_index)


@triton.jit
def lookup_kernel(
    x, codes, high, low, half_norms, quantized, indices, distance,
    N, INNER, V, Q,
    x_outer, x_inner, x_q, x_d, c_q, c_v, c_d,
    D: tl.constexpr, RESIDENT: tl.constexpr, SPLIT: tl.constexpr, CAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # V counts padded codes, a multiple of BLOCK_V; high and low (Q, V, D in whole blocks) as scale_codes gives them
    head = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = n < N
    # leading axes are two: n = outer * INNER + inner
    x_rows = x + head * x_q + (n // INNER).to(tl.int64) * x_outer + (n % INNER).to(tl.int64) * x_inner
    c_head = codes + head * c_q
    CHUNKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    high += head * V * (CHUNKS * BLOCK_D)
    low += head * V * (CHUNKS * BLOCK_D)
    half_norms += head * V
    lanes = tl.arange(0, BLOCK_V)
    depth = tl.arange(0, BLOCK_D)
    offsets = lanes[None, :] * (CHUNKS * BLOCK_D) + depth[:, None]
    best = tl.full((BLOCK_N, BLOCK_V), float("inf"), tl.float32)
    best_index = tl.zeros((BLOCK_N, BLOCK_V), tl.int32)
    dots = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    if RESIDENT:
        tile = tl.load(
            x_rows[:, None] + depth[None, :].to(tl.int64) * x_d,
            mask=row_mask[:, None] & (depth[None, :] < D),
            other=0.0,
        ).to(CAST)
        tile_low = tile
        if SPLIT:
            rounded = round_to_tf32(tile)
            tile_low = round_to_tf32(tile - rounded)
            tile = rounded
        for start in range(0, V, BLOCK_V):
            dots = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
            dots = tile_product(tile, tile_low, high, low, start * BLOCK_D + offsets, dots, SPLIT, PRECISION)
            best, best_index = keep_best(best, best_index, dots, half_norms, start + lanes)
    else:
        for step in range(V // BLOCK_V * CHUNKS):
            start = step // CHUNKS * BLOCK_V
            d = step % CHUNKS * BLOCK_D + depth
            chunk = tl.load(
                x_rows[:, None] + d[None, :].to(tl.int64) * x_d, mask=row_mask[:, None] & (d[None, :] < D), other=0.0
            ).to(CAST)
            chunk_low = chunk
            if SPLIT:
                rounded = round_to_tf32(chunk)
                chunk_low = round_to_tf32(chunk - rounded)
                chunk = rounded
            place = start * (CHUNKS * BLOCK_D) + step % CHUNKS * BLOCK_D
            dots = tile_product(chunk, chunk_low, high, low, place + offsets, dots, SPLIT, PRECISION)
            if step % CHUNKS == CHUNKS - 1:
                best, best_index = keep_best(best, best_index, dots, half_norms, start + lanes)
                dots = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    # lowest index of the lowest score
    lowest = tl.min(best, 1)
    index = tl.min(tl.where(best == lowest[:, None], best_index, 2147483647), 1)
    out = n.to(tl.int64) * Q + head
    tl.store(indices + out, index, mask=row_mask)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for start_d in range(0, D, BLOCK_D):
        d = start_d + depth
        mask = row_mask[:, None] & (d[None, :] < D)
        code = tl.load(c_head + index[:, None].to(tl.int64) * c_v + d[None, :].to(tl.int64) * c_d, mask=mask, other=0.0)
        value = tl.load(x_rows[:, None] + d[None, :].to(tl.int64) * x_d, mask=mask, other=0.0).to(tl.float32)
        difference = value - code.to(tl.float32)
        total += tl.sum(difference * difference, 1)
        tl.store(quantized + out[:, None] * D + d[None, :], code, mask=mask)
    tl.store(distance + out, total, mask=row_mask)


@triton.jit
def lookup_backward_kernel(
    x, codes, indices, grad_quantized, grad_distance, grad_x, contribution, grad_codes,
    N, INNER, V, D, Q,
    x_outer, x_inner, x_q, x_d, c_q, c_v, c_d,
    HAS_QUANTIZED: tl.constexpr, HAS_DISTANCE: tl.constexpr, NEED_X: tl.constexpr, CODES: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # CODES: 0 no gradient of the codebook, 1 by atomics into grad_codes, 2 per row into contribution
    head = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = n < N
    x_rows = x + head * x_q + (n // INNER).to(tl.int64) * x_outer + (n % INNER).to(tl.int64) * x_inner
    out = n.to(tl.int64) * Q + head
    index = tl.load(indices + out, mask=row_mask, other=0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    mask = row_mask[:, None] & (d[None, :] < D)
    flat = out[:, None] * D + d[None, :]
    pull = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    if HAS_DISTANCE:
        value = tl.load(x_rows[:, None] + d[None, :].to(tl.int64) * x_d, mask=mask, other=0.0).to(tl.float32)
        code = tl.load(
            codes + head * c_q + index[:, None] * c_v + d[None, :].to(tl.int64) * c_d, mask=mask, other=0.0
        ).to(tl.float32)
        gradient = tl.load(grad_distance + out, mask=row_mask, other=0.0)
        pull = 2.0 * gradient[:, None] * (value - code)
    if NEED_X:
        tl.store(grad_x + flat, pull, mask=mask)
    if CODES > 0:
        push = -pull
        if HAS_QUANTIZED:
            push += tl.load(grad_quantized + flat, mask=mask, other=0.0).to(tl.float32)
        if CODES == 1:
            tl.atomic_add(grad_codes + (head * V + index[:, None]) * D + d[None, :], push, mask=mask, sem="relaxed")
        else:
            tl.store(contribution + flat, push, mask=mask)


TORCH_TYPES = {tl.float32: torch.float32, tl.bfloat16: torch.bfloat16, tl.float16: torch.float16}


def product_types(x: Tensor, codebook: Tensor, precision: str) -> tuple[tl.dtype, str, bool]:
    """Type both factors are cast to, Triton's input_precision, and whether they are split into two TF32 numbers."""
    narrow = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    backend, _ = target()
    halves = x.dtype == codebook.dtype and x.dtype in narrow
    if backend == "cpu":  # the interpreter's bfloat16 products are wrong; those of TF32 numbers are exact in float32
        return tl.float32, "ieee", not halves and precision != "fast"
    if halves:
        return narrow[x.dtype], "ieee", False
    if backend == "hip":
        return tl.float32, "ieee", False  # AMD's matrix unit takes float32 itself
    return tl.float32, "tf32", precision != "fast"


@launcher
def lookup(x: Tensor, codebook: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """quantized (..., Q, D), indices (..., Q), distance (..., Q)."""
    heads, _, width = codebook.shape
    leading = x.shape[:-2]
    rows = leading.numel()
    quantized = torch.empty(x.shape, dtype=codebook.dtype, device=x.device)
    indices = torch.empty(*leading, heads, dtype=torch.int32, device=x.device)
    distance = torch.empty(*leading, heads, dtype=torch.float32, device=x.device)
    if rows == 0:
        return quantized, indices, distance
    x, (inner, *x_strides) = two_leading_axes(x)
    cast, input_precision, split = product_types(x, codebook, precision)
    dtype = TORCH_TYPES[cast]
    config = choose_config(rows, heads, width, dtype.itemsize * (2 if split else 1))
    high, low, half_norms = scale_codes(codebook, dtype, split, config.block_v, config.block_d)
    lookup_kernel[(triton.cdiv(rows, config.block_n), heads)](
        x, codebook, high, low, half_norms, quantized, indices, distance,
        rows, inner, high.shape[1], heads, *x_strides, *codebook.stride(),
        D=width, RESIDENT=config.resident, SPLIT=split, CAST=cast, PRECISION=input_precision,
        BLOCK_N=config.block_n, BLOCK_V=config.block_v, BLOCK_D=config.block_d,
        num_warps=config.num_warps, num_stages=config.num_stages, **all_registers(),
    )  # fmt: skip
    return quantized, indices, distance


@launcher
def lookup_backward(
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    grad_quantized: Tensor | None,
    grad_distance: Tensor | None,
    need_x: bool,
    need_codebook: bool,
) -> tuple[Tensor, Tensor]:
    """grad_x (..., Q, D) and grad_codebook (Q, V, D), empty where not needed."""
    heads, codes, width = codebook.shape
    rows = x.shape[:-2].numel()
    deterministic = torch.are_deterministic_algorithms_enabled()
    grad_x = torch.empty(x.shape if need_x else 0, dtype=x.dtype, device=x.device)
    grad_codes = torch.zeros(codebook.shape if need_codebook else 0, dtype=torch.float32, device=x.device)
    per_row = need_codebook and deterministic
    contribution = torch.empty(x.shape if per_row else 0, dtype=torch.float32, device=x.device)
    if rows:
        source, (inner, *x_strides) = two_leading_axes(x)
        grad_quantized = None if grad_quantized is None else grad_quantized.contiguous()
        grad_distance = None if grad_distance is None else grad_distance.contiguous()
        block_d = triton.next_power_of_2(width)
        block_n = max(4, min(32, 4096 // block_d))  # 32 x 512 spills 390 bytes
        lookup_backward_kernel[(triton.cdiv(rows, block_n), heads)](
            source, codebook, indices,
            indices if grad_quantized is None else grad_quantized, indices if grad_distance is None else grad_distance,
            grad_x, contribution, grad_codes,
            rows, inner, codes, width, heads, *x_strides, *codebook.stride(),
            HAS_QUANTIZED=grad_quantized is not None, HAS_DISTANCE=grad_distance is not None,
            NEED_X=need_x, CODES=(2 if per_row else 1) if need_codebook else 0,
            BLOCK_N=block_n, BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip
    if per_row:
        _, grad_codes = statistics(contribution, indices, codes, deterministic=True)
    return grad_x, grad_codes.to(codebook.dtype)
