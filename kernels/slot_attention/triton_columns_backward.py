# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""The slot side of slot attention with columns split over programs, backward: triton_columns.py in reverse.

The gradient of an iteration's slots has two shares, through the GRU and through the queries, and the LayerNorm of the
second needs whole rows. So the first stays in `pending` (B S, D), and the next launch adds both (`in_slots`), every
program of a row again; the owner of the columns stores the sum in `g_rows`.
"""

import triton
import triton.language as tl

from .triton_columns import owned, parameter, program_columns, program_rows, row_tile, weight_tile
from .triton_slots import activation_slope, norm_gradient, norm_gradient_sums


@triton.jit(do_not_specialize=["ITERATION"])
def queries_backward_kernel(
    part_seen, part_offset, g_rows, g_wide, g_scalars, ITERATION, R, S, D, C, F, PARTS, factor,
    norm_inputs_w, norm_inputs_b, key_w, key_b,
    KEY_BIAS: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From the parts' gradients of seen queries and offsets to those of the queries."""
    row, row_mask, index = program_rows(R, ITERATION, BLOCK_R)
    o = program_columns(BLOCK_O)
    first = (row // S) * PARTS * S + row % S
    in_offset = tl.zeros((BLOCK_R,), ACC)
    for part in range(PARTS):
        in_offset += tl.load(part_offset + first + part * S, mask=row_mask, other=0.0)
    tl.store(g_scalars + index * 2, in_offset, mask=row_mask & (tl.program_id(1) == 0))
    query = tl.zeros((BLOCK_R, BLOCK_O), ACC)
    for start in range(0, C, BLOCK_K):
        c = start + tl.arange(0, BLOCK_K)
        keep = row_mask[:, None] & (c[None, :] < C) & owned(start, BLOCK_K)
        right = weight_tile(key_w, c, C, 1, o, D, C, ACC)  # on its way while the parts are added
        total = tl.zeros((BLOCK_R, BLOCK_K), ACC)
        for part in range(PARTS):
            total += row_tile(part_seen, (first + part * S) * C, row_mask, c, C)
        place = g_wide + index[:, None] * 4 * C + c[None, :]
        tl.store(place, total, mask=keep)
        scaled = total * parameter(norm_inputs_w, c, C, ACC)
        scaled += in_offset[:, None] * parameter(norm_inputs_b, c, C, ACC)
        tl.store(place + C, scaled, mask=keep)
        query = tl.dot(scaled, right, query, input_precision=PRECISION, out_dtype=ACC)
    if KEY_BIAS:
        query += in_offset[:, None] * parameter(key_b, o, D, ACC)
    target = (index * (9 * D + F) + 2 * D)[:, None] + o[None, :]
    tl.store(g_rows + target, query * factor, mask=row_mask[:, None] & (o[None, :] < D))


@triton.jit(do_not_specialize=["ITERATION"])
def product_kernel(
    g_rows, ITERATION, R, D, F, weight, source, target, K,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Back through a linear weight (K, D): from columns `source` of g_rows to columns `target`."""
    _, row_mask, index = program_rows(R, ITERATION, BLOCK_R)
    o = program_columns(BLOCK_O)
    at = index * (9 * D + F)
    result = tl.zeros((BLOCK_R, BLOCK_O), ACC)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        left = row_tile(g_rows, at + source, row_mask, k, K)
        right = weight_tile(weight, k, K, D, o, D, 1, ACC)
        result = tl.dot(left, right, result, input_precision=PRECISION, out_dtype=ACC)
    tl.store(g_rows + (at + target)[:, None] + o[None, :], result, mask=row_mask[:, None] & (o[None, :] < D))


@triton.jit
def in_slots(
    rows, g_rows, pending, row, at, g_at, k, inside, D, norm_slots_w, mean, inverse, level, length, ACC: tl.constexpr
):
    """Gradient of slots, columns k: the share that is pending, and that through their LayerNorm."""
    change = norm_gradient(rows, at, g_rows, g_at + D, k, inside, D, norm_slots_w, mean, inverse, level, length, ACC)
    return change + tl.load(pending + row[:, None] * D + k[None, :], mask=inside, other=0.0)


@triton.jit(do_not_specialize=["ITERATION"])
def slots_backward_kernel(
    rows, g_rows, pending, ITERATION, R, D, F, norm_slots_w,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradient of the slots of the first iteration, which no further launch needs."""
    row, row_mask, index = program_rows(R, ITERATION, BLOCK_R)
    o = program_columns(BLOCK_O)
    at, g_at = index * (10 * D + 2 * F), index * (9 * D + F)
    mean, inverse, level, length = norm_gradient_sums(
        rows, at, g_rows, g_at + D, row_mask, D, norm_slots_w, ACC, BLOCK_R, BLOCK_K
    )
    inside = row_mask[:, None] & (o[None, :] < D)
    change = in_slots(
        rows, g_rows, pending, row, at, g_at, o, inside, D, norm_slots_w, mean, inverse, level, length, ACC
    )
    tl.store(g_rows + g_at[:, None] + o[None, :], change, mask=inside)


@triton.jit(do_not_specialize=["ITERATION"])
def hidden_backward_kernel(
    rows, g_rows, pending, ITERATION, R, D, F, norm_slots_w, mlp_out_w,
    QUERIES: tl.constexpr, GELU: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From the slots that an iteration gives, whose gradient is put together if QUERIES, to the MLP's hidden layer."""
    row, row_mask, index = program_rows(R, ITERATION, BLOCK_R)
    o = program_columns(BLOCK_O)
    at, g_at = index * (10 * D + 2 * F), index * (9 * D + F)
    after, g_after = (index + R) * (10 * D + 2 * F), (index + R) * (9 * D + F)
    hidden = tl.zeros((BLOCK_R, BLOCK_O), ACC)
    if QUERIES:
        mean, inverse, level, length = norm_gradient_sums(
            rows, after, g_rows, g_after + D, row_mask, D, norm_slots_w, ACC, BLOCK_R, BLOCK_K
        )
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = row_mask[:, None] & (k[None, :] < D)
        if QUERIES:
            pull = in_slots(
                rows, g_rows, pending, row, after, g_after, k, inside, D,
                norm_slots_w, mean, inverse, level, length, ACC,
            )  # fmt: skip
            pull = tl.where(inside, pull, 0.0)
            tl.store(g_rows + g_after[:, None] + k[None, :], pull, mask=inside & owned(start, BLOCK_K))
        else:
            pull = row_tile(g_rows, g_after, row_mask, k, D)
        right = weight_tile(mlp_out_w, k, D, F, o, F, 1, ACC)
        hidden = tl.dot(pull, right, hidden, input_precision=PRECISION, out_dtype=ACC)
    hidden *= activation_slope(row_tile(rows, at + 10 * D, row_mask, o, F), GELU)
    tl.store(g_rows + (g_at + 9 * D)[:, None] + o[None, :], hidden, mask=row_mask[:, None] & (o[None, :] < F))


@triton.jit
def in_gates(
    rows, g_rows, at, g_at, g_after, row_mask, k, D, norm_mlp_w, mean, inverse, level, length, ACC: tl.constexpr
):
    """Gradients of the gates before their activation (r, z, n, the state's share of n), and of the state through z."""
    inside = row_mask[:, None] & (k[None, :] < D)
    pull = norm_gradient(
        rows, at + 8 * D, g_rows, g_at + 8 * D, k, inside, D, norm_mlp_w, mean, inverse, level, length, ACC
    )
    pull = tl.where(inside, pull, 0.0) + row_tile(g_rows, g_after, row_mask, k, D)
    state = row_tile(rows, at, row_mask, k, D)
    reset = row_tile(rows, at + 4 * D, row_mask, k, D)
    keep = row_tile(rows, at + 5 * D, row_mask, k, D)
    candidate = row_tile(rows, at + 6 * D, row_mask, k, D)
    of_state = row_tile(rows, at + 7 * D, row_mask, k, D)
    in_candidate = pull * (1.0 - keep) * (1.0 - candidate * candidate)
    in_reset = in_candidate * of_state * reset * (1.0 - reset)
    in_keep = pull * (state - candidate) * keep * (1.0 - keep)
    return in_reset, in_keep, in_candidate, in_candidate * reset, pull * keep


@triton.jit(do_not_specialize=["ITERATION"])
def gates_backward_kernel(
    rows, g_rows, pending, ITERATION, R, D, F, norm_mlp_w, gru_ih, gru_hh,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From the GRU's result to its gates, and from these to updates and, without the queries' share, slots."""
    row, row_mask, index = program_rows(R, ITERATION, BLOCK_R)
    o = program_columns(BLOCK_O)
    at, g_at = index * (10 * D + 2 * F), index * (9 * D + F)
    g_after = (index + R) * (9 * D + F)
    mean, inverse, level, length = norm_gradient_sums(
        rows, at + 8 * D, g_rows, g_at + 8 * D, row_mask, D, norm_mlp_w, ACC, BLOCK_R, BLOCK_K
    )
    step = D * D
    update = tl.zeros((BLOCK_R, BLOCK_O), ACC)
    slots = tl.zeros((BLOCK_R, BLOCK_O), ACC)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        in_reset, in_keep, in_candidate, in_state, _ = in_gates(
            rows, g_rows, at, g_at, g_after, row_mask, k, D, norm_mlp_w, mean, inverse, level, length, ACC
        )
        mine = row_mask[:, None] & (k[None, :] < D) & owned(start, BLOCK_K)
        place = g_rows + g_at[:, None] + k[None, :]
        tl.store(place + 4 * D, in_reset, mask=mine)
        tl.store(place + 5 * D, in_keep, mask=mine)
        tl.store(place + 6 * D, in_candidate, mask=mine)
        tl.store(place + 7 * D, in_state, mask=mine)
        right = weight_tile(gru_ih, k, D, D, o, D, 1, ACC)
        update = tl.dot(in_reset, right, update, input_precision=PRECISION, out_dtype=ACC)
        right = weight_tile(gru_hh, k, D, D, o, D, 1, ACC)
        slots = tl.dot(in_reset, right, slots, input_precision=PRECISION, out_dtype=ACC)
        right = weight_tile(gru_ih + step, k, D, D, o, D, 1, ACC)
        update = tl.dot(in_keep, right, update, input_precision=PRECISION, out_dtype=ACC)
        right = weight_tile(gru_hh + step, k, D, D, o, D, 1, ACC)
        slots = tl.dot(in_keep, right, slots, input_precision=PRECISION, out_dtype=ACC)
        right = weight_tile(gru_ih + 2 * step, k, D, D, o, D, 1, ACC)
        update = tl.dot(in_candidate, right, update, input_precision=PRECISION, out_dtype=ACC)
        right = weight_tile(gru_hh + 2 * step, k, D, D, o, D, 1, ACC)
        slots = tl.dot(in_state, right, slots, input_precision=PRECISION, out_dtype=ACC)
    _, _, _, _, kept = in_gates(
        rows, g_rows, at, g_at, g_after, row_mask, o, D, norm_mlp_w, mean, inverse, level, length, ACC
    )
    inside = row_mask[:, None] & (o[None, :] < D)
    tl.store(g_rows + (g_at + 3 * D)[:, None] + o[None, :], update, mask=inside)
    tl.store(pending + row[:, None] * D + o[None, :], slots + kept, mask=inside)


@triton.jit(do_not_specialize=["ITERATION"])
def updates_backward_kernel(
    rows, scalars, shifts, g_rows, g_wide, g_scalars, ITERATION, R, D, C, F, norm_inputs_w, value_w,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From updates to the sums that a pass over the inputs gave."""
    _, row_mask, index = program_rows(R, ITERATION, BLOCK_R)
    c = program_columns(BLOCK_O)
    at, g_at = index * (10 * D + 2 * F), index * (9 * D + F)
    moved = tl.zeros((BLOCK_R, BLOCK_O), ACC)
    level = tl.zeros((BLOCK_R,), ACC)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        pull = row_tile(g_rows, g_at + 3 * D, row_mask, k, D)
        # (Wv^T pull) . (scale * mean input) = pull . (update - Wv b - value bias)
        level += tl.sum(pull * (row_tile(rows, at + 3 * D, row_mask, k, D) - parameter(shifts + D, k, D, ACC)), 1)
        right = weight_tile(value_w, k, D, C, c, C, 1, ACC)
        moved = tl.dot(pull, right, moved, input_precision=PRECISION, out_dtype=ACC)
    total = tl.load(scalars + index * 2 + 1, mask=row_mask, other=1.0)
    inside = row_mask[:, None] & (c[None, :] < C)
    place = g_wide + index[:, None] * 4 * C + c[None, :]
    tl.store(place + 3 * C, moved, mask=inside)
    tl.store(place + 2 * C, moved * parameter(norm_inputs_w, c, C, ACC) / total[:, None], mask=inside)
    tl.store(g_scalars + index * 2 + 1, -level / total, mask=row_mask & (tl.program_id(1) == 0))
