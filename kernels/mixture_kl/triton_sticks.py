# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""Kumaraswamy sticks and their log weights in Triton, forward and backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..elementary import accumulator, expm1, log1p
from ..launch import launcher
from .eager import SERIES_BELOW

LOG_2 = tl.constexpr(0.6931471805599453)
SERIES = tl.constexpr(SERIES_BELOW[torch.float32])
SERIES_DOUBLE = tl.constexpr(SERIES_BELOW[torch.float64])


@triton.jit
def log1mexp(t):
    """log(1 - exp(t)), t <= 0."""
    return tl.where(t > -LOG_2, tl.log(-expm1(t)), log1p(-tl.exp(t)))


@triton.jit
def series_below(ACC: tl.constexpr):
    """Below this t, 1 - x equals exp(t) / a to the last digit, as in eager.py."""
    return tl.full((), SERIES_DOUBLE if tl.float64 == ACC else SERIES, ACC)


@triton.jit
def stick_values(log_a, log_b, u, offsets, mask, ACC: tl.constexpr):
    """log_a, log_b, log u, t = log(1 - v^a), log v, log(1 - v); benign numbers where the mask is off."""
    a = tl.load(log_a + offsets, mask=mask, other=0.0).to(ACC)
    b = tl.load(log_b + offsets, mask=mask, other=0.0).to(ACC)
    noise = tl.load(u + offsets, mask=mask, other=0.5).to(ACC)
    noise = tl.where(noise < 1.4901161193847656e-08, 1.4901161193847656e-08, noise)  # 2^-26; NaN stays
    noise = tl.where(noise > 0.9999999403953552, 0.9999999403953552, noise)  # 1 - 2^-24
    log_u = tl.log(noise)
    t = log_u * tl.exp(-b)
    log_v = log1mexp(t) * tl.exp(-a)
    log_rest = tl.where(t < series_below(ACC), t - a, log1mexp(log_v))
    return a, b, log_u, t, log_v, log_rest


@triton.jit
def sticks_kernel(
    log_a, log_b, u, log_pi, log_v, log_q, N, K,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
    k = tl.arange(0, BLOCK_K)[None, :]
    rows = n < N
    stick = rows & (k < K - 1)
    offsets = n * (K - 1) + k
    a, b, log_uniform, t, log_stick, _ = stick_values(log_a, log_b, u, offsets, stick, ACC)
    tl.store(log_v + offsets, log_stick, mask=stick)
    tl.store(log_q + offsets, a + b + (tl.exp(a) - 1.0) * log_stick + log_uniform - t, mask=stick)
    # weight k takes what the sticks before it left: the same values one stick to the left, summed up
    before = rows & (k > 0) & (k < K)
    _, _, _, _, _, log_rest = stick_values(log_a, log_b, u, offsets - 1, before, ACC)
    left = tl.cumsum(tl.where(before, log_rest, 0.0), 1)
    tl.store(log_pi + n * K + k, left + tl.where(stick, log_stick, 0.0), mask=rows & (k < K))


@triton.jit
def sticks_backward_kernel(
    log_a, log_b, u, g_pi, g_v, g_q, g_a, g_b, N, K,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
    k = tl.arange(0, BLOCK_K)[None, :]
    stick = (n < N) & (k < K - 1)
    offsets = n * (K - 1) + k
    a, _, _, t, log_stick, _ = stick_values(log_a, log_b, u, offsets, stick, ACC)
    weight = n * K + k
    own = tl.load(g_pi + weight, mask=stick, other=0.0).to(ACC)
    later = tl.load(g_pi + weight + 1, mask=stick, other=0.0).to(ACC)
    g_rest = tl.cumsum(later, 1, reverse=True)  # every weight after this stick
    g_density = tl.load(g_q + offsets, mask=stick, other=0.0).to(ACC)
    a_value = tl.exp(a)
    series = t < series_below(ACC)
    g_log_v = own + tl.load(g_v + offsets, mask=stick, other=0.0).to(ACC) + g_density * (a_value - 1.0)
    g_log_v -= tl.where(series, 0.0, g_rest / expm1(tl.where(series, 1.0, -log_stick)))
    through_series = tl.where(series, g_rest, 0.0)
    g_t = through_series - g_log_v / (a_value * expm1(-t))
    tl.store(g_a + offsets, -g_log_v * log_stick - through_series + g_density * (1.0 + a_value * log_stick), mask=stick)
    tl.store(g_b + offsets, -g_t * t + g_density * (1.0 + t), mask=stick)


def stick_blocks(weights: int) -> dict[str, int]:
    block_k = max(2, triton.next_power_of_2(weights))
    return {"BLOCK_N": max(1, 512 // block_k), "BLOCK_K": block_k, "num_warps": 4}


@launcher
def stick_log_weights(log_a: Tensor, log_b: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, K - 1) sticks to log_pi (N, K), log_v and log_q_v (N, K - 1); inputs of one dtype."""
    log_a, log_b, u = log_a.contiguous(), log_b.contiguous(), u.contiguous()
    rows, sticks = log_a.shape
    log_pi = log_a.new_empty(rows, sticks + 1)
    log_v, log_q = torch.empty_like(log_a), torch.empty_like(log_a)
    if rows:
        blocks = stick_blocks(sticks + 1)
        sticks_kernel[(triton.cdiv(rows, blocks["BLOCK_N"]),)](
            log_a, log_b, u, log_pi, log_v, log_q, rows, sticks + 1, ACC=accumulator(log_a.dtype), **blocks
        )
    return log_pi, log_v, log_q


@launcher
def stick_log_weights_backward(
    log_a: Tensor, log_b: Tensor, u: Tensor, g_pi: Tensor, g_v: Tensor, g_q: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of log_a and log_b."""
    log_a, log_b, u, g_pi, g_v, g_q = (tensor.contiguous() for tensor in (log_a, log_b, u, g_pi, g_v, g_q))
    rows, sticks = log_a.shape
    g_a, g_b = torch.empty_like(log_a), torch.empty_like(log_b)
    if rows and sticks:
        blocks = stick_blocks(sticks)
        sticks_backward_kernel[(triton.cdiv(rows, blocks["BLOCK_N"]),)](
            log_a, log_b, u, g_pi, g_v, g_q, g_a, g_b, rows, sticks + 1, ACC=accumulator(log_a.dtype), **blocks
        )
    return g_a, g_b
