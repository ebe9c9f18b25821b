# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""The passes over the inputs of slot attention in Triton, forward and backward.

An input is xn = LayerNorm(x) without its affine part, from statistics that one kernel takes once. Up to 128 channels a
pass reads a part of the inputs once (WHOLE): a tile of xn stays on chip from logits over the softmax over slots to the
sums of coefficient times xn. Above it walks twice over its part, in chunks of channels, so that registers hold a chunk
whatever C is, and coefficients pass through memory. Keys, values and normalised inputs are never in memory. The affine
part of the LayerNorm and both projections belong to the slot side (triton_slots.py): with x = w xn + b,
q.x = (q w).xn + q.b, and sums of x follow from sums of xn.

Backward, one pass an iteration makes the attention again and leaves, beside the slot side's partial sums, two
coefficients an input and slot: the gradient of xn is their product with vectors of the slot side, so that one kernel
at the end writes the gradient of the inputs, once for all iterations.

Columns of a tile are slots times heads, slot-major, each padded to a power of two and together to 16, the least that a
matrix instruction takes. Parts of a batch entry are added by the slot side: no atomics, the same bits in every run.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import TRITON_INTERPRETED
from ..elementary import accumulator, all_registers
from ..launch import launcher
from .reference import LAYER_NORM_EPS

PROGRAMS = 264  # two for each of an H100's 132 processors
WHOLE_CHANNELS = 128  # of a tile that stays on chip between logits and sums,
WHOLE_CHANNELS_BACKWARD = 64  # backward 128 spill 584 bytes on sm_90; their second reading comes from the L1 cache
WHOLE_ROWS = 32  # inputs of such a tile
NORM_EPS = tl.constexpr(LAYER_NORM_EPS)


@triton.jit
def statistics_kernel(
    inputs, mean, inverse, N, C, TILES, x_b, x_n, x_c,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(0) // TILES).to(tl.int64)
    n = (tl.program_id(0) % TILES) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = inputs + batch * x_b + n[:, None].to(tl.int64) * x_n
    total = tl.zeros((BLOCK_N,), ACC)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        mask = (n[:, None] < N) & (c[None, :] < C)
        total += tl.sum(tl.load(rows + c[None, :].to(tl.int64) * x_c, mask=mask, other=0.0).to(ACC), 1)
    centre = total / C
    square = tl.zeros((BLOCK_N,), ACC)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        mask = (n[:, None] < N) & (c[None, :] < C)
        x = tl.load(rows + c[None, :].to(tl.int64) * x_c, mask=mask, other=0.0).to(ACC)
        centred = tl.where(mask, x - centre[:, None], 0.0)
        square += tl.sum(centred * centred, 1)
    tl.store(mean + batch * N + n, centre, mask=n < N)
    tl.store(inverse + batch * N + n, 1.0 / tl.sqrt(square / C + NORM_EPS), mask=n < N)


@triton.jit
def normalised(rows, c, valid_n, C, x_c, centre, inverse, ACC: tl.constexpr):
    """LayerNorm without affine part of a tile (rows, channels c)."""
    mask = valid_n[:, None] & (c[None, :] < C)
    x = tl.load(rows[:, None] + c[None, :].to(tl.int64) * x_c, mask=mask, other=0.0).to(ACC)
    return tl.where(mask, (x - centre[:, None]) * inverse[:, None], 0.0)


@triton.jit
def slot_vectors(vectors, row, valid, c, C, stride):
    """Rows of the slot side (columns of the tile, channels c)."""
    return tl.load(vectors + row[:, None] * stride + c[None, :], mask=valid[:, None] & (c[None, :] < C), other=0.0)


@triton.jit
def competition(
    logits, slot, head, S, H,
    BLOCK_N: tl.constexpr, SLOTS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Softmax over slots, a head at a time, of a tile (BLOCK_N, SLOTS * HEADS); something finite in padded heads."""
    logits = tl.where(head[None, :] < H, tl.where(slot[None, :] < S, logits, float("-inf")), 0.0)
    if HEADS == 1:
        raised = tl.exp(logits - tl.max(logits, 1)[:, None])
        return raised / tl.sum(raised, 1)[:, None]
    grouped = tl.reshape(logits, (BLOCK_N, SLOTS, HEADS))
    raised = tl.exp(grouped - tl.max(grouped, 1)[:, None, :])
    return tl.reshape(raised / tl.sum(raised, 1)[:, None, :], (BLOCK_N, SLOTS * HEADS))


@triton.jit
def seen_queries(seen, scale, row, valid, c, C, stride, ACC: tl.constexpr):
    """Queries as xn meets them, with the LayerNorm's scale (columns of the tile, channels c)."""
    query = slot_vectors(seen, row, valid, c, C, stride)
    return query * tl.load(scale + c, mask=c < C, other=0.0).to(ACC)[None, :]


@triton.jit
def sums_by_chunks(
    inputs, mean, inverse, coefficients, target, batch, part, own, row, valid, N, C, PARTS, x_b, x_n, x_c,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, SLOTS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Second walk over a part: sums over its inputs of stored coefficients times xn, a chunk of channels at a time."""
    for start_c in range(0, C, BLOCK_C):
        c = start_c + tl.arange(0, BLOCK_C)
        total = tl.zeros((SLOTS * HEADS, BLOCK_C), ACC)
        for start in range(part * BLOCK_N, N, PARTS * BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            rows = inputs + batch * x_b + n.to(tl.int64) * x_n
            centre = tl.load(mean + batch * N + n, mask=n < N, other=0.0)
            spread = tl.load(inverse + batch * N + n, mask=n < N, other=0.0)
            xn = normalised(rows, c, n < N, C, x_c, centre, spread, ACC)
            at = row[:, None] * N + n[None, :]
            weight = tl.load(coefficients + at, mask=valid[:, None] & (n[None, :] < N), other=0.0)
            total = tl.dot(weight, xn, total, input_precision=PRECISION, out_dtype=ACC)
        tl.store(target + own[:, None] * C + c[None, :], total, mask=valid[:, None] & (c[None, :] < C))


@triton.jit
def attend_kernel(
    inputs, mean, inverse, seen, scale, offset, mask, weights, sums, totals, attention,
    N, S, C, H, eps, PARTS, x_b, x_n, x_c, m_b, m_n, seen_stride, offset_stride,
    MASKED: tl.constexpr, ATTENTION: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, SLOTS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0) % PARTS
    batch = (tl.program_id(0) // PARTS).to(tl.int64)
    column = tl.arange(0, SLOTS * HEADS)
    slot, head = column // HEADS, column % HEADS
    valid = (slot < S) & (head < H)
    row = batch * S * H + slot * H + head
    shift = tl.load(offset + row * offset_stride, mask=valid, other=0.0)
    denominator = tl.zeros((SLOTS * HEADS,), ACC)
    channel = tl.arange(0, BLOCK_C)  # all of them, if WHOLE
    all_queries = seen_queries(seen, scale, row, valid, channel, C, seen_stride, ACC)
    numerator = tl.zeros((SLOTS * HEADS, BLOCK_C), ACC)
    for start in range(part * BLOCK_N, N, PARTS * BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        rows = inputs + batch * x_b + n.to(tl.int64) * x_n
        centre = tl.load(mean + batch * N + n, mask=n < N, other=0.0)
        spread = tl.load(inverse + batch * N + n, mask=n < N, other=0.0)
        logits = tl.zeros((BLOCK_N, SLOTS * HEADS), ACC)
        xn = normalised(rows, channel, n < N, C, x_c, centre, spread, ACC)
        if WHOLE:
            logits = tl.dot(xn, tl.trans(all_queries), logits, input_precision=PRECISION, out_dtype=ACC)
        else:
            for start_c in range(0, C, BLOCK_C):
                c = start_c + channel
                chunk = normalised(rows, c, n < N, C, x_c, centre, spread, ACC)
                query = seen_queries(seen, scale, row, valid, c, C, seen_stride, ACC)
                logits = tl.dot(chunk, tl.trans(query), logits, input_precision=PRECISION, out_dtype=ACC)
        share = competition(logits + shift[None, :], slot, head, S, H, BLOCK_N, SLOTS, HEADS)
        present = (n[:, None] < N) & valid[None, :]
        if ATTENTION:
            if HEADS == 1:
                at = (batch * S + slot[None, :]) * N + n[:, None]
                tl.store(attention + at, share, mask=present)
            else:
                of_heads = tl.sum(tl.reshape(tl.where(present, share, 0.0), (BLOCK_N, SLOTS, HEADS)), 2) / H
                s = tl.arange(0, SLOTS)
                at = (batch * S + s[None, :]) * N + n[:, None]
                tl.store(attention + at, of_heads, mask=(n[:, None] < N) & (s[None, :] < S))
        if MASKED:
            present = present & (tl.load(mask + batch * m_b + n * m_n, mask=n < N, other=0) != 0)[:, None]
        weight = tl.where(present, share + eps, 0.0)
        denominator += tl.sum(weight, 0)
        if WHOLE:
            numerator = tl.dot(tl.trans(weight), xn, numerator, input_precision=PRECISION, out_dtype=ACC)
        else:
            tl.store(weights + row[None, :] * N + n[:, None], weight, mask=(n[:, None] < N) & valid[None, :])
    own = (batch * PARTS + part) * S * H + slot * H + head
    tl.store(totals + own, denominator, mask=valid)
    if WHOLE:
        at = own[:, None] * C + channel[None, :]
        tl.store(sums + at, numerator, mask=valid[:, None] & (channel[None, :] < C))
    else:
        tl.debug_barrier()  # other threads of this program wrote the weights
        sums_by_chunks(
            inputs, mean, inverse, weights, sums, batch, part, own, row, valid, N, C, PARTS, x_b, x_n, x_c,
            PRECISION, ACC, BLOCK_N, BLOCK_C, SLOTS, HEADS,
        )  # fmt: skip


# along, flat (B, N): sums over channels of (gradient of xn) * xn and of that gradient, added up over iterations
@triton.jit
def attend_backward_kernel(
    inputs, mean, inverse, seen, scale, offset, mask, push, push_total, g_attention,
    weights, in_logits, along, flat, g_seen, g_offset,
    N, S, C, H, eps, PARTS, x_b, x_n, x_c, m_b, m_n, a_b, a_s, a_n, seen_stride, offset_stride, push_stride,
    MASKED: tl.constexpr, ATTENTION: tl.constexpr, FIRST: tl.constexpr, WHOLE: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, SLOTS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0) % PARTS
    batch = (tl.program_id(0) // PARTS).to(tl.int64)
    column = tl.arange(0, SLOTS * HEADS)
    slot, head = column // HEADS, column % HEADS
    valid = (slot < S) & (head < H)
    row = batch * S * H + slot * H + head
    shift = tl.load(offset + row * offset_stride, mask=valid, other=0.0)
    pushed = tl.load(push_total + row * offset_stride, mask=valid, other=0.0)
    in_offset = tl.zeros((SLOTS * HEADS,), ACC)
    channel = tl.arange(0, BLOCK_C)  # all of them, if WHOLE
    all_queries = seen_queries(seen, scale, row, valid, channel, C, seen_stride, ACC)
    directions = slot_vectors(push, row, valid, channel, C, push_stride)
    in_seen = tl.zeros((SLOTS * HEADS, BLOCK_C), ACC)
    for start in range(part * BLOCK_N, N, PARTS * BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        rows = inputs + batch * x_b + n.to(tl.int64) * x_n
        centre = tl.load(mean + batch * N + n, mask=n < N, other=0.0)
        spread = tl.load(inverse + batch * N + n, mask=n < N, other=0.0)
        products = tl.zeros((BLOCK_N, SLOTS * HEADS), ACC)  # with the queries
        pushes = tl.zeros((BLOCK_N, SLOTS * HEADS), ACC)  # with the gradients of the sums
        query_sum = tl.zeros((SLOTS * HEADS,), ACC)
        push_sum = tl.zeros((SLOTS * HEADS,), ACC)
        xn = normalised(rows, channel, n < N, C, x_c, centre, spread, ACC)
        if WHOLE:
            products = tl.dot(xn, tl.trans(all_queries), products, input_precision=PRECISION, out_dtype=ACC)
            query_sum = tl.sum(all_queries, 1)
            pushes = tl.dot(xn, tl.trans(directions), pushes, input_precision=PRECISION, out_dtype=ACC)
            push_sum = tl.sum(directions, 1)
        else:
            for start_c in range(0, C, BLOCK_C):
                c = start_c + channel
                chunk = normalised(rows, c, n < N, C, x_c, centre, spread, ACC)
                query = seen_queries(seen, scale, row, valid, c, C, seen_stride, ACC)
                products = tl.dot(chunk, tl.trans(query), products, input_precision=PRECISION, out_dtype=ACC)
                query_sum += tl.sum(query, 1)
                direction = slot_vectors(push, row, valid, c, C, push_stride)
                pushes = tl.dot(chunk, tl.trans(direction), pushes, input_precision=PRECISION, out_dtype=ACC)
                push_sum += tl.sum(direction, 1)
        share = competition(products + shift[None, :], slot, head, S, H, BLOCK_N, SLOTS, HEADS)
        present = (n[:, None] < N) & valid[None, :]
        counted = present
        if MASKED:
            counted = present & (tl.load(mask + batch * m_b + n * m_n, mask=n < N, other=0) != 0)[:, None]
        in_share = tl.where(counted, pushes + pushed[None, :], 0.0)
        if ATTENTION:
            at = batch * a_b + slot[None, :].to(tl.int64) * a_s + n[:, None].to(tl.int64) * a_n
            in_share += tl.load(g_attention + at, mask=present, other=0.0).to(ACC) / H
        share = tl.where(present, share, 0.0)
        agreed = share * in_share
        if HEADS == 1:
            in_logit = agreed - share * tl.sum(agreed, 1)[:, None]
        else:
            of_head = tl.sum(tl.reshape(agreed, (BLOCK_N, SLOTS, HEADS)), 1)[:, None, :]
            in_logit = agreed - tl.reshape(
                tl.reshape(share, (BLOCK_N, SLOTS, HEADS)) * of_head, (BLOCK_N, SLOTS * HEADS)
            )
        weight = tl.where(counted, share + eps, 0.0)
        at = row[None, :] * N + n[:, None]
        tl.store(weights + at, weight, mask=present)
        tl.store(in_logits + at, in_logit, mask=present)
        in_offset += tl.sum(in_logit, 0)
        if WHOLE:
            in_seen = tl.dot(tl.trans(in_logit), xn, in_seen, input_precision=PRECISION, out_dtype=ACC)
        lengths = tl.sum(weight * pushes + in_logit * products, 1)
        levels = tl.sum(weight * push_sum[None, :] + in_logit * query_sum[None, :], 1)
        if not FIRST:
            lengths += tl.load(along + batch * N + n, mask=n < N, other=0.0)
            levels += tl.load(flat + batch * N + n, mask=n < N, other=0.0)
            tl.debug_barrier()  # every thread has read before one writes
        tl.store(along + batch * N + n, lengths, mask=n < N)
        tl.store(flat + batch * N + n, levels, mask=n < N)
    own = (batch * PARTS + part) * S * H + slot * H + head
    tl.store(g_offset + own, in_offset, mask=valid)
    if WHOLE:
        at = own[:, None] * C + channel[None, :]
        tl.store(g_seen + at, in_seen, mask=valid[:, None] & (channel[None, :] < C))
    else:
        tl.debug_barrier()  # other threads of this program wrote the gradients of the logits
        sums_by_chunks(
            inputs, mean, inverse, in_logits, g_seen, batch, part, own, row, valid, N, C, PARTS, x_b, x_n, x_c,
            PRECISION, ACC, BLOCK_N, BLOCK_C, SLOTS, HEADS,
        )  # fmt: skip


@triton.jit
def input_gradient_kernel(
    inputs, mean, inverse, seen, scale, push, weights, in_logits, along, flat, g_inputs,
    ITERATIONS, N, S, C, H, TILES, CHUNKS, x_b, x_n, x_c, seen_stride, push_stride, seen_step, push_step, weight_step,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, SLOTS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    batch = (program // (TILES * CHUNKS)).to(tl.int64)
    n = (program // CHUNKS) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    c = program % CHUNKS * BLOCK_C + tl.arange(0, BLOCK_C)
    column = tl.arange(0, SLOTS * HEADS)
    slot, head = column // HEADS, column % HEADS
    valid = (slot < S) & (head < H)
    row = batch * S * H + slot * H + head
    present = (n[:, None] < N) & valid[None, :]
    factor = tl.load(scale + c, mask=c < C, other=0.0).to(ACC)
    in_xn = tl.zeros((BLOCK_N, BLOCK_C), ACC)
    for iteration in range(ITERATIONS):
        step = tl.zeros((), tl.int64) + iteration
        at = step * weight_step + row[None, :] * N + n[:, None]
        weight = tl.load(weights + at, mask=present, other=0.0)
        direction = slot_vectors(push + step * push_step, row, valid, c, C, push_stride)
        in_xn = tl.dot(weight, direction, in_xn, input_precision=PRECISION, out_dtype=ACC)
        in_logit = tl.load(in_logits + at, mask=present, other=0.0)
        query = slot_vectors(seen + step * seen_step, row, valid, c, C, seen_stride) * factor[None, :]
        in_xn = tl.dot(in_logit, query, in_xn, input_precision=PRECISION, out_dtype=ACC)
    centre = tl.load(mean + batch * N + n, mask=n < N, other=0.0)
    spread = tl.load(inverse + batch * N + n, mask=n < N, other=0.0)
    xn = normalised(inputs + batch * x_b + n.to(tl.int64) * x_n, c, n < N, C, x_c, centre, spread, ACC)
    length = tl.load(along + batch * N + n, mask=n < N, other=0.0) / C
    level = tl.load(flat + batch * N + n, mask=n < N, other=0.0) / C
    in_x = spread[:, None] * (in_xn - level[:, None] - xn * length[:, None])
    at = (batch * N + n[:, None].to(tl.int64)) * C + c[None, :]
    tl.store(g_inputs + at, in_x, mask=(n[:, None] < N) & (c[None, :] < C))


class Layout(NamedTuple):
    """Sizes of a call, how the inputs are split, and compile-time arguments that all passes share."""

    batch: int
    inputs: int
    slots: int
    channels: int
    heads: int
    tiles: int  # of BLOCK_N inputs in a batch entry
    parts: int  # programs a batch entry
    options: dict[str, object]  # of all kernels
    attend: dict[str, object]  # of the pass forward, in place of those
    attend_backward: dict[str, object]


def product_precision(dtype: torch.dtype) -> str:
    """Triton's input_precision: float32 inputs as three TF32 products (full float32 on AMD), half inputs as one."""
    if TRITON_INTERPRETED:
        return "ieee"
    if triton.runtime.driver.active.get_current_target().backend == "hip":
        return "ieee"
    return "tf32x3" if dtype == torch.float32 else "tf32"


def prefetches() -> bool:
    """Whether this is an NVIDIA device of the Hopper generation, the one whose registers and machine code decided."""
    if TRITON_INTERPRETED:
        return False
    current = triton.runtime.driver.active.get_current_target()
    return bool(current.backend == "cuda" and 90 <= current.arch < 100)


def plan(inputs: Tensor, slots: int, heads: int, dtype: torch.dtype) -> Layout:
    """Tiles by the compiler's registers (bench/results/ahead-of-time.md); timed on an H100, but nothing else was."""
    batch, count, channels = inputs.shape
    padded_heads = triton.next_power_of_2(heads)
    padded_slots = max(triton.next_power_of_2(slots), 16 // padded_heads)
    # with several heads 32 columns spill up to 88 bytes backward on sm_80 and sm_100, with 64 everything does: op.py
    rows = 64
    tiles = triton.cdiv(count, rows)
    padded = max(16, triton.next_power_of_2(channels))
    options = {
        "PRECISION": product_precision(inputs.dtype),
        "ACC": accumulator(dtype),
        "BLOCK_N": rows,
        "BLOCK_C": min(32, padded),
        "SLOTS": padded_slots,
        "HEADS": padded_heads,
        "num_warps": 4,
        "num_stages": 1,
        **all_registers(),
    }
    attend = [
        {**options, "WHOLE": True, "BLOCK_C": padded, "BLOCK_N": WHOLE_ROWS}
        if padded <= channels_on_chip and padded_slots * padded_heads == 16
        else {**options, "WHOLE": False}
        for channels_on_chip in (WHOLE_CHANNELS, WHOLE_CHANNELS_BACKWARD)
    ]
    parts = min(max(1, PROGRAMS // batch), tiles)
    return Layout(batch, count, slots, channels, heads, tiles, parts, options, *attend)


@launcher
def statistics(inputs: Tensor, layout: Layout, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of every input, (B, N)."""
    mean, inverse = (torch.empty(layout.batch, layout.inputs, dtype=dtype, device=inputs.device) for _ in range(2))
    shared = {name: layout.options[name] for name in ("ACC", "BLOCK_N", "BLOCK_C", "num_warps")}
    statistics_kernel[(layout.batch * layout.tiles,)](
        inputs, mean, inverse, layout.inputs, layout.channels, layout.tiles, *inputs.stride(), **shared
    )
    return mean, inverse


@launcher
def input_gradient(
    inputs: Tensor,
    norms: Sequence[Tensor],
    wide: Tensor,
    scale: Tensor,
    g_sums: Tensor,
    coefficients: Tensor,
    sums: Sequence[Tensor],
    g_inputs: Tensor,
    layout: Layout,
) -> None:
    """Fill the gradient of the inputs from what the passes of all iterations left.

    Args:
        inputs: (B, N, C).
        norms: mean and 1 / standard deviation, (B, N).
        wide: (iterations, B S H, 3 C), seen queries first.
        scale: (C,) of the LayerNorm.
        g_sums: (iterations, B S H, .) gradients of the sums first, a view into (iterations, B S H, 4 C).
        coefficients: (2, iterations, B S H, N), weights and gradients of logits.
        sums: along and flat, (B, N).
        g_inputs: (B, N, C), contiguous.
        layout: of the call.
    """
    chunks = triton.cdiv(layout.channels, layout.options["BLOCK_C"])
    input_gradient_kernel[(layout.batch * layout.tiles * chunks,)](
        inputs, *norms, wide, scale, g_sums, *coefficients, *sums, g_inputs,
        len(wide), layout.inputs, layout.slots, layout.channels, layout.heads,
        layout.tiles, chunks, *inputs.stride(), wide.stride(1), g_sums.stride(1),
        wide.stride(0), g_sums.stride(0), coefficients.stride(1), **layout.options,
    )  # fmt: skip
