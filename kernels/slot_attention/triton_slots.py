# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""The slot side of slot attention in Triton: everything between two passes over the inputs in one launch.

A program owns BLOCK_R slots and works through a chain of small products: forward adds up the parts of a pass, then
value projection, GRU cell, LayerNorm, MLP, and the next iteration's query seen from input space; backward the same in
reverse. Each link reads whole rows of the one before, so rows go through workspaces in global memory (they stay in the
cache) and a barrier parts the links. What the weights' gradients need stays there: one product a weight at the end, for
all iterations at once.

`rows` (iterations, B S, .) holds, D wide if nothing else is said: slots, their LayerNorm, queries, updates, gates (4
D: r, z, n, and the state's share of n), the GRU's result, its LayerNorm, and the MLP's hidden layer before and after
its activation (F). `wide` (iterations, B S H, 3 C): queries seen from input space, mean inputs, and those with the
affine part. `scalars` (iterations, B S H, 2): offset of the logits, sum of the coefficients. `g_rows` (iterations +
1, B S, 9 D + F): gradients of slots, their LayerNorm, queries, updates, gates (4 D), the MLP's LayerNorm, its hidden
layer. `g_wide` (iterations, B S H, 4 C): of seen queries as the pass takes them and without the affine part, of the
sums of inputs, of the mean inputs with the affine part. `g_scalars` (iterations, B S H, 2): of offsets and of the
coefficients' sums.
"""

import triton
import triton.language as tl

from ..elementary import tanh
from .triton import NORM_EPS

INVERSE_SQRT_2 = tl.constexpr(0.7071067811865476)
INVERSE_SQRT_2PI = tl.constexpr(0.3989422804014327)


@triton.jit
def multiply(
    source, at, row_mask, K, weight, w_k, w_o, o, width, result,
    PRECISION: tl.constexpr, ACC: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """result + rows (of K values from source + at) times weight[k, o]."""
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        left = tl.load(source + at[:, None] + k[None, :], mask=row_mask[:, None] & (k[None, :] < K), other=0.0)
        inside = (k[:, None] < K) & (o[None, :] < width)
        right = tl.load(weight + k[:, None] * w_k + o[None, :] * w_o, mask=inside, other=0.0).to(ACC)
        result = tl.dot(left, right, result, input_precision=PRECISION, out_dtype=ACC)
    return result


@triton.jit
def row_statistics(source, at, row_mask, D, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr):
    """Mean and 1 / standard deviation of rows of D values."""
    total = tl.zeros((BLOCK_R,), ACC)
    for start in range(0, D, BLOCK):
        d = start + tl.arange(0, BLOCK)
        total += tl.sum(
            tl.load(source + at[:, None] + d[None, :], mask=row_mask[:, None] & (d[None, :] < D), other=0.0), 1
        )
    mean = total / D
    square = tl.zeros((BLOCK_R,), ACC)
    for start in range(0, D, BLOCK):
        d = start + tl.arange(0, BLOCK)
        inside = row_mask[:, None] & (d[None, :] < D)
        value = tl.load(source + at[:, None] + d[None, :], mask=inside, other=0.0)
        centred = tl.where(inside, value - mean[:, None], 0.0)
        square += tl.sum(centred * centred, 1)
    return mean, 1.0 / tl.sqrt(square / D + NORM_EPS)


@triton.jit
def layer_norm(
    rows, source, target, row_mask, D, weight, bias, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr
):
    """LayerNorm of rows + source into rows + target."""
    mean, inverse = row_statistics(rows, source, row_mask, D, ACC, BLOCK_R, BLOCK)
    for start in range(0, D, BLOCK):
        d = start + tl.arange(0, BLOCK)
        inside = row_mask[:, None] & (d[None, :] < D)
        value = (tl.load(rows + source[:, None] + d[None, :], mask=inside, other=0.0) - mean[:, None]) * inverse[
            :, None
        ]
        scale = tl.load(weight + d, mask=d < D, other=0.0).to(ACC)
        value = value * scale[None, :] + tl.load(bias + d, mask=d < D, other=0.0).to(ACC)[None, :]
        tl.store(rows + target[:, None] + d[None, :], value, mask=inside)


@triton.jit
def norm_gradient_sums(
    rows, source, g_rows, upstream, row_mask, D, weight, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr
):
    """Statistics of rows + source, and the means of a = gradient * weight and of a * normalised row."""
    mean, inverse = row_statistics(rows, source, row_mask, D, ACC, BLOCK_R, BLOCK)
    level = tl.zeros((BLOCK_R,), ACC)
    length = tl.zeros((BLOCK_R,), ACC)
    for start in range(0, D, BLOCK):
        d = start + tl.arange(0, BLOCK)
        inside = row_mask[:, None] & (d[None, :] < D)
        value = tl.load(rows + source[:, None] + d[None, :], mask=inside, other=0.0)
        unit = tl.where(inside, (value - mean[:, None]) * inverse[:, None], 0.0)
        pull = tl.load(g_rows + upstream[:, None] + d[None, :], mask=inside, other=0.0)
        pull = pull * tl.load(weight + d, mask=d < D, other=0.0).to(ACC)[None, :]
        level += tl.sum(pull, 1)
        length += tl.sum(pull * unit, 1)
    return mean, inverse, level / D, length / D


@triton.jit
def norm_gradient(
    rows, source, g_rows, upstream, d, inside, D, weight, mean, inverse, level, length, ACC: tl.constexpr
):
    """Gradient of a LayerNorm's input, channels d."""
    value = tl.load(rows + source[:, None] + d[None, :], mask=inside, other=0.0)
    unit = tl.where(inside, (value - mean[:, None]) * inverse[:, None], 0.0)
    pull = tl.load(g_rows + upstream[:, None] + d[None, :], mask=inside, other=0.0)
    pull = pull * tl.load(weight + d, mask=d < D, other=0.0).to(ACC)[None, :]
    return inverse[:, None] * (pull - level[:, None] - unit * length[:, None])


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def activate(x, GELU: tl.constexpr):
    if GELU:
        return 0.5 * x * (1.0 + tl.erf(x * INVERSE_SQRT_2))
    return tl.where(x < 0.0, 0.0, x)  # NaN stays


@triton.jit
def activation_slope(x, GELU: tl.constexpr):
    if GELU:
        return 0.5 * (1.0 + tl.erf(x * INVERSE_SQRT_2)) + x * tl.exp(-0.5 * x * x) * INVERSE_SQRT_2PI
    return tl.where(x > 0.0, 1.0, 0.0)


@triton.jit
def queries(
    rows, wide, scalars, index, row_mask, D, C, F, H, factor,
    norm_slots_w, norm_slots_b, query_w, query_b, key_w, key_b, norm_inputs_b,
    QUERY_BIAS: tl.constexpr, KEY_BIAS: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From slots to queries seen from input space and their offsets; index counts (iteration, slot)."""
    at = index * (10 * D + 2 * F)
    layer_norm(rows, at, at + D, row_mask, D, norm_slots_w, norm_slots_b, ACC, BLOCK_R, BLOCK_O)
    tl.debug_barrier()
    for start in range(0, D, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        query = tl.zeros((BLOCK_R, BLOCK_O), ACC)
        query = multiply(rows, at + D, row_mask, D, query_w, 1, D, o, D, query, PRECISION, ACC, BLOCK_K)
        if QUERY_BIAS:
            query += tl.load(query_b + o, mask=o < D, other=0.0).to(ACC)[None, :]
        tl.store(rows + (at + 2 * D)[:, None] + o[None, :], query * factor, mask=row_mask[:, None] & (o[None, :] < D))
    tl.debug_barrier()
    width = D // H
    for head in range(H):
        own = index * H + head
        part = at + 2 * D + head * width
        moved = tl.zeros((BLOCK_R,), ACC)
        for start in range(0, C, BLOCK_O):
            c = start + tl.arange(0, BLOCK_O)
            seen = tl.zeros((BLOCK_R, BLOCK_O), ACC)
            weight = key_w + head * width * C
            seen = multiply(rows, part, row_mask, width, weight, C, 1, c, C, seen, PRECISION, ACC, BLOCK_K)
            tl.store(wide + own[:, None] * 3 * C + c[None, :], seen, mask=row_mask[:, None] & (c[None, :] < C))
            moved += tl.sum(seen * tl.load(norm_inputs_b + c, mask=c < C, other=0.0).to(ACC)[None, :], 1)
        if KEY_BIAS:
            for start in range(0, width, BLOCK_O):
                k = start + tl.arange(0, BLOCK_O)
                query = tl.load(
                    rows + part[:, None] + k[None, :], mask=row_mask[:, None] & (k[None, :] < width), other=0.0
                )
                bias = tl.load(key_b + head * width + k, mask=k < width, other=0.0).to(ACC)
                moved += tl.sum(query * bias[None, :], 1)
        tl.store(scalars + own * 2, moved, mask=row_mask)


@triton.jit
def first_queries_kernel(
    rows, wide, scalars, R, D, C, F, H, factor,
    norm_slots_w, norm_slots_b, query_w, query_b, key_w, key_b, norm_inputs_b,
    QUERY_BIAS: tl.constexpr, KEY_BIAS: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    queries(
        rows, wide, scalars, row, row < R, D, C, F, H, factor,
        norm_slots_w, norm_slots_b, query_w, query_b, key_w, key_b, norm_inputs_b,
        QUERY_BIAS, KEY_BIAS, PRECISION, ACC, BLOCK_R, BLOCK_O, BLOCK_K,
    )  # fmt: skip


@triton.jit
def combine(
    sums, totals, wide, scalars, row, index, row_mask, S, C, H, PARTS, norm_inputs_w, norm_inputs_b,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Parts of a pass into mean inputs, without and with the affine part of their LayerNorm."""
    for head in range(H):
        own = index * H + head
        # part p of batch entry b: ((b * PARTS + p) * S + s) * H + head
        first = ((row // S) * PARTS * S + row % S) * H + head
        total = tl.zeros((BLOCK_R,), ACC)
        for part in range(PARTS):
            total += tl.load(totals + first + part * S * H, mask=row_mask, other=0.0)
        total = tl.where(row_mask, total, 1.0)
        tl.store(scalars + own * 2 + 1, total, mask=row_mask)
        for start in range(0, C, BLOCK_O):
            c = start + tl.arange(0, BLOCK_O)
            inside = row_mask[:, None] & (c[None, :] < C)
            mean = tl.zeros((BLOCK_R, BLOCK_O), ACC)
            for part in range(PARTS):
                mean += tl.load(sums + (first + part * S * H)[:, None] * C + c[None, :], mask=inside, other=0.0)
            mean = mean / total[:, None]
            tl.store(wide + own[:, None] * 3 * C + C + c[None, :], mean, mask=inside)
            scale = tl.load(norm_inputs_w + c, mask=c < C, other=0.0).to(ACC)
            moved = mean * scale[None, :] + tl.load(norm_inputs_b + c, mask=c < C, other=0.0).to(ACC)[None, :]
            tl.store(wide + own[:, None] * 3 * C + 2 * C + c[None, :], moved, mask=inside)


@triton.jit
def gate(
    rows, at, row_mask, D, which, gru_ih, gru_hh, bias_ih, bias_hh, o,
    PRECISION: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Shares of the update and of the state in a gate of the GRU, biases included."""
    block = which * D * D
    of_update = tl.zeros((BLOCK_R, BLOCK_O), ACC)
    of_update = multiply(rows, at + 3 * D, row_mask, D, gru_ih + block, 1, D, o, D, of_update, PRECISION, ACC, BLOCK_K)
    of_state = tl.zeros((BLOCK_R, BLOCK_O), ACC)
    of_state = multiply(rows, at, row_mask, D, gru_hh + block, 1, D, o, D, of_state, PRECISION, ACC, BLOCK_K)
    of_update += tl.load(bias_ih + which * D + o, mask=o < D, other=0.0).to(ACC)[None, :]
    of_state += tl.load(bias_hh + which * D + o, mask=o < D, other=0.0).to(ACC)[None, :]
    return of_update, of_state


@triton.jit
def recur(
    rows, wide, index, row_mask, at, D, C, H, value_w, value_b, gru_ih, gru_hh, gru_bias_ih, gru_bias_hh,
    VALUE_BIAS: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From mean inputs to updates, and one step of the GRU."""
    width = D // H
    for head in range(H):
        source = (index * H + head) * 3 * C + 2 * C
        for start in range(0, width, BLOCK_O):
            o = start + tl.arange(0, BLOCK_O)
            update = tl.zeros((BLOCK_R, BLOCK_O), ACC)
            weight = value_w + head * width * C
            update = multiply(wide, source, row_mask, C, weight, 1, C, o, width, update, PRECISION, ACC, BLOCK_K)
            if VALUE_BIAS:
                update += tl.load(value_b + head * width + o, mask=o < width, other=0.0).to(ACC)[None, :]
            target = (at + 3 * D + head * width)[:, None] + o[None, :]
            tl.store(rows + target, update, mask=row_mask[:, None] & (o[None, :] < width))
    tl.debug_barrier()
    for start in range(0, D, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        inside = row_mask[:, None] & (o[None, :] < D)
        place = at[:, None] + o[None, :]
        of_update, of_state = gate(
            rows, at, row_mask, D, 0, gru_ih, gru_hh, gru_bias_ih, gru_bias_hh, o,
            PRECISION, ACC, BLOCK_R, BLOCK_O, BLOCK_K,
        )  # fmt: skip
        reset = sigmoid(of_update + of_state)
        tl.store(rows + place + 4 * D, reset, mask=inside)
        of_update, of_state = gate(
            rows, at, row_mask, D, 2, gru_ih, gru_hh, gru_bias_ih, gru_bias_hh, o,
            PRECISION, ACC, BLOCK_R, BLOCK_O, BLOCK_K,
        )  # fmt: skip
        tl.store(rows + place + 7 * D, of_state, mask=inside)
        candidate = tanh(of_update + reset * of_state)
        tl.store(rows + place + 6 * D, candidate, mask=inside)
        of_update, of_state = gate(
            rows, at, row_mask, D, 1, gru_ih, gru_hh, gru_bias_ih, gru_bias_hh, o,
            PRECISION, ACC, BLOCK_R, BLOCK_O, BLOCK_K,
        )  # fmt: skip
        keep = sigmoid(of_update + of_state)
        tl.store(rows + place + 5 * D, keep, mask=inside)
        state = tl.load(rows + place, mask=inside, other=0.0)
        tl.store(rows + place + 8 * D, candidate + keep * (state - candidate), mask=inside)
    tl.debug_barrier()


@triton.jit
def perceptron(
    rows, out, row, row_mask, at, after, D, F, norm_mlp_w, norm_mlp_b, mlp_in_w, mlp_in_b, mlp_out_w, mlp_out_b,
    LAST: tl.constexpr, GELU: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The residual MLP: slots of the next iteration, or the result."""
    layer_norm(rows, at + 8 * D, at + 9 * D, row_mask, D, norm_mlp_w, norm_mlp_b, ACC, BLOCK_R, BLOCK_O)
    tl.debug_barrier()
    for start in range(0, F, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        inside = row_mask[:, None] & (o[None, :] < F)
        hidden = tl.zeros((BLOCK_R, BLOCK_O), ACC)
        hidden = multiply(rows, at + 9 * D, row_mask, D, mlp_in_w, 1, D, o, F, hidden, PRECISION, ACC, BLOCK_K)
        hidden += tl.load(mlp_in_b + o, mask=o < F, other=0.0).to(ACC)[None, :]
        place = at[:, None] + 10 * D + o[None, :]
        tl.store(rows + place, hidden, mask=inside)
        tl.store(rows + place + F, activate(hidden, GELU), mask=inside)
    tl.debug_barrier()
    for start in range(0, D, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        inside = row_mask[:, None] & (o[None, :] < D)
        result = tl.load(rows + (at + 8 * D)[:, None] + o[None, :], mask=inside, other=0.0)
        result = multiply(rows, at + 10 * D + F, row_mask, F, mlp_out_w, 1, F, o, D, result, PRECISION, ACC, BLOCK_K)
        result += tl.load(mlp_out_b + o, mask=o < D, other=0.0).to(ACC)[None, :]
        if LAST:
            tl.store(out + row[:, None] * D + o[None, :], result, mask=inside)
        else:
            tl.store(rows + after[:, None] + o[None, :], result, mask=inside)


@triton.jit(do_not_specialize=["ITERATION"])
def update_kernel(
    sums, totals, rows, wide, scalars, out, ITERATION, R, S, D, C, F, H, PARTS, factor,
    norm_inputs_w, norm_inputs_b, norm_slots_w, norm_slots_b, query_w, key_w, value_w,
    gru_ih, gru_hh, gru_bias_ih, gru_bias_hh, norm_mlp_w, norm_mlp_b, mlp_in_w, mlp_in_b, mlp_out_w, mlp_out_b,
    query_b, key_b, value_b,
    LAST: tl.constexpr, GELU: tl.constexpr,
    QUERY_BIAS: tl.constexpr, KEY_BIAS: tl.constexpr, VALUE_BIAS: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    row_mask = row < R
    index = row + ITERATION * R
    at = index * (10 * D + 2 * F)
    combine(
        sums, totals, wide, scalars, row, index, row_mask, S, C, H, PARTS, norm_inputs_w, norm_inputs_b,
        ACC, BLOCK_R, BLOCK_O,
    )  # fmt: skip
    tl.debug_barrier()
    recur(
        rows, wide, index, row_mask, at, D, C, H, value_w, value_b, gru_ih, gru_hh, gru_bias_ih, gru_bias_hh,
        VALUE_BIAS, PRECISION, ACC, BLOCK_R, BLOCK_O, BLOCK_K,
    )  # fmt: skip
    perceptron(
        rows, out, row, row_mask, at, (index + R) * (10 * D + 2 * F), D, F,
        norm_mlp_w, norm_mlp_b, mlp_in_w, mlp_in_b, mlp_out_w, mlp_out_b,
        LAST, GELU, PRECISION, ACC, BLOCK_R, BLOCK_O, BLOCK_K,
    )  # fmt: skip
    if not LAST:
        tl.debug_barrier()
        queries(
            rows, wide, scalars, index + R, row_mask, D, C, F, H, factor,
            norm_slots_w, norm_slots_b, query_w, query_b, key_w, key_b, norm_inputs_b,
            QUERY_BIAS, KEY_BIAS, PRECISION, ACC, BLOCK_R, BLOCK_O, BLOCK_K,
        )  # fmt: skip


@triton.jit
def queries_backward(
    part_seen, part_offset, rows, g_rows, g_wide, g_scalars, row, index, row_mask, S, D, C, F, H, PARTS, factor,
    norm_inputs_w, norm_inputs_b, norm_slots_w, query_w, key_w, key_b,
    KEY_BIAS: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From the parts' gradients of seen queries and offsets to those of the slots, which are added to what is there."""
    at, g_at = index * (10 * D + 2 * F), index * (9 * D + F)
    width = D // H
    for head in range(H):
        own = index * H + head
        first = ((row // S) * PARTS * S + row % S) * H + head
        in_offset = tl.zeros((BLOCK_R,), ACC)
        for part in range(PARTS):
            in_offset += tl.load(part_offset + first + part * S * H, mask=row_mask, other=0.0)
        tl.store(g_scalars + own * 2, in_offset, mask=row_mask)
        for start in range(0, C, BLOCK_O):
            c = start + tl.arange(0, BLOCK_O)
            inside = row_mask[:, None] & (c[None, :] < C)
            total = tl.zeros((BLOCK_R, BLOCK_O), ACC)
            for part in range(PARTS):
                total += tl.load(part_seen + (first + part * S * H)[:, None] * C + c[None, :], mask=inside, other=0.0)
            target = own[:, None] * 4 * C + c[None, :]
            tl.store(g_wide + target, total, mask=inside)
            scale = tl.load(norm_inputs_w + c, mask=c < C, other=0.0).to(ACC)
            shift = tl.load(norm_inputs_b + c, mask=c < C, other=0.0).to(ACC)
            tl.store(g_wide + target + C, total * scale[None, :] + in_offset[:, None] * shift[None, :], mask=inside)
    tl.debug_barrier()
    for head in range(H):
        own = index * H + head
        in_offset = tl.load(g_scalars + own * 2, mask=row_mask, other=0.0)
        for start in range(0, width, BLOCK_O):
            o = start + tl.arange(0, BLOCK_O)
            query = tl.zeros((BLOCK_R, BLOCK_O), ACC)
            weight = key_w + head * width * C
            query = multiply(
                g_wide, own * 4 * C + C, row_mask, C, weight, 1, C, o, width, query, PRECISION, ACC, BLOCK_K
            )
            if KEY_BIAS:
                bias = tl.load(key_b + head * width + o, mask=o < width, other=0.0).to(ACC)
                query += in_offset[:, None] * bias[None, :]
            target = (g_at + 2 * D + head * width)[:, None] + o[None, :]
            tl.store(g_rows + target, query * factor, mask=row_mask[:, None] & (o[None, :] < width))
    tl.debug_barrier()
    for start in range(0, D, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        normed = tl.zeros((BLOCK_R, BLOCK_O), ACC)
        normed = multiply(g_rows, g_at + 2 * D, row_mask, D, query_w, D, 1, o, D, normed, PRECISION, ACC, BLOCK_K)
        tl.store(g_rows + (g_at + D)[:, None] + o[None, :], normed, mask=row_mask[:, None] & (o[None, :] < D))
    tl.debug_barrier()
    mean, inverse, level, length = norm_gradient_sums(
        rows, at, g_rows, g_at + D, row_mask, D, norm_slots_w, ACC, BLOCK_R, BLOCK_O
    )
    for start in range(0, D, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        inside = row_mask[:, None] & (o[None, :] < D)
        change = norm_gradient(
            rows, at, g_rows, g_at + D, o, inside, D, norm_slots_w, mean, inverse, level, length, ACC
        )
        target = g_rows + g_at[:, None] + o[None, :]
        change += tl.load(target, mask=inside, other=0.0)
        tl.debug_barrier()  # every thread has read before one writes
        tl.store(target, change, mask=inside)


@triton.jit
def perceptron_backward(
    rows, g_rows, row_mask, at, g_at, g_after, D, F, norm_mlp_w, mlp_in_w, mlp_out_w, GELU: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Through the residual MLP and into the gates of the GRU; the state's own share of the gradient."""
    for start in range(0, F, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        inside = row_mask[:, None] & (o[None, :] < F)
        hidden = tl.zeros((BLOCK_R, BLOCK_O), ACC)
        hidden = multiply(g_rows, g_after, row_mask, D, mlp_out_w, F, 1, o, F, hidden, PRECISION, ACC, BLOCK_K)
        before = tl.load(rows + (at + 10 * D)[:, None] + o[None, :], mask=inside, other=0.0)
        hidden *= activation_slope(before, GELU)
        tl.store(g_rows + (g_at + 9 * D)[:, None] + o[None, :], hidden, mask=inside)
    tl.debug_barrier()
    for start in range(0, D, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        normed = tl.zeros((BLOCK_R, BLOCK_O), ACC)
        normed = multiply(g_rows, g_at + 9 * D, row_mask, F, mlp_in_w, D, 1, o, D, normed, PRECISION, ACC, BLOCK_K)
        tl.store(g_rows + (g_at + 8 * D)[:, None] + o[None, :], normed, mask=row_mask[:, None] & (o[None, :] < D))
    tl.debug_barrier()
    mean, inverse, level, length = norm_gradient_sums(
        rows, at + 8 * D, g_rows, g_at + 8 * D, row_mask, D, norm_mlp_w, ACC, BLOCK_R, BLOCK_O
    )
    for start in range(0, D, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        inside = row_mask[:, None] & (o[None, :] < D)
        pull = norm_gradient(
            rows, at + 8 * D, g_rows, g_at + 8 * D, o, inside, D, norm_mlp_w, mean, inverse, level, length, ACC
        )
        pull += tl.load(g_rows + g_after[:, None] + o[None, :], mask=inside, other=0.0)
        place = rows + at[:, None] + o[None, :]
        state = tl.load(place, mask=inside, other=0.0)
        reset = tl.load(place + 4 * D, mask=inside, other=0.0)
        keep = tl.load(place + 5 * D, mask=inside, other=0.0)
        candidate = tl.load(place + 6 * D, mask=inside, other=0.0)
        of_state = tl.load(place + 7 * D, mask=inside, other=0.0)
        in_candidate = pull * (1.0 - keep) * (1.0 - candidate * candidate)
        target = g_rows + g_at[:, None] + o[None, :]
        tl.store(target + 4 * D, in_candidate * of_state * reset * (1.0 - reset), mask=inside)
        tl.store(target + 5 * D, pull * (state - candidate) * keep * (1.0 - keep), mask=inside)
        tl.store(target + 6 * D, in_candidate, mask=inside)
        tl.store(target + 7 * D, in_candidate * reset, mask=inside)
        tl.store(target, pull * keep, mask=inside)
    tl.debug_barrier()


@triton.jit
def recur_backward(
    rows, wide, scalars, g_rows, g_wide, g_scalars, index, row_mask, g_at, D, C, H,
    norm_inputs_w, value_w, gru_ih, gru_hh,
    PRECISION: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """From the gates to state and updates, and from these to the sums that a pass over the inputs gave."""
    width = D // H
    for start in range(0, D, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        inside = row_mask[:, None] & (o[None, :] < D)
        update = tl.zeros((BLOCK_R, BLOCK_O), ACC)
        state = tl.load(g_rows + g_at[:, None] + o[None, :], mask=inside, other=0.0)
        for which in range(3):
            block = which * D * D
            source = g_at + (4 + which) * D
            update = multiply(g_rows, source, row_mask, D, gru_ih + block, D, 1, o, D, update, PRECISION, ACC, BLOCK_K)
            source += (which // 2) * D  # the state's share of the candidate has a gradient of its own
            state = multiply(g_rows, source, row_mask, D, gru_hh + block, D, 1, o, D, state, PRECISION, ACC, BLOCK_K)
        tl.store(g_rows + (g_at + 3 * D)[:, None] + o[None, :], update, mask=inside)
        tl.debug_barrier()  # every thread has read the state's gradient before one writes
        tl.store(g_rows + g_at[:, None] + o[None, :], state, mask=inside)
    tl.debug_barrier()
    for head in range(H):
        own = index * H + head
        total = tl.load(scalars + own * 2 + 1, mask=row_mask, other=1.0)
        level = tl.zeros((BLOCK_R,), ACC)
        for start in range(0, C, BLOCK_O):
            c = start + tl.arange(0, BLOCK_O)
            inside = row_mask[:, None] & (c[None, :] < C)
            moved = tl.zeros((BLOCK_R, BLOCK_O), ACC)
            source = g_at + 3 * D + head * width
            weight = value_w + head * width * C
            moved = multiply(g_rows, source, row_mask, width, weight, C, 1, c, C, moved, PRECISION, ACC, BLOCK_K)
            target = own[:, None] * 4 * C + c[None, :]
            tl.store(g_wide + target + 3 * C, moved, mask=inside)
            scale = tl.load(norm_inputs_w + c, mask=c < C, other=0.0).to(ACC)
            push = moved * scale[None, :] / total[:, None]
            tl.store(g_wide + target + 2 * C, push, mask=inside)
            average = tl.load(wide + own[:, None] * 3 * C + C + c[None, :], mask=inside, other=0.0)
            level += tl.sum(push * average, 1)
        tl.store(g_scalars + own * 2 + 1, -level, mask=row_mask)


@triton.jit(do_not_specialize=["ITERATION"])
def update_backward_kernel(
    part_seen, part_offset, rows, wide, scalars, g_rows, g_wide, g_scalars, ITERATION, R, S, D, C, F, H, PARTS, factor,
    norm_inputs_w, norm_inputs_b, norm_slots_w, query_w, key_w, value_w,
    gru_ih, gru_hh, norm_mlp_w, mlp_in_w, mlp_out_w, key_b,
    QUERIES: tl.constexpr, UPDATE: tl.constexpr, GELU: tl.constexpr, KEY_BIAS: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # UPDATE: of this iteration; QUERIES: of the next one, before that
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    row_mask = row < R
    index = row + ITERATION * R
    at, g_at = index * (10 * D + 2 * F), index * (9 * D + F)
    g_after = (index + R) * (9 * D + F)
    if QUERIES:
        queries_backward(
            part_seen, part_offset, rows, g_rows, g_wide, g_scalars,
            row, index + R, row_mask, S, D, C, F, H, PARTS, factor,
            norm_inputs_w, norm_inputs_b, norm_slots_w, query_w, key_w, key_b,
            KEY_BIAS, PRECISION, ACC, BLOCK_R, BLOCK_O, BLOCK_K,
        )  # fmt: skip
        tl.debug_barrier()
    if UPDATE:
        perceptron_backward(
            rows, g_rows, row_mask, at, g_at, g_after, D, F, norm_mlp_w, mlp_in_w, mlp_out_w,
            GELU, PRECISION, ACC, BLOCK_R, BLOCK_O, BLOCK_K,
        )  # fmt: skip
        recur_backward(
            rows, wide, scalars, g_rows, g_wide, g_scalars, index, row_mask, g_at, D, C, H,
            norm_inputs_w, value_w, gru_ih, gru_hh, PRECISION, ACC, BLOCK_R, BLOCK_O, BLOCK_K,
        )  # fmt: skip
