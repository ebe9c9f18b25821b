# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""vq_lookup and vq_statistics in Triton.

Forward: one program owns BLOCK_N rows of one head and streams over the codes. score = |c|^2 / 2 - x.c from tensor
cores; the running minimum is element-wise over BLOCK_N x BLOCK_V and meets the other lanes once, at the end. Then the
winning
rows are gathered, and distance, index and code are written: N x V is never in memory.

Exact: float32 products are split into three TF32 ones (tf32x3) on NVIDIA, taken in full float32 elsewhere; bfloat16 and
float16 inputs multiply exactly into the float32 accumulator. Fast: one TF32 or bfloat16 product.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import TRITON_INTERPRETED
from ..launch import launcher
from .codes import HEADROOM, SMALL, first_equal

MAX_WIDTH = 512
LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
SMALLEST, ROOM = tl.constexpr(SMALL), tl.constexpr(HEADROOM)


class Config(NamedTuple):
    """Launch parameters of the forward kernel."""

    block_n: int
    block_v: int
    block_d: int
    num_warps: int
    num_stages: int


def target() -> tuple[str, int]:
    """("cuda", compute capability), ("hip", 0) or, under the interpreter, ("cpu", 0)."""
    if TRITON_INTERPRETED:
        return "cpu", 0
    current = triton.runtime.driver.active.get_current_target()
    return current.backend, current.arch if current.backend == "cuda" else 0


# Chosen by registers and shared memory of the ahead-of-time compile, not yet timed on a GPU. Minimum, index and
# accumulator are three BLOCK_N x BLOCK_V tiles in registers: with 128 x 64 and 8 warps they take 96 of 255 registers a
# thread, 128 x 128 spills 300 bytes on sm_90 and 4,500 on sm_80. BLOCK_D is what is left: tf32x3 keeps both factors
# twice in registers on sm_80 (mma.sync), where 32 spills 176 bytes and 16 none; wgmma and tcgen05 read them from shared
# memory.
def choose_config(rows: int, width: int, cast: tl.dtype, precision: str) -> Config:
    """Fewer rows a program when there are too few programs to fill a device."""
    _, capability = target()
    if cast != tl.float32:
        block_d = 64
    else:
        block_d = 16 if precision == "tf32x3" and capability < 90 else 32
    block_d = min(block_d, max(16, triton.next_power_of_2(width)))
    if rows >= 8192:
        return Config(block_n=128, block_v=64, block_d=block_d, num_warps=8, num_stages=2)
    return Config(block_n=64, block_v=64, block_d=block_d, num_warps=4, num_stages=2)


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
    codes, largest, scaled, half_norms, V, D, stride_q, stride_v, stride_d,
    SCALE: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # as scale_codes in codes.py
    values, finite, head, v, d = load_codes(codes, V, D, stride_q, stride_v, stride_d, BLOCK_V, BLOCK_D)
    moved = values
    if SCALE:
        exponent = (tl.load(largest + head) >> 23) - 126
        shift = exponent + tl.where(exponent > SMALLEST, ROOM, 0)
        shift = tl.maximum(-126, tl.minimum(126, shift))
        moved = values * ((127 - shift) << 23).to(tl.float32, bitcast=True)
    row = head * V + v
    tl.store(scaled + row[:, None] * D + d[None, :], moved, mask=(v[:, None] < V) & (d[None, :] < D))
    tl.store(half_norms + row, tl.where(finite, tl.sum(values * moved, 1) / 2, float("inf")), mask=v < V)


@triton.jit
def lookup_kernel(
    x, codes, scaled, half_norms, quantized, indices, distance,
    N, INNER, V, D, Q,
    x_outer, x_inner, x_q, x_d, c_q, c_v, c_d,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
    CAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = n < N
    # leading axes are two: n = outer * INNER + inner
    x_rows = x + head * x_q + (n // INNER).to(tl.int64) * x_outer + (n % INNER).to(tl.int64) * x_inner
    c_head = codes + head * c_q
    lanes = tl.arange(0, BLOCK_V)
    depth = tl.arange(0, BLOCK_D)
    best = tl.full((BLOCK_N, BLOCK_V), float("inf"), tl.float32)
    best_index = tl.zeros((BLOCK_N, BLOCK_V), tl.int32)
    for start_v in range(0, V, BLOCK_V):
        v = start_v + lanes
        dots = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
        for start_d in range(0, D, BLOCK_D):
            d = start_d + depth
            x_tile = tl.load(
                x_rows[:, None] + d[None, :].to(tl.int64) * x_d, mask=row_mask[:, None] & (d[None, :] < D), other=0.0
            )
            c_tile = tl.load(
                scaled + (head * V + v[None, :]) * D + d[:, None],
                mask=(v[None, :] < V) & (d[:, None] < D),
                other=0.0,
            )
            dots = tl.dot(x_tile.to(CAST), c_tile.to(CAST), dots, input_precision=PRECISION)
        half_norm = tl.load(half_norms + head * V + v, mask=v < V, other=float("inf"))
        score = half_norm[None, :] - dots
        smaller = score < best  # NaN is never smaller
        best = tl.where(smaller, score, best)
        best_index = tl.where(smaller, v[None, :], best_index)
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


@triton.jit
def statistics_atomic_kernel(
    x, indices, counts, sums, N, INNER, V, D, Q, x_outer, x_inner, x_q, x_d,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = n < N
    x_rows = x + head * x_q + (n // INNER).to(tl.int64) * x_outer + (n % INNER).to(tl.int64) * x_inner
    index = tl.load(indices + n.to(tl.int64) * Q + head, mask=row_mask, other=0).to(tl.int64)
    row_mask = row_mask & (index >= 0) & (index < V)  # nothing is written beside the sums
    code = head * V + index
    d = tl.arange(0, BLOCK_D)
    mask = row_mask[:, None] & (d[None, :] < D)
    value = tl.load(x_rows[:, None] + d[None, :].to(tl.int64) * x_d, mask=mask, other=0.0).to(tl.float32)
    tl.atomic_add(counts + code, tl.full((BLOCK_N,), 1.0, tl.float32), mask=row_mask, sem="relaxed")
    tl.atomic_add(sums + code[:, None] * D + d[None, :], value, mask=mask, sem="relaxed")


@triton.jit
def statistics_sorted_kernel(
    x, order, edges, counts, sums, INNER, V, D, Q, x_outer, x_inner, x_q, x_d,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # one program owns one code of one head and adds its rows in ascending order: the same bits in every run
    head = tl.program_id(1).to(tl.int64)
    code = head * V + tl.program_id(0)
    first = tl.load(edges + code)
    last = tl.load(edges + code + 1)
    d = tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(first, last, BLOCK_N):
        position = start + tl.arange(0, BLOCK_N)
        row_mask = position < last
        n = tl.load(order + position, mask=row_mask, other=0) // Q  # order counts (row, head)
        rows = x + head * x_q + (n // INNER) * x_outer + (n % INNER) * x_inner
        mask = row_mask[:, None] & (d[None, :] < D)
        value = tl.load(rows[:, None] + d[None, :].to(tl.int64) * x_d, mask=mask, other=0.0)
        total += tl.sum(value.to(tl.float32), 0)
    tl.store(counts + code, (last - first).to(tl.float32))
    tl.store(sums + code * D + d, total, mask=d < D)


def two_leading_axes(x: Tensor) -> tuple[Tensor, tuple[int, int, int, int, int]]:
    """x (..., Q, D) with its leading axes as at most two: (x, (inner size, strides of outer, inner, Q, D)).

    Axes that stride together are joined; x is copied only if three leading axes remain.
    """
    sizes: list[int] = []
    strides: list[int] = []
    for size, stride in zip(x.shape[:-2], x.stride()[:-2], strict=True):
        if size == 1:
            continue
        if strides and strides[-1] == stride * size:
            sizes[-1], strides[-1] = sizes[-1] * size, stride
        else:
            sizes.append(size)
            strides.append(stride)
    if len(sizes) > 2:
        return two_leading_axes(x.contiguous())
    inner, inner_stride = (sizes[-1], strides[-1]) if sizes else (1, 0)
    outer_stride = strides[0] if len(strides) == 2 else inner * inner_stride
    return x, (max(inner, 1), outer_stride, inner_stride, x.stride(-2), x.stride(-1))


TORCH_TYPES = {tl.float32: torch.float32, tl.bfloat16: torch.bfloat16, tl.float16: torch.float16}


def product_types(x: Tensor, codebook: Tensor, precision: str) -> tuple[tl.dtype, str]:
    """Type both factors are cast to, and Triton's input_precision."""
    narrow = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    backend, _ = target()
    if backend == "cpu":
        return tl.float32, "ieee"  # the interpreter's bfloat16 products are wrong, its TF32 is float32
    if x.dtype == codebook.dtype and x.dtype in narrow:
        return narrow[x.dtype], "ieee"
    if precision == "fast":
        return tl.float32, "tf32"
    return (
        tl.float32,
        "ieee" if backend == "hip" else "tf32x3",
    )  # AMD compiles no tf32x3; its matrix unit takes float32 itself


@launcher
def scale_codes(codebook: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes (Q, V, D) as the products take them, in `dtype`, and their half norms (Q, V), as in codes.py.

    float16 keeps its scale: its numbers and their squares are far from float32's ends, and it has no room for another.
    """
    heads, codes, width = codebook.shape
    largest = torch.zeros(heads, dtype=torch.int32, device=codebook.device)
    scaled = torch.empty(codebook.shape, dtype=dtype, device=codebook.device)
    half_norms = torch.empty(heads, codes, dtype=torch.float32, device=codebook.device)
    blocks = {"BLOCK_V": 16, "BLOCK_D": triton.next_power_of_2(width), "num_warps": 4}
    grid = (triton.cdiv(codes, 16), heads)
    moved = dtype != torch.float16
    if moved:
        largest_code_kernel[grid](codebook, largest, codes, width, *codebook.stride(), **blocks)
    scale_codes_kernel[grid](
        codebook, largest, scaled, half_norms, codes, width, *codebook.stride(), SCALE=moved, **blocks
    )
    if TRITON_INTERPRETED:  # NumPy's products round by the place of a column, a matrix unit's do not
        place = torch.arange(codes, device=codebook.device)
        half_norms.masked_fill_(first_equal(codebook.float()) != place, torch.inf)
    return scaled, half_norms


@launcher
def lookup(x: Tensor, codebook: Tensor, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """quantized (..., Q, D), indices (..., Q), distance (..., Q)."""
    heads, codes, width = codebook.shape
    leading = x.shape[:-2]
    rows = leading.numel()
    quantized = torch.empty(x.shape, dtype=codebook.dtype, device=x.device)
    indices = torch.empty(*leading, heads, dtype=torch.int32, device=x.device)
    distance = torch.empty(*leading, heads, dtype=torch.float32, device=x.device)
    if rows == 0:
        return quantized, indices, distance
    x, (inner, *x_strides) = two_leading_axes(x)
    cast, input_precision = product_types(x, codebook, precision)
    scaled, half_norms = scale_codes(codebook, TORCH_TYPES[cast])
    config = choose_config(rows, width, cast, input_precision)
    lookup_kernel[(triton.cdiv(rows, config.block_n), heads)](
        x, codebook, scaled, half_norms, quantized, indices, distance,
        rows, inner, codes, width, heads, *x_strides, *codebook.stride(),
        BLOCK_N=config.block_n, BLOCK_V=config.block_v, BLOCK_D=config.block_d, CAST=cast, PRECISION=input_precision,
        num_warps=config.num_warps, num_stages=config.num_stages,
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


@launcher
def statistics(x: Tensor, indices: Tensor, num_codes: int, deterministic: bool) -> tuple[Tensor, Tensor]:
    """counts (Q, V) and sums (Q, V, D); x (..., Q, D), indices (..., Q)."""
    heads, width = x.shape[-2:]
    rows = x.shape[:-2].numel()
    counts = torch.zeros(heads, num_codes, dtype=torch.float32, device=x.device)
    sums = torch.zeros(heads, num_codes, width, dtype=torch.float32, device=x.device)
    if rows == 0:
        return counts, sums
    indices = indices.contiguous()
    x, (inner, *x_strides) = two_leading_axes(x)
    block_d = triton.next_power_of_2(width)
    if deterministic:
        flat = indices.reshape(rows, heads).long() + torch.arange(heads, device=x.device) * num_codes
        ordered, order = flat.reshape(-1).sort(stable=True)
        edges = torch.searchsorted(ordered, torch.arange(heads * num_codes + 1, device=x.device))
        statistics_sorted_kernel[(num_codes, heads)](
            x, order, edges, counts, sums, inner, num_codes, width, heads, *x_strides,
            BLOCK_N=16, BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip
    else:
        statistics_atomic_kernel[(triton.cdiv(rows, 32), heads)](
            x, indices, counts, sums, rows, inner, num_codes, width, heads, *x_strides,
            BLOCK_N=32, BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip
    return counts, sums
