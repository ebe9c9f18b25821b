# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""The slot side of slot attention with columns split over programs: a launch a product, forward.

triton_slots.py walks through the products of an update in one launch, a program for 16 slots, because each needs whole
rows of the one before: at 128 channels and 256 slots that is 16 programs on 132 processors. Here a launch is one
product (the GRU's six are one), a program takes BLOCK_R slots and BLOCK_O columns of its result, and the end of the
launch stands for the barrier. What lies between two products is made again by every program of a row, from values that
are in the second-level cache: sums over the parts of a pass, LayerNorms. One of them, the owner of that part of the
columns, stores it for the backward pass and the weights' gradients.

No launch reads what it writes: programs that share rows run in any order. Sums over a whole row that would cross
programs are products with a vector made once a call (`shifts_kernel`): q . (Wk b + key bias) for the logits' offset,
and, backward, g . (update - Wv b - value bias) for the gradient of the coefficients' sum; b of the inputs' LayerNorm.
Workspaces as in triton_slots.py. One head. Backward: triton_columns_backward.py.
"""

import triton
import triton.language as tl

from ..elementary import tanh
from .triton_slots import activate, row_statistics, sigmoid


@triton.jit
def program_rows(R, ITERATION, BLOCK_R: tl.constexpr):
    """Slots of this program, those of them that exist, and their count over iterations."""
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    return row, row < R, row + ITERATION * R


@triton.jit
def program_columns(BLOCK_O: tl.constexpr):
    return tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)


@triton.jit
def owned(start, BLOCK_K: tl.constexpr):
    """Whether this program is the one of its row to store columns from `start` of what all of them make again."""
    return (start // BLOCK_K) % tl.num_programs(1) == tl.program_id(1)


@triton.jit
def row_tile(source, at, row_mask, k, K):
    """Rows of a workspace (BLOCK_R, k), zeros outside."""
    return tl.load(source + at[:, None] + k[None, :], mask=row_mask[:, None] & (k[None, :] < K), other=0.0)


@triton.jit
def weight_tile(weight, k, K, w_k, o, width, w_o, ACC: tl.constexpr):
    """weight[k, o], zeros outside."""
    inside = (k[:, None] < K) & (o[None, :] < width)
    return tl.load(weight + k[:, None] * w_k + o[None, :] * w_o, mask=inside, other=0.0).to(ACC)


@triton.jit
def parameter(source, o, width, ACC: tl.constexpr):
    """A vector of width values as a row (1, o), zeros outside."""
    return tl.load(source + o, mask=o < width, other=0.0).to(ACC)[None, :]


@triton.jit
def shifts_kernel(
    shifts, D, C, norm_inputs_b, key_w, value_w, key_b, value_b,
    KEY_BIAS: tl.constexpr, VALUE_BIAS: tl.constexpr, ACC: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """shifts (2, D): the LayerNorm's bias seen through the projections of keys and values, with their biases."""
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    of_keys = tl.zeros((BLOCK_O,), ACC)
    of_values = tl.zeros((BLOCK_O,), ACC)
    for start in range(0, C, BLOCK_K):
        c = start + tl.arange(0, BLOCK_K)
        inside = (o[:, None] < D) & (c[None, :] < C)
        at = o[:, None] * C + c[None, :]
        bias = parameter(norm_inputs_b, c, C, ACC)
        of_keys += tl.sum(tl.load(key_w + at, mask=inside, other=0.0).to(ACC) * bias, 1)
        of_values += tl.sum(tl.load(value_w + at, mask=inside, other=0.0).to(ACC) * bias, 1)
    if KEY_BIAS:
        of_keys += tl.load(key_b + o, mask=o < D, other=0.0).to(ACC)
    if VALUE_BIAS:
        of_values += tl.load(value_b + o, mask=o < D, other=0.0).to(ACC)
    tl.store(shifts + o, of_keys, mask=o < D)
    tl.store(shifts + D + o, of_values, mask=o < D)


@triton.jit
def normed_product(
    rows, source, target, row_mask, D, norm_w, norm_b, weight, o, width,
    PRECISION: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """LayerNorm of rows + source, kept in rows + target, times a linear weight (width, D): columns o."""
    mean, inverse = row_statistics(rows, source, row_mask, D, ACC, BLOCK_R, BLOCK_K)
    result = tl.zeros((BLOCK_R, BLOCK_O), ACC)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = row_mask[:, None] & (k[None, :] < D)
        unit = (row_tile(rows, source, row_mask, k, D) - mean[:, None]) * inverse[:, None]
        value = unit * parameter(norm_w, k, D, ACC) + parameter(norm_b, k, D, ACC)  # zero beyond D
        tl.store(rows + target[:, None] + k[None, :], value, mask=inside & owned(start, BLOCK_K))
        right = weight_tile(weight, k, D, 1, o, width, D, ACC)
        result = tl.dot(value, right, result, input_precision=PRECISION, out_dtype=ACC)
    return result


@triton.jit(do_not_specialize=["ITERATION"])
def queries_kernel(
    rows, ITERATION, R, D, F, factor, norm_slots_w, norm_slots_b, query_w, query_b,
    QUERY_BIAS: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From slots to queries."""
    _, row_mask, index = program_rows(R, ITERATION, BLOCK_R)
    o = program_columns(BLOCK_O)
    at = index * (10 * D + 2 * F)
    query = normed_product(
        rows, at, at + D, row_mask, D, norm_slots_w, norm_slots_b, query_w, o, D,
        PRECISION, ACC, BLOCK_R, BLOCK_O, BLOCK_K,
    )  # fmt: skip
    if QUERY_BIAS:
        query += parameter(query_b, o, D, ACC)
    tl.store(rows + (at + 2 * D)[:, None] + o[None, :], query * factor, mask=row_mask[:, None] & (o[None, :] < D))


@triton.jit(do_not_specialize=["ITERATION"])
def seen_kernel(
    rows, wide, scalars, shifts, ITERATION, R, D, C, F, key_w,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Queries seen from input space, and the offsets of their logits."""
    _, row_mask, index = program_rows(R, ITERATION, BLOCK_R)
    c = program_columns(BLOCK_O)
    at = index * (10 * D + 2 * F) + 2 * D
    seen = tl.zeros((BLOCK_R, BLOCK_O), ACC)
    offset = tl.zeros((BLOCK_R,), ACC)
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        query = row_tile(rows, at, row_mask, k, D)
        offset += tl.sum(query * parameter(shifts, k, D, ACC), 1)
        right = weight_tile(key_w, k, D, C, c, C, 1, ACC)
        seen = tl.dot(query, right, seen, input_precision=PRECISION, out_dtype=ACC)
    tl.store(wide + index[:, None] * 3 * C + c[None, :], seen, mask=row_mask[:, None] & (c[None, :] < C))
    tl.store(scalars + index * 2, offset, mask=row_mask & (tl.program_id(1) == 0))


@triton.jit(do_not_specialize=["ITERATION"])
def updates_kernel(
    sums, totals, rows, wide, scalars, ITERATION, R, S, D, C, F, PARTS, norm_inputs_w, norm_inputs_b, value_w, value_b,
    VALUE_BIAS: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Parts of a pass to mean inputs, without and with the LayerNorm's affine part, and from these to updates."""
    row, row_mask, index = program_rows(R, ITERATION, BLOCK_R)
    o = program_columns(BLOCK_O)
    first = (row // S) * PARTS * S + row % S  # part p of batch entry b: (b * PARTS + p) * S + s
    total = tl.zeros((BLOCK_R,), ACC)
    for part in range(PARTS):
        total += tl.load(totals + first + part * S, mask=row_mask, other=0.0)
    total = tl.where(row_mask, total, 1.0)
    tl.store(scalars + index * 2 + 1, total, mask=row_mask & (tl.program_id(1) == 0))
    update = tl.zeros((BLOCK_R, BLOCK_O), ACC)
    for start in range(0, C, BLOCK_K):
        c = start + tl.arange(0, BLOCK_K)
        keep = row_mask[:, None] & (c[None, :] < C) & owned(start, BLOCK_K)
        right = weight_tile(value_w, c, C, 1, o, D, C, ACC)  # on its way while the parts are added
        mean = tl.zeros((BLOCK_R, BLOCK_K), ACC)
        for part in range(PARTS):
            mean += row_tile(sums, (first + part * S) * C, row_mask, c, C)
        mean = mean / total[:, None]
        place = wide + index[:, None] * 3 * C + c[None, :]
        tl.store(place + C, mean, mask=keep)
        moved = mean * parameter(norm_inputs_w, c, C, ACC) + parameter(norm_inputs_b, c, C, ACC)
        tl.store(place + 2 * C, moved, mask=keep)
        update = tl.dot(moved, right, update, input_precision=PRECISION, out_dtype=ACC)
    if VALUE_BIAS:
        update += parameter(value_b, o, D, ACC)
    target = (index * (10 * D + 2 * F) + 3 * D)[:, None] + o[None, :]
    tl.store(rows + target, update, mask=row_mask[:, None] & (o[None, :] < D))


@triton.jit(do_not_specialize=["ITERATION"])
def gates_kernel(
    rows, ITERATION, R, D, F, gru_ih, gru_hh, gru_bias_ih, gru_bias_hh,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One step of the GRU: six products, none of which waits for another."""
    _, row_mask, index = program_rows(R, ITERATION, BLOCK_R)
    o = program_columns(BLOCK_O)
    at = index * (10 * D + 2 * F)
    reset = tl.zeros((BLOCK_R, BLOCK_O), ACC) + parameter(gru_bias_ih, o, D, ACC) + parameter(gru_bias_hh, o, D, ACC)
    keep = tl.zeros((BLOCK_R, BLOCK_O), ACC)
    keep += parameter(gru_bias_ih + D, o, D, ACC) + parameter(gru_bias_hh + D, o, D, ACC)
    of_update = tl.zeros((BLOCK_R, BLOCK_O), ACC) + parameter(gru_bias_ih + 2 * D, o, D, ACC)
    of_state = tl.zeros((BLOCK_R, BLOCK_O), ACC) + parameter(gru_bias_hh + 2 * D, o, D, ACC)
    step = D * D
    for start in range(0, D, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        update = row_tile(rows, at + 3 * D, row_mask, k, D)
        state = row_tile(rows, at, row_mask, k, D)
        right = weight_tile(gru_ih, k, D, 1, o, D, D, ACC)
        reset = tl.dot(update, right, reset, input_precision=PRECISION, out_dtype=ACC)
        right = weight_tile(gru_ih + step, k, D, 1, o, D, D, ACC)
        keep = tl.dot(update, right, keep, input_precision=PRECISION, out_dtype=ACC)
        right = weight_tile(gru_ih + 2 * step, k, D, 1, o, D, D, ACC)
        of_update = tl.dot(update, right, of_update, input_precision=PRECISION, out_dtype=ACC)
        right = weight_tile(gru_hh, k, D, 1, o, D, D, ACC)
        reset = tl.dot(state, right, reset, input_precision=PRECISION, out_dtype=ACC)
        right = weight_tile(gru_hh + step, k, D, 1, o, D, D, ACC)
        keep = tl.dot(state, right, keep, input_precision=PRECISION, out_dtype=ACC)
        right = weight_tile(gru_hh + 2 * step, k, D, 1, o, D, D, ACC)
        of_state = tl.dot(state, right, of_state, input_precision=PRECISION, out_dtype=ACC)
    inside = row_mask[:, None] & (o[None, :] < D)
    place = rows + at[:, None] + o[None, :]
    reset, keep = sigmoid(reset), sigmoid(keep)
    candidate = tanh(of_update + reset * of_state)
    tl.store(place + 4 * D, reset, mask=inside)
    tl.store(place + 5 * D, keep, mask=inside)
    tl.store(place + 6 * D, candidate, mask=inside)
    tl.store(place + 7 * D, of_state, mask=inside)
    state = tl.load(place, mask=inside, other=0.0)
    tl.store(place + 8 * D, candidate + keep * (state - candidate), mask=inside)


@triton.jit(do_not_specialize=["ITERATION"])
def hidden_kernel(
    rows, ITERATION, R, D, F, norm_mlp_w, norm_mlp_b, mlp_in_w, mlp_in_b,
    GELU: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From the GRU's result to the MLP's hidden layer, before and after its activation."""
    _, row_mask, index = program_rows(R, ITERATION, BLOCK_R)
    o = program_columns(BLOCK_O)
    at = index * (10 * D + 2 * F)
    hidden = normed_product(
        rows, at + 8 * D, at + 9 * D, row_mask, D, norm_mlp_w, norm_mlp_b, mlp_in_w, o, F,
        PRECISION, ACC, BLOCK_R, BLOCK_O, BLOCK_K,
    )  # fmt: skip
    hidden += parameter(mlp_in_b, o, F, ACC)
    inside = row_mask[:, None] & (o[None, :] < F)
    place = rows + at[:, None] + 10 * D + o[None, :]
    tl.store(place, hidden, mask=inside)
    tl.store(place + F, activate(hidden, GELU), mask=inside)


@triton.jit(do_not_specialize=["ITERATION"])
def result_kernel(
    rows, out, ITERATION, R, D, F, mlp_out_w, mlp_out_b,
    LAST: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From the hidden layer to the slots of the next iteration, or to the result."""
    row, row_mask, index = program_rows(R, ITERATION, BLOCK_R)
    o = program_columns(BLOCK_O)
    at = index * (10 * D + 2 * F)
    result = row_tile(rows, at + 8 * D, row_mask, o, D) + parameter(mlp_out_b, o, D, ACC)
    for start in range(0, F, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        left = row_tile(rows, at + 10 * D + F, row_mask, k, F)
        right = weight_tile(mlp_out_w, k, F, 1, o, D, F, ACC)
        result = tl.dot(left, right, result, input_precision=PRECISION, out_dtype=ACC)
    inside = row_mask[:, None] & (o[None, :] < D)
    if LAST:
        tl.store(out + row[:, None] * D + o[None, :], result, mask=inside)
    else:
        tl.store(rows + ((index + R) * (10 * D + 2 * F))[:, None] + o[None, :], result, mask=inside)
