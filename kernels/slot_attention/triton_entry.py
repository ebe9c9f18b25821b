# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""Slot attention of small slots in Triton: a program runs all iterations of one batch entry, forward or backward.

Rows of up to 32 channels fit in registers, so that the slots of an entry (16 rows of a tile) go from one product to the
next without memory and barriers between, and the two launches an iteration of triton.py and triton_slots.py become one
in all. What is left for the backward pass and the weights' gradients is what those kernels leave: the workspaces of
triton_slots.py. Statistics of the inputs' LayerNorm come from the tile that is in registers anyway. One head.
"""

import triton
import triton.language as tl

from ..elementary import tanh
from .triton import NORM_EPS, competition, normalised
from .triton_slots import activate, activation_slope, sigmoid


@triton.jit
def product(
    left,
    weight,
    k,
    K: tl.constexpr,
    w_k: tl.constexpr,
    o,
    width: tl.constexpr,
    w_o: tl.constexpr,
    result,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):
    """result + left (rows, all of k) times weight[k, o]; zeros beyond K and width."""
    inside = (k[:, None] < K) & (o[None, :] < width)
    right = tl.load(weight + k[:, None] * w_k + o[None, :] * w_o, mask=inside, other=0.0).to(ACC)
    return tl.dot(left, right, result, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def vector(source, o, width: tl.constexpr, ACC: tl.constexpr):
    """A parameter of width values as a row (1, o), zeros beyond."""
    return tl.load(source + o, mask=o < width, other=0.0).to(ACC)[None, :]


@triton.jit
def read(source, at, valid, o, width: tl.constexpr):
    """Rows of a workspace (rows, o), zeros beyond width and in absent rows."""
    return tl.load(source + at[:, None] + o[None, :], mask=valid[:, None] & (o[None, :] < width), other=0.0)


@triton.jit
def keep(target, at, valid, o, width: tl.constexpr, values):
    """The other way."""
    tl.store(target + at[:, None] + o[None, :], values, mask=valid[:, None] & (o[None, :] < width))


@triton.jit
def unit_rows(values, o, width: tl.constexpr):
    """LayerNorm without affine part of whole rows (rows, o), and 1 / standard deviation (rows, 1)."""
    centred = tl.where(o[None, :] < width, values - (tl.sum(values, 1) / width)[:, None], 0.0)
    spread = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + NORM_EPS)
    return centred * spread[:, None], spread[:, None]


@triton.jit
def unit_rows_backward(unit, spread, pull, o, width: tl.constexpr):
    """Gradient of the values from that of `unit_rows`; `pull` is zero beyond width."""
    level = (tl.sum(pull, 1) / width)[:, None]
    length = (tl.sum(pull * unit, 1) / width)[:, None]
    return tl.where(o[None, :] < width, spread * (pull - level - unit * length), 0.0)


@triton.jit
def gates(
    update,
    slot,
    d,
    D: tl.constexpr,
    which: tl.constexpr,
    gru_ih,
    gru_hh,
    bias_ih,
    bias_hh,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):
    """Shares of update and state in a gate of the GRU, biases included."""
    block = which * D * D
    of_update = vector(bias_ih + which * D, d, D, ACC) + tl.zeros_like(slot)
    of_update = product(update, gru_ih + block, d, D, 1, d, D, D, of_update, PRECISION, ACC)
    of_state = vector(bias_hh + which * D, d, D, ACC) + tl.zeros_like(slot)
    return of_update, product(slot, gru_hh + block, d, D, 1, d, D, D, of_state, PRECISION, ACC)


@triton.jit
def entry_pass(
    inputs, mean, inverse, mask, attention, queries, shift, batch, iteration, last, s, c, valid, N, S,
    C: tl.constexpr, eps, x_b, x_n, x_c, m_b, m_n,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """A pass over an entry's inputs: sums of coefficient times normalised input (slots, c), and of coefficients."""
    numerator = tl.zeros_like(queries)
    denominator = tl.zeros((BLOCK_S,), ACC)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        at = inputs + batch * x_b + n[:, None].to(tl.int64) * x_n + c[None, :].to(tl.int64) * x_c
        x = tl.load(at, mask=(n[:, None] < N) & (c[None, :] < C), other=0.0).to(ACC)
        xn, spread = unit_rows(x, c, C)
        if iteration == 0:
            tl.store(mean + batch * N + n, tl.sum(x, 1) / C, mask=n < N)
            tl.store(inverse + batch * N + n, tl.sum(spread, 1), mask=n < N)
        logits = tl.zeros((BLOCK_N, BLOCK_S), ACC)
        logits = tl.dot(xn, tl.trans(queries), logits, input_precision=PRECISION, out_dtype=ACC)
        share = competition(logits + shift[None, :], s, s * 0, S, 1, BLOCK_N, BLOCK_S, 1)
        present = (n[:, None] < N) & valid[None, :]
        if iteration == last:
            tl.store(attention + (batch * S + s[None, :]) * N + n[:, None], share, mask=present)
        if MASKED:
            present = present & (tl.load(mask + batch * m_b + n * m_n, mask=n < N, other=0) != 0)[:, None]
        weight = tl.where(present, share + eps, 0.0)
        denominator += tl.sum(weight, 0)
        numerator = tl.dot(tl.trans(weight), xn, numerator, input_precision=PRECISION, out_dtype=ACC)
    return numerator, denominator


@triton.jit
def entry_update(
    slot, moved, rows, at, valid, c, d, f, C: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
    value_w, value_b, gru_ih, gru_hh, gru_bias_ih, gru_bias_hh,
    norm_mlp_w, norm_mlp_b, mlp_in_w, mlp_in_b, mlp_out_w, mlp_out_b,
    GELU: tl.constexpr, VALUE_BIAS: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """From slots and mean inputs to the slots of the next iteration."""
    update = tl.zeros_like(slot)
    update = product(moved, value_w, c, C, 1, d, D, C, update, PRECISION, ACC)
    if VALUE_BIAS:
        update += vector(value_b, d, D, ACC)
    keep(rows, at + 3 * D, valid, d, D, update)
    of_update, of_state = gates(update, slot, d, D, 0, gru_ih, gru_hh, gru_bias_ih, gru_bias_hh, PRECISION, ACC)
    reset = sigmoid(of_update + of_state)
    keep(rows, at + 4 * D, valid, d, D, reset)
    of_update, of_state = gates(update, slot, d, D, 2, gru_ih, gru_hh, gru_bias_ih, gru_bias_hh, PRECISION, ACC)
    keep(rows, at + 7 * D, valid, d, D, of_state)
    candidate = tanh(of_update + reset * of_state)
    keep(rows, at + 6 * D, valid, d, D, candidate)
    of_update, of_state = gates(update, slot, d, D, 1, gru_ih, gru_hh, gru_bias_ih, gru_bias_hh, PRECISION, ACC)
    share = sigmoid(of_update + of_state)
    keep(rows, at + 5 * D, valid, d, D, share)
    state = candidate + share * (slot - candidate)
    keep(rows, at + 8 * D, valid, d, D, state)
    unit, _ = unit_rows(state, d, D)
    normed = unit * vector(norm_mlp_w, d, D, ACC) + vector(norm_mlp_b, d, D, ACC)
    keep(rows, at + 9 * D, valid, d, D, normed)
    hidden = tl.zeros((BLOCK_S, BLOCK_F), ACC) + vector(mlp_in_b, f, F, ACC)
    hidden = product(normed, mlp_in_w, d, D, 1, f, F, D, hidden, PRECISION, ACC)
    keep(rows, at + 10 * D, valid, f, F, hidden)
    active = activate(hidden, GELU)
    keep(rows, at + 10 * D + F, valid, f, F, active)
    return product(active, mlp_out_w, f, F, 1, d, D, F, state + vector(mlp_out_b, d, D, ACC), PRECISION, ACC)


@triton.jit
def entry_kernel(
    inputs, slots, mean, inverse, mask, rows, wide, scalars, out, attention, R, N, S, ITERATIONS, eps, factor,
    x_b, x_n, x_c, s_b, s_s, s_d, m_b, m_n,
    norm_inputs_w, norm_inputs_b, norm_slots_w, norm_slots_b, query_w, key_w, value_w,
    gru_ih, gru_hh, gru_bias_ih, gru_bias_hh, norm_mlp_w, norm_mlp_b, mlp_in_w, mlp_in_b, mlp_out_w, mlp_out_b,
    query_b, key_b, value_b,
    MASKED: tl.constexpr, GELU: tl.constexpr,
    QUERY_BIAS: tl.constexpr, KEY_BIAS: tl.constexpr, VALUE_BIAS: tl.constexpr,
    C: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    s, c = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_C)
    d, f = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F)
    valid = s < S
    first = slots + batch * s_b + s[:, None].to(tl.int64) * s_s + d[None, :].to(tl.int64) * s_d
    slot = tl.load(first, mask=valid[:, None] & (d[None, :] < D), other=0.0).to(ACC)
    for iteration in tl.range(ITERATIONS, disable_licm=True):  # hoisted addresses would fill the registers
        index = batch * S + s + iteration * R
        at = index * (10 * D + 2 * F)
        keep(rows, at, valid, d, D, slot)
        unit, _ = unit_rows(slot, d, D)
        normed = unit * vector(norm_slots_w, d, D, ACC) + vector(norm_slots_b, d, D, ACC)
        keep(rows, at + D, valid, d, D, normed)
        query = product(normed, query_w, d, D, 1, d, D, D, tl.zeros_like(slot), PRECISION, ACC)
        if QUERY_BIAS:
            query += vector(query_b, d, D, ACC)
        query *= factor
        keep(rows, at + 2 * D, valid, d, D, query)
        seen = tl.zeros((BLOCK_S, BLOCK_C), ACC)
        seen = product(query, key_w, d, D, C, c, C, 1, seen, PRECISION, ACC)
        keep(wide, index * 3 * C, valid, c, C, seen)
        shift = tl.sum(seen * vector(norm_inputs_b, c, C, ACC), 1)
        if KEY_BIAS:
            shift += tl.sum(query * vector(key_b, d, D, ACC), 1)
        tl.store(scalars + index * 2, shift, mask=valid)
        scale = vector(norm_inputs_w, c, C, ACC)
        numerator, total = entry_pass(
            inputs, mean, inverse, mask, attention, seen * scale, shift, batch, iteration, ITERATIONS - 1,
            s, c, valid, N, S, C, eps, x_b, x_n, x_c, m_b, m_n, MASKED, PRECISION, ACC, BLOCK_N, BLOCK_S,
        )  # fmt: skip
        total = tl.where(valid, total, 1.0)
        tl.store(scalars + index * 2 + 1, total, mask=valid)
        means = numerator / total[:, None]
        keep(wide, index * 3 * C + C, valid, c, C, means)
        moved = means * scale + vector(norm_inputs_b, c, C, ACC)
        keep(wide, index * 3 * C + 2 * C, valid, c, C, moved)
        slot = entry_update(
            slot, moved, rows, at, valid, c, d, f, C, D, F, value_w, value_b, gru_ih, gru_hh, gru_bias_ih, gru_bias_hh,
            norm_mlp_w, norm_mlp_b, mlp_in_w, mlp_in_b, mlp_out_w, mlp_out_b,
            GELU, VALUE_BIAS, PRECISION, ACC, BLOCK_S, BLOCK_F,
        )  # fmt: skip
    keep(out, (batch * S + s) * D, valid, d, D, slot)


@triton.jit
def entry_update_backward(
    pull, state, rows, g_rows, at, g_at, valid, d, f, D: tl.constexpr, F: tl.constexpr,
    gru_ih, gru_hh, norm_mlp_w, mlp_in_w, mlp_out_w,
    GELU: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """From the gradient of an iteration's slots to those of the slots before, by way of the GRU, and of the updates."""
    hidden = tl.zeros((BLOCK_S, BLOCK_F), ACC)
    hidden = product(pull, mlp_out_w, d, D, F, f, F, 1, hidden, PRECISION, ACC)
    hidden *= activation_slope(read(rows, at + 10 * D, valid, f, F), GELU)
    keep(g_rows, g_at + 9 * D, valid, f, F, hidden)
    normed = product(hidden, mlp_in_w, f, F, D, d, D, 1, tl.zeros_like(pull), PRECISION, ACC)
    keep(g_rows, g_at + 8 * D, valid, d, D, normed)
    unit, spread = unit_rows(read(rows, at + 8 * D, valid, d, D), d, D)
    pull += unit_rows_backward(unit, spread, normed * vector(norm_mlp_w, d, D, ACC), d, D)
    reset, share = read(rows, at + 4 * D, valid, d, D), read(rows, at + 5 * D, valid, d, D)
    candidate = read(rows, at + 6 * D, valid, d, D)
    in_candidate = pull * (1.0 - share) * (1.0 - candidate * candidate)
    in_reset = in_candidate * read(rows, at + 7 * D, valid, d, D) * reset * (1.0 - reset)
    in_share = pull * (state - candidate) * share * (1.0 - share)
    in_state = in_candidate * reset
    keep(g_rows, g_at + 4 * D, valid, d, D, in_reset)
    keep(g_rows, g_at + 5 * D, valid, d, D, in_share)
    keep(g_rows, g_at + 6 * D, valid, d, D, in_candidate)
    keep(g_rows, g_at + 7 * D, valid, d, D, in_state)
    update = product(in_reset, gru_ih, d, D, D, d, D, 1, tl.zeros_like(pull), PRECISION, ACC)
    update = product(in_share, gru_ih + D * D, d, D, D, d, D, 1, update, PRECISION, ACC)
    update = product(in_candidate, gru_ih + 2 * D * D, d, D, D, d, D, 1, update, PRECISION, ACC)
    keep(g_rows, g_at + 3 * D, valid, d, D, update)
    before = product(in_reset, gru_hh, d, D, D, d, D, 1, pull * share, PRECISION, ACC)
    before = product(in_share, gru_hh + D * D, d, D, D, d, D, 1, before, PRECISION, ACC)
    return product(in_state, gru_hh + 2 * D * D, d, D, D, d, D, 1, before, PRECISION, ACC), update


@triton.jit
def entry_pass_backward(
    inputs, mean, inverse, mask, g_attention, weights, in_logits, along, flat,
    queries, shift, directions, pushed, batch, step, last, s, c, valid, row, N, S, C: tl.constexpr, eps,
    x_b, x_n, x_c, m_b, m_n, a_b, a_s, a_n,
    MASKED: tl.constexpr, ATTENTION: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """As attend_backward_kernel: coefficients of the inputs' gradient go to memory, seen queries' gradient returns."""
    in_seen = tl.zeros_like(queries)
    in_offset = tl.zeros((BLOCK_S,), ACC)
    query_sum, push_sum = tl.sum(queries, 1), tl.sum(directions, 1)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        centre = tl.load(mean + batch * N + n, mask=n < N, other=0.0)
        spread = tl.load(inverse + batch * N + n, mask=n < N, other=0.0)
        xn = normalised(inputs + batch * x_b + n.to(tl.int64) * x_n, c, n < N, C, x_c, centre, spread, ACC)
        products = tl.zeros((BLOCK_N, BLOCK_S), ACC)  # with the queries
        products = tl.dot(xn, tl.trans(queries), products, input_precision=PRECISION, out_dtype=ACC)
        pushes = tl.zeros((BLOCK_N, BLOCK_S), ACC)  # with the gradients of the sums
        pushes = tl.dot(xn, tl.trans(directions), pushes, input_precision=PRECISION, out_dtype=ACC)
        share = competition(products + shift[None, :], s, s * 0, S, 1, BLOCK_N, BLOCK_S, 1)
        present = (n[:, None] < N) & valid[None, :]
        counted = present
        if MASKED:
            counted = present & (tl.load(mask + batch * m_b + n * m_n, mask=n < N, other=0) != 0)[:, None]
        in_share = tl.where(counted, pushes + pushed[None, :], 0.0)
        if ATTENTION:
            at = batch * a_b + s[None, :].to(tl.int64) * a_s + n[:, None].to(tl.int64) * a_n
            in_share += tl.load(g_attention + at, mask=present & last, other=0.0).to(ACC)
        share = tl.where(present, share, 0.0)
        agreed = share * in_share
        in_logit = agreed - share * tl.sum(agreed, 1)[:, None]
        weight = tl.where(counted, share + eps, 0.0)
        at = step + row[None, :] * N + n[:, None]
        tl.store(weights + at, weight, mask=present)
        tl.store(in_logits + at, in_logit, mask=present)
        in_offset += tl.sum(in_logit, 0)
        in_seen = tl.dot(tl.trans(in_logit), xn, in_seen, input_precision=PRECISION, out_dtype=ACC)
        lengths = tl.sum(weight * pushes + in_logit * products, 1)
        levels = tl.sum(weight * push_sum[None, :] + in_logit * query_sum[None, :], 1)
        # of the iterations after this one; nothing yet in the last
        lengths += tl.load(along + batch * N + n, mask=(n < N) & (last == 0), other=0.0)
        levels += tl.load(flat + batch * N + n, mask=(n < N) & (last == 0), other=0.0)
        tl.debug_barrier()  # every thread has read before one writes
        tl.store(along + batch * N + n, lengths, mask=n < N)
        tl.store(flat + batch * N + n, levels, mask=n < N)
    return in_seen, in_offset


@triton.jit
def entry_backward_kernel(
    g_slots, g_attention, inputs, mean, inverse, mask, rows, wide, scalars, g_rows, g_wide, g_scalars,
    weights, in_logits, along, flat, R, N, S, ITERATIONS, FIRST, eps, factor,
    x_b, x_n, x_c, g_b, g_s, g_d, m_b, m_n, a_b, a_s, a_n,
    norm_inputs_w, norm_inputs_b, norm_slots_w, query_w, key_w, value_w, gru_ih, gru_hh,
    norm_mlp_w, mlp_in_w, mlp_out_w, key_b,
    MASKED: tl.constexpr, ATTENTION: tl.constexpr, GELU: tl.constexpr, KEY_BIAS: tl.constexpr,
    C: tl.constexpr, D: tl.constexpr, F: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    s, c = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_C)
    d, f = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_F)
    valid = s < S
    row = batch * S + s
    upstream = g_slots + batch * g_b + s[:, None].to(tl.int64) * g_s + d[None, :].to(tl.int64) * g_d
    pull = tl.load(upstream, mask=valid[:, None] & (d[None, :] < D), other=0.0).to(ACC)
    keep(g_rows, (row + ITERATIONS * R) * (9 * D + F), valid, d, D, pull)
    scale = vector(norm_inputs_w, c, C, ACC)
    for back in tl.range(ITERATIONS - FIRST, disable_licm=True):
        iteration = ITERATIONS - 1 - back
        step = tl.zeros((), tl.int64) + (iteration - FIRST)
        index = row + iteration * R
        at, g_at = index * (10 * D + 2 * F), index * (9 * D + F)
        state = read(rows, at, valid, d, D)
        before, update = entry_update_backward(
            pull, state, rows, g_rows, at, g_at, valid, d, f, D, F, gru_ih, gru_hh, norm_mlp_w, mlp_in_w, mlp_out_w,
            GELU, PRECISION, ACC, BLOCK_S, BLOCK_F,
        )  # fmt: skip
        moved = tl.zeros((BLOCK_S, BLOCK_C), ACC)
        moved = product(update, value_w, d, D, C, c, C, 1, moved, PRECISION, ACC)
        keep(g_wide, index * 4 * C + 3 * C, valid, c, C, moved)
        total = tl.load(scalars + index * 2 + 1, mask=valid, other=1.0)
        push = moved * scale / total[:, None]
        keep(g_wide, index * 4 * C + 2 * C, valid, c, C, push)
        pushed = -tl.sum(push * read(wide, index * 3 * C + C, valid, c, C), 1)
        tl.store(g_scalars + index * 2 + 1, pushed, mask=valid)
        queries = read(wide, index * 3 * C, valid, c, C) * scale
        shift = tl.load(scalars + index * 2, mask=valid, other=0.0)
        in_seen, in_offset = entry_pass_backward(
            inputs, mean, inverse, mask, g_attention, weights, in_logits, along, flat,
            queries, shift, push, pushed, batch, step * R * N, back == 0,
            s, c, valid, row, N, S, C, eps, x_b, x_n, x_c, m_b, m_n, a_b, a_s, a_n,
            MASKED, ATTENTION, PRECISION, ACC, BLOCK_N, BLOCK_S,
        )  # fmt: skip
        tl.store(g_scalars + index * 2, in_offset, mask=valid)
        keep(g_wide, index * 4 * C, valid, c, C, in_seen)
        in_seen = in_seen * scale + in_offset[:, None] * vector(norm_inputs_b, c, C, ACC)
        keep(g_wide, index * 4 * C + C, valid, c, C, in_seen)
        query = product(in_seen, key_w, c, C, 1, d, D, C, tl.zeros_like(pull), PRECISION, ACC)
        if KEY_BIAS:
            query += in_offset[:, None] * vector(key_b, d, D, ACC)
        query *= factor
        keep(g_rows, g_at + 2 * D, valid, d, D, query)
        normed = product(query, query_w, d, D, D, d, D, 1, tl.zeros_like(pull), PRECISION, ACC)
        keep(g_rows, g_at + D, valid, d, D, normed)
        unit, spread = unit_rows(state, d, D)
        pull = before + unit_rows_backward(unit, spread, normed * vector(norm_slots_w, d, D, ACC), d, D)
        keep(g_rows, g_at, valid, d, D, pull)
        tl.debug_barrier()  # sums along the inputs are read again by other threads
