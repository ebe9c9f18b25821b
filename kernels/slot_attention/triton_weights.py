# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""All weights' gradients of slot attention from its workspaces: one launch, a sum and a copy. One head.

As products and sums of PyTorch they are some forty launches, which take longer than anything else where slots are
small. A program takes a tile of one product over a part of the rows; the bias is the sum of the product's left side and
rides along. Parts are added afterwards: no atomics, the same bits in every run.
"""

from collections.abc import Collection

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..elementary import accumulator, all_registers
from ..launch import launcher
from .triton import prefetches, product_precision
from .triton_entry import read, unit_rows

JOBS = 10  # seven products and three LayerNorms
FUSED_WIDTH = 256  # of C and D: a LayerNorm's rows are whole
PART_ROWS = 128  # rows a program walks over,
PARTS = 32  # but no more parts than these
BLOCK_ROWS = 32


@triton.jit
def norms_job(
    rows, wide, g_rows, g_wide, g_scalars, target, job, start, end, D, C, F,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Scale and shift of a LayerNorm: of the slots (7), before the MLP (8), of the inputs (9)."""
    o = tl.arange(0, BLOCK_W)
    of_scale = tl.zeros((BLOCK_W,), ACC)
    of_shift = tl.zeros((BLOCK_W,), ACC)
    for first in range(start, end, BLOCK_R):
        r = (first + tl.arange(0, BLOCK_R)).to(tl.int64)
        valid = r < end
        if job == 9:
            moved = read(g_wide, r * 4 * C + 3 * C, valid, o, C)
            seen = read(wide, r * 3 * C, valid, o, C)
            offset = tl.load(g_scalars + r * 2, mask=valid, other=0.0)
            of_scale += tl.sum(moved * read(wide, r * 3 * C + C, valid, o, C), 0)
            of_scale += tl.sum(read(g_wide, r * 4 * C, valid, o, C) * seen, 0)
            of_shift += tl.sum(moved + offset[:, None] * seen, 0)
        else:
            after = job == 8
            unit, _ = unit_rows(read(rows, r * (10 * D + 2 * F) + after * 8 * D, valid, o, D), o, D)
            pull = read(g_rows, r * (9 * D + F) + D + after * 7 * D, valid, o, D)
            of_scale += tl.sum(unit * pull, 0)
            of_shift += tl.sum(pull, 0)
    width = tl.where(job == 9, C, D)
    tl.store(target + o, of_scale, mask=o < width)
    tl.store(target + width + o, of_shift, mask=o < width)


@triton.jit(do_not_specialize=["WANTED"])
def weights_kernel(
    rows, wide, g_rows, g_wide, g_scalars, partial, TOTAL, ROWS, STEP, PART, D, C, F, WANTED,
    PRECISION: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    # STEP: rows of an iteration. A job writes its product (I, J), then the sum of its left side (I): see `sizes`;
    # those without a bit in WANTED end here
    tile, job, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if (WANTED >> job) & 1 == 0:
        return
    start, end = part * PART, tl.minimum(part * PART + PART, ROWS)
    row_width, g_width = 10 * D + 2 * F, 9 * D + F
    # the job's place in the order of `sizes`
    skip = tl.where(job > 0, D * D + D, 0) + tl.where(job > 1, D * C + D, 0) + tl.where(job > 2, D * C + D, 0)
    skip += tl.where(job > 3, 3 * D * D + 3 * D, 0) + tl.where(job > 4, 3 * D * D + 3 * D, 0)
    skip += tl.where(job > 5, F * D + F, 0) + tl.where(job > 6, D * F + D, 0)
    skip += tl.where(job > 7, 2 * D, 0) + tl.where(job > 8, 2 * D, 0)
    target = partial + part * TOTAL + skip
    if job >= 7:
        if tile == 0:
            norms_job(
                rows, wide, g_rows, g_wide, g_scalars, target, job, start, end, D, C, F, ACC, BLOCK_R, BLOCK_W
            )  # fmt: skip
    else:
        # query, key, value, gates by updates, gates by slots, MLP in, MLP out
        of_gates = (job == 3) | (job == 4)
        I = tl.where(of_gates, 3 * D, tl.where(job == 5, F, D))  # noqa: E741
        J = tl.where((job == 1) | (job == 2), C, tl.where(job == 6, F, D))
        columns = tl.cdiv(J, BLOCK)
        if tile < tl.cdiv(I, BLOCK) * columns:
            i = tile // columns * BLOCK + tl.arange(0, BLOCK)
            j = tile % columns * BLOCK + tl.arange(0, BLOCK)
            left_column = tl.where(job < 2, 2 * D, tl.where(job == 2, 3 * D, tl.where(job == 5, 9 * D, 4 * D)))
            left_column = tl.where(job == 6, STEP * g_width, left_column)  # slots of the next iteration
            left = left_column + i + tl.where((job == 4) & (i >= 2 * D), D, 0)  # the state's share of the candidate
            right_column = tl.where(job == 0, D, tl.where(job == 1, C, tl.where(job == 2, 2 * C, 0)))
            right_column = tl.where(job == 3, 3 * D, tl.where(job == 5, 9 * D, right_column))
            right = tl.where(job == 6, 10 * D + F, right_column) + j
            result = tl.zeros((BLOCK, BLOCK), ACC)
            bias = tl.zeros((BLOCK,), ACC)
            for first in range(start, end, BLOCK_R):
                r = (first + tl.arange(0, BLOCK_R)).to(tl.int64)
                valid = r < end
                take = valid[:, None] & (i[None, :] < I)
                at = r[:, None] * g_width + left[None, :]
                a = tl.load(g_rows + at, mask=take & (job != 1), other=0.0)
                at = r[:, None] * row_width + left[None, :]
                a += tl.load(rows + at, mask=take & (job == 1), other=0.0)  # queries
                take = valid[:, None] & (j[None, :] < J)
                at = r[:, None] * row_width + right[None, :]
                b = tl.load(rows + at, mask=take & (job != 1) & (job != 2), other=0.0)
                b += tl.load(g_wide + r[:, None] * 4 * C + right[None, :], mask=take & (job == 1), other=0.0)
                b += tl.load(wide + r[:, None] * 3 * C + right[None, :], mask=take & (job == 2), other=0.0)
                result = tl.dot(tl.trans(a), b, result, input_precision=PRECISION, out_dtype=ACC)
                offset = tl.load(g_scalars + r * 2, mask=valid & (job == 1), other=1.0)
                bias += tl.sum(a * offset[:, None], 0)
            tl.store(target + i[:, None] * J + j[None, :], result, mask=(i[:, None] < I) & (j[None, :] < J))
            tl.store(target + I * J + i, bias, mask=(i < I) & (tile % columns == 0))


def sizes(D: int, C: int, F: int) -> dict[str, tuple[int, ...]]:
    """Shapes in the order in which a part holds them: of jobs the product and its bias, or scale and shift."""
    return {
        "query_weight": (D, D),
        "query_bias": (D,),
        "key_weight": (D, C),
        "key_bias": (D,),
        "value_weight": (D, C),
        "value_bias": (D,),
        "gru_weight_ih": (3 * D, D),
        "gru_bias_ih": (3 * D,),
        "gru_weight_hh": (3 * D, D),
        "gru_bias_hh": (3 * D,),
        "mlp_in_weight": (F, D),
        "mlp_in_bias": (F,),
        "mlp_out_weight": (D, F),
        "mlp_out_bias": (D,),
        "norm_slots_weight": (D,),
        "norm_slots_bias": (D,),
        "norm_mlp_weight": (D,),
        "norm_mlp_bias": (D,),
        "norm_inputs_weight": (C,),
        "norm_inputs_bias": (C,),
    }


@launcher
def fused_weight_gradients(
    rows: Tensor,
    wide: Tensor,
    g_rows: Tensor,
    g_wide: Tensor,
    g_scalars: Tensor,
    D: int,
    C: int,
    hidden: int,
    wanted: Collection[str],
) -> dict[str, Tensor]:
    """Gradients by name, views into one tensor; arguments as `weight_gradients`, one head.

    A job makes two of `sizes` in turn; gradients of jobs that have none of `wanted` hold anything.
    """
    shapes = sizes(D, C, hidden)
    jobs = {place // 2 for place, name in enumerate(shapes) if name in wanted}
    counts = [torch.Size(shape).numel() for shape in shapes.values()]
    total, count_rows = sum(counts), rows.shape[0] * rows.shape[1]
    part = max(PART_ROWS, BLOCK_ROWS * triton.cdiv(count_rows, BLOCK_ROWS * PARTS))
    parts = triton.cdiv(count_rows, part)
    partial = torch.empty(parts, total, dtype=rows.dtype, device=rows.device)
    block = 32 if max(D, C) <= 32 else 64
    # wider rows spill with 32 of them at once: above 64 channels on Hopper, elsewhere from 64 on (56 bytes on sm_80)
    narrow = max(D, C) <= (64 if prefetches() else 32)
    tiles = triton.cdiv(max(3 * D, hidden), block) * triton.cdiv(max(D, C, hidden), block)
    weights_kernel[(tiles, JOBS, parts)](
        rows, wide, g_rows, g_wide, g_scalars, partial, total, count_rows, rows.shape[1], part, D, C, hidden,
        sum(1 << job for job in jobs),
        PRECISION=product_precision(rows.dtype), ACC=accumulator(rows.dtype), BLOCK=block,
        BLOCK_R=BLOCK_ROWS if narrow else 16, BLOCK_W=max(16, triton.next_power_of_2(max(D, C))),
        num_warps=4 if narrow else 8, num_stages=1, **all_registers(),
    )  # fmt: skip
    flat = partial[0] if parts == 1 else partial.sum(0)
    return {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), flat.split(counts), strict=True)}
