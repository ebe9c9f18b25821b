# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""The pass over the inputs of slot attention in Triton, forward and backward.

One reading of the inputs per iteration does LayerNorm, logits, the softmax over slots, and the weighted sums: keys,
values, normalised inputs and logits are never in memory. The affine part of the LayerNorm and both projections belong
to the slot side (eager.py): with x = w * xn + b, q.x = (q * w).xn + q.b, and sums of x follow from sums of xn.

Programs are (part of the inputs, batch); each keeps its slots' sums in registers over its tiles and writes them once;
the parts are added outside. Slots are padded to 16, the least a matrix instruction takes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import TRITON_INTERPRETED
from ..elementary import all_registers
from .reference import LAYER_NORM_EPS

PROGRAMS = 264  # two for each of an H100's 132 processors
NORM_EPS = tl.constexpr(LAYER_NORM_EPS)


@triton.jit
def normalised_tile(inputs, batch, n, c, N, C, x_b, x_n, x_c):
    """LayerNorm without affine of a tile of rows, and 1 / standard deviation."""
    mask = (n[:, None] < N) & (c[None, :] < C)
    at = batch * x_b + n[:, None].to(tl.int64) * x_n + c[None, :].to(tl.int64) * x_c
    x = tl.load(inputs + at, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / C
    centred = tl.where(mask, x - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / C + NORM_EPS)
    return centred * inverse[:, None], inverse, mask


@triton.jit
def competition(xn, seen, offset, slot, S, PRECISION: tl.constexpr):
    """Softmax over slots of a tile, (BLOCK_N, BLOCK_S); 0 for the padding."""
    logits = tl.dot(xn, tl.trans(seen), input_precision=PRECISION) + offset[None, :]
    logits = tl.where(slot[None, :] < S, logits, float("-inf"))
    raised = tl.exp(logits - tl.max(logits, 1)[:, None])
    return raised / tl.sum(raised, 1)[:, None]


@triton.jit
def attend_kernel(
    inputs, seen, offset, mask, sums, totals, attention, N, S, C, eps, PARTS, x_b, x_n, x_c,
    MASKED: tl.constexpr, ATTENTION: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    slot = tl.arange(0, BLOCK_S)
    c = tl.arange(0, BLOCK_C)
    tile = (slot[:, None] < S) & (c[None, :] < C)
    query = tl.load(seen + (batch * S + slot[:, None]) * C + c[None, :], mask=tile, other=0.0)
    shift = tl.load(offset + batch * S + slot, mask=slot < S, other=0.0)
    numerator = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    denominator = tl.zeros((BLOCK_S,), tl.float32)
    for start in range(part * BLOCK_N, N, PARTS * BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        xn, _, _ = normalised_tile(inputs, batch, n, c, N, C, x_b, x_n, x_c)
        share = competition(xn, query, shift, slot, S, PRECISION)
        present = (n[:, None] < N) & (slot[None, :] < S)
        if ATTENTION:
            tl.store(attention + (batch * S + slot[None, :]) * N + n[:, None], share, mask=present)
        if MASKED:
            present = present & (tl.load(mask + batch * N + n, mask=n < N, other=0) != 0)[:, None]
        weight = tl.where(present, share + eps, 0.0)
        numerator = tl.dot(tl.trans(weight), xn, numerator, input_precision=PRECISION)
        denominator += tl.sum(weight, 0)
    own = (batch * PARTS + part) * S + slot
    tl.store(sums + own[:, None] * C + c[None, :], numerator, mask=tile)
    tl.store(totals + own, denominator, mask=slot < S)


@triton.jit
def attend_backward_kernel(
    inputs, seen, offset, mask, g_sums, g_totals, g_attention, g_inputs, g_seen, g_offset,
    N, S, C, eps, PARTS, x_b, x_n, x_c,
    MASKED: tl.constexpr, ATTENTION: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    slot = tl.arange(0, BLOCK_S)
    c = tl.arange(0, BLOCK_C)
    tile = (slot[:, None] < S) & (c[None, :] < C)
    row = batch * S + slot
    query = tl.load(seen + row[:, None] * C + c[None, :], mask=tile, other=0.0)
    shift = tl.load(offset + row, mask=slot < S, other=0.0)
    push = tl.load(g_sums + row[:, None] * C + c[None, :], mask=tile, other=0.0)
    push_total = tl.load(g_totals + row, mask=slot < S, other=0.0)
    in_seen = tl.zeros((BLOCK_S, BLOCK_C), tl.float32)
    in_offset = tl.zeros((BLOCK_S,), tl.float32)
    for start in range(part * BLOCK_N, N, PARTS * BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        xn, inverse, valid = normalised_tile(inputs, batch, n, c, N, C, x_b, x_n, x_c)
        share = competition(xn, query, shift, slot, S, PRECISION)
        present = (n[:, None] < N) & (slot[None, :] < S)
        counted = present
        if MASKED:
            counted = present & (tl.load(mask + batch * N + n, mask=n < N, other=0) != 0)[:, None]
        in_share = tl.dot(xn, tl.trans(push), input_precision=PRECISION) + push_total[None, :]
        in_share = tl.where(counted, in_share, 0.0)
        if ATTENTION:
            in_share += tl.load(g_attention + row[None, :] * N + n[:, None], mask=present, other=0.0)
        in_logits = share * (in_share - tl.sum(share * in_share, 1)[:, None])
        in_logits = tl.where(present, in_logits, 0.0)
        weight = tl.where(counted, share + eps, 0.0)
        in_seen = tl.dot(tl.trans(in_logits), xn, in_seen, input_precision=PRECISION)
        in_offset += tl.sum(in_logits, 0)
        in_xn = tl.dot(weight, push, input_precision=PRECISION)
        in_xn = tl.dot(in_logits, query, in_xn, input_precision=PRECISION)
        in_xn = tl.where(valid, in_xn, 0.0)
        along = tl.sum(in_xn * xn, 1) / C
        in_x = inverse[:, None] * (in_xn - (tl.sum(in_xn, 1) / C)[:, None] - xn * along[:, None])
        at = (batch * N + n[:, None].to(tl.int64)) * C + c[None, :]
        tl.store(g_inputs + at, in_x, mask=valid)
    own = (batch * PARTS + part) * S + slot
    tl.store(g_seen + own[:, None] * C + c[None, :], in_seen, mask=tile)
    tl.store(g_offset + own, in_offset, mask=slot < S)


def _common(inputs: Tensor, slots: int, mask: Tensor | None, backward: bool) -> tuple[int, dict[str, object]]:
    """Parts of the inputs that a batch entry is split into, and compile-time arguments.

    Rows of a tile and warps are those that spill nothing on sm_80, sm_90, sm_100 and gfx942 up to 16 slots x 128
    channels and 32 x 64, the limits of op.py: tf32x3 keeps its factors twice. With a mask 16 x 128 spills 24 bytes on
    sm_100; backward at 16 x 128 with 4 warps 24 bytes; 16 x 256 600 bytes to 4.6 kB with any of 4, 8 or 16.
    """
    batch, count, channels = inputs.shape
    on_amd = not TRITON_INTERPRETED and triton.runtime.driver.active.get_current_target().backend == "hip"
    exact = "ieee" if on_amd or TRITON_INTERPRETED else "tf32x3"
    rows = 16  # of a tile
    options = {
        "MASKED": mask is not None,
        "PRECISION": exact if inputs.dtype == torch.float32 else "ieee" if TRITON_INTERPRETED else "tf32",
        "BLOCK_N": rows,
        "BLOCK_S": max(16, triton.next_power_of_2(slots)),
        "BLOCK_C": max(16, triton.next_power_of_2(channels)),
        "num_warps": 8 if backward and channels > 64 else 4,
        "num_stages": 1,
        **all_registers(),
    }
    return min(max(1, PROGRAMS // max(batch, 1)), triton.cdiv(count, rows)), options


def attend(
    inputs: Tensor, seen: Tensor, offset: Tensor, mask: Tensor | None, eps: float, want_attention: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums (B, S, C) of coefficient times normalised input, totals (B, S), attention (B, S, N) or nothing."""
    batch, count, channels = inputs.shape
    slots = seen.shape[1]
    parts, options = _common(inputs, slots, mask, backward=False)
    new = {"dtype": torch.float32, "device": inputs.device}
    sums = torch.empty((batch, parts, slots, channels), **new)  # type: ignore[call-overload]
    totals = torch.empty((batch, parts, slots), **new)  # type: ignore[call-overload]
    attention = torch.empty((batch, slots, count) if want_attention else 0, **new)  # type: ignore[call-overload]
    if batch:
        attend_kernel[(parts, batch)](
            inputs, seen.float().contiguous(), offset.float().contiguous(), seen if mask is None else mask.contiguous(),
            sums, totals, attention, count, slots, channels, eps, parts, *inputs.stride(),
            ATTENTION=want_attention, **options,
        )  # fmt: skip
    return sums.sum(1), totals.sum(1), attention


def attend_backward(
    g_sums: Tensor,
    g_totals: Tensor,
    g_attention: Tensor | None,
    inputs: Tensor,
    seen: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of inputs (B, N, C), seen (B, S, C) and offset (B, S)."""
    batch, count, channels = inputs.shape
    slots = seen.shape[1]
    parts, options = _common(inputs, slots, mask, backward=True)
    g_inputs = torch.empty(inputs.shape, dtype=inputs.dtype, device=inputs.device)
    g_seen = torch.empty(batch, parts, slots, channels, dtype=torch.float32, device=inputs.device)
    g_offset = torch.empty(batch, parts, slots, dtype=torch.float32, device=inputs.device)
    if batch:
        attend_backward_kernel[(parts, batch)](
            inputs, seen.float().contiguous(), offset.float().contiguous(), seen if mask is None else mask.contiguous(),
            g_sums.float().contiguous(), g_totals.float().contiguous(),
            seen if g_attention is None else g_attention.float().contiguous(),
            g_inputs, g_seen, g_offset, count, slots, channels, eps, parts, *inputs.stride(),
            ATTENTION=g_attention is not None, **options,
        )  # fmt: skip
    return g_inputs, g_seen.sum(1), g_offset.sum(1)
