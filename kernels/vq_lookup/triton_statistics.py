# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""Rows and sums per code in Triton: by atomics, or sorted by code and added in one order.

Sorted, a code is one program's, which adds its rows in ascending order. A code that many rows chose would keep that
program busy long after all others are done, so blocks of SEGMENT sorted rows that belong to one code altogether are
added by programs of their own first, and the code's program takes their sums.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launcher

SEGMENT = 256  # sorted rows whose sum is one program's, if they are of one code


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
def add_sorted_rows(
    total, x, order, first, last, head, INNER, D, Q, x_outer, x_inner, x_q, x_d,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """total (BLOCK_D,) and the rows at sorted places first to last, in this order."""
    d = tl.arange(0, BLOCK_D)
    for start in range(first, last, BLOCK_N):
        position = start + tl.arange(0, BLOCK_N)
        row_mask = position < last
        n = tl.load(order + position, mask=row_mask, other=0) // Q  # order counts (row, head)
        rows = x + head * x_q + (n // INNER) * x_outer + (n % INNER) * x_inner
        mask = row_mask[:, None] & (d[None, :] < D)
        value = tl.load(rows[:, None] + d[None, :].to(tl.int64) * x_d, mask=mask, other=0.0)
        total += tl.sum(value.to(tl.float32), 0)
    return total


@triton.jit
def segments_kernel(
    x, order, ordered, partial, TOTAL, INNER, V, D, Q, x_outer, x_inner, x_q, x_d,
    SEGMENT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    segment = tl.program_id(0).to(tl.int64)
    first = segment * SEGMENT
    last = first + SEGMENT
    if last <= TOTAL:
        code = tl.load(ordered + first)
        if code == tl.load(ordered + last - 1):
            d = tl.arange(0, BLOCK_D)
            total = add_sorted_rows(
                tl.zeros((BLOCK_D,), tl.float32), x, order, first, last, code // V,
                INNER, D, Q, x_outer, x_inner, x_q, x_d, BLOCK_N, BLOCK_D,
            )  # fmt: skip
            tl.store(partial + segment * D + d, total, mask=d < D)


@triton.jit
def statistics_sorted_kernel(
    x, order, edges, partial, counts, sums, INNER, V, D, Q, x_outer, x_inner, x_q, x_d,
    SEGMENT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # one program owns one code of one head: rows before its first whole segment, segments, rows after the last
    head = tl.program_id(1).to(tl.int64)
    code = head * V + tl.program_id(0)
    first = tl.load(edges + code)
    last = tl.load(edges + code + 1)
    first_segment = (first + SEGMENT - 1) // SEGMENT
    last_segment = last // SEGMENT
    whole = last_segment > first_segment
    before = tl.where(whole, first_segment * SEGMENT, last)
    after = tl.where(whole, last_segment * SEGMENT, last)
    d = tl.arange(0, BLOCK_D)
    total = add_sorted_rows(
        tl.zeros((BLOCK_D,), tl.float32), x, order, first, before, head,
        INNER, D, Q, x_outer, x_inner, x_q, x_d, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    for start in range(first_segment, last_segment, BLOCK_N):
        segment = start + tl.arange(0, BLOCK_N)
        mask = (segment[:, None] < last_segment) & (d[None, :] < D)
        total += tl.sum(tl.load(partial + segment[:, None] * D + d[None, :], mask=mask, other=0.0), 0)
    total = add_sorted_rows(
        total, x, order, after, last, head, INNER, D, Q, x_outer, x_inner, x_q, x_d, BLOCK_N, BLOCK_D
    )
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
    if not deterministic:
        statistics_atomic_kernel[(triton.cdiv(rows, 32), heads)](
            x, indices, counts, sums, rows, inner, num_codes, width, heads, *x_strides,
            BLOCK_N=32, BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip
        return counts, sums
    total = rows * heads
    flat = indices.reshape(rows, heads).long() + torch.arange(heads, device=x.device) * num_codes
    ordered, order = flat.reshape(-1).sort(stable=True)
    edges = torch.searchsorted(ordered, torch.arange(heads * num_codes + 1, device=x.device))
    partial = torch.empty(total // SEGMENT, width, dtype=torch.float32, device=x.device)
    sizes = {"SEGMENT": SEGMENT, "BLOCK_N": 16, "BLOCK_D": block_d, "num_warps": 4}
    if len(partial):
        segments_kernel[(len(partial),)](
            x, order, ordered, partial, total, inner, num_codes, width, heads, *x_strides, **sizes
        )
    statistics_sorted_kernel[(num_codes, heads)](
        x, order, edges, partial, counts, sums, inner, num_codes, width, heads, *x_strides, **sizes
    )
    return counts, sums
