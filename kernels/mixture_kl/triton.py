# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""Sticks, mixture log-density and KL in Triton.

Mixture: components are per row in AIME, so the floor is one reading of means and scales. One program owns a row, keeps
a tile of K x D of them in registers and runs all samples past it (online log-sum-exp over tiles of K); the backward
pass runs the samples past the same tile again and writes each gradient once, without atomics. Shared components are
the same kernel with a row stride of 0; a fixed number of programs then walks over the rows and their partial sums are
added up.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..elementary import accumulator, all_registers, expm1, log1p
from ..launch import launcher
from .eager import SERIES_BELOW

TILE = 2048  # elements of one K x D tile; forward keeps two in registers, backward six
SAMPLE_TILE = 4096  # components times samples that the forward pass holds
SHARED_PROGRAMS = 256  # of the backward pass with shared components: two for each of some 130 processors
LOG_2PI = tl.constexpr(1.8378770664093453)
LOG_2 = tl.constexpr(0.6931471805599453)
SERIES = tl.constexpr(SERIES_BELOW[torch.float32])
SERIES_DOUBLE = tl.constexpr(SERIES_BELOW[torch.float64])


@triton.jit
def log1mexp(t):
    """log(1 - exp(t)), t <= 0."""
    return tl.where(t > -LOG_2, tl.log(-expm1(t)), log1p(-tl.exp(t)))


@triton.jit
def half_log_2pi(D, ACC: tl.constexpr):
    """D / 2 log(2 pi). A constant times a scalar would be a float32, off by 1.9e-6 at D = 64, whatever ACC is."""
    return tl.full((), 0.5 * LOG_2PI, ACC) * D


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


@triton.jit
def load_sample(
    z, mean_q, log_scale_q, s, n, d, valid, z_s, z_n, z_d, q_n, q_d, r_n, r_d,
    FROM_Q: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sample s of row n; with FROM_Q from noise. Also the noise times the scale, for the gradient."""
    sample = tl.zeros((), tl.int64) + s  # a 64-bit offset, also where the interpreter counts in Python
    value = tl.load(z + sample * z_s + n * z_n + d * z_d, mask=valid, other=0.0).to(ACC)
    if FROM_Q:
        spread = tl.exp(tl.load(log_scale_q + n * r_n + d * r_d, mask=valid, other=0.0).to(ACC)) * value
        return tl.load(mean_q + n * q_n + d * q_d, mask=valid, other=0.0).to(ACC) + spread, spread
    return value, value


@triton.jit
def log_prob_kernel(
    z, mean_q, log_scale_q, log_pi, means, log_scales, result, kl,
    S, N, K, D, z_s, z_n, z_d, q_n, q_d, r_n, r_d, p_n, p_k, m_n, m_k, m_d, c_n, c_k, c_d,
    FROM_Q: tl.constexpr, ACC: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    valid = d < D
    highest = tl.full((BLOCK_S,), float("-inf"), ACC)
    total = tl.zeros((BLOCK_S,), ACC)
    for start in range(0, K, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        tile = (k[:, None] < K) & valid[None, :]
        mean = tl.load(means + n * m_n + k[:, None] * m_k + d[None, :] * m_d, mask=tile, other=0.0).to(ACC)
        log_scale = tl.load(log_scales + n * c_n + k[:, None] * c_k + d[None, :] * c_d, mask=tile, other=0.0).to(ACC)
        inverse = tl.exp(-log_scale)
        weight = tl.load(log_pi + n * p_n + k * p_k, mask=k < K, other=float("-inf")).to(ACC)
        constant = weight - tl.sum(log_scale, 1) - half_log_2pi(D, ACC)
        for s in range(S):
            sample, _ = load_sample(
                z, mean_q, log_scale_q, s, n, d, valid, z_s, z_n, z_d, q_n, q_d, r_n, r_d, FROM_Q, ACC
            )
            normalised = tl.where(tile, (sample[None, :] - mean) * inverse, 0.0)
            log_joint = constant - 0.5 * tl.sum(normalised * normalised, 1)
            now = lanes == s
            peak = tl.maximum(highest, tl.max(log_joint, 0))
            anchor = tl.where(peak == float("-inf"), 0.0, peak)
            added = total * tl.exp(highest - anchor) + tl.sum(tl.exp(log_joint[:, None] - anchor[None, :]), 0)
            total = tl.where(now, added, total)
            highest = tl.where(now, peak, highest)
    log_prob = highest + tl.log(total)
    tl.store(result + lanes.to(tl.int64) * N + n, log_prob, mask=lanes < S)
    if FROM_Q:
        log_scale_row = tl.load(log_scale_q + n * r_n + d * r_d, mask=valid, other=0.0).to(ACC)
        negative_entropy = -tl.sum(log_scale_row, 0) - half_log_2pi(D, ACC) - 0.5 * D
        tl.store(kl + n, negative_entropy - tl.sum(tl.where(lanes < S, log_prob, 0.0), 0) / S)


@triton.jit
def log_joint_kernel(
    z, log_pi, means, log_scales, result, S, N, K, D, z_s, z_n, z_d, p_n, p_k, m_n, m_k, m_d, c_n, c_k, c_d,
    ACC: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    valid = d < D
    for start in range(0, K, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        tile = (k[:, None] < K) & valid[None, :]
        mean = tl.load(means + n * m_n + k[:, None] * m_k + d[None, :] * m_d, mask=tile, other=0.0).to(ACC)
        log_scale = tl.load(log_scales + n * c_n + k[:, None] * c_k + d[None, :] * c_d, mask=tile, other=0.0).to(ACC)
        inverse = tl.exp(-log_scale)
        weight = tl.load(log_pi + n * p_n + k * p_k, mask=k < K, other=float("-inf")).to(ACC)
        constant = weight - tl.sum(log_scale, 1) - half_log_2pi(D, ACC)
        for s in range(S):
            sample, _ = load_sample(z, z, z, s, n, d, valid, z_s, z_n, z_d, 0, 0, 0, 0, False, ACC)
            normalised = tl.where(tile, (sample[None, :] - mean) * inverse, 0.0)
            place = ((tl.zeros((), tl.int64) + s) * N + n) * K + k
            tl.store(result + place, constant - 0.5 * tl.sum(normalised * normalised, 1), mask=k < K)


@triton.jit
def log_prob_backward_kernel(
    z, mean_q, log_scale_q, log_pi, means, log_scales, result, gradient,
    g_z, g_mean_q, g_log_scale_q, g_pi, g_means, g_scales,
    S, N, K, D, z_s, z_n, z_d, q_n, q_d, r_n, r_d, p_n, p_k, m_n, m_k, m_d, c_n, c_k, c_d, PROGRAMS,
    FROM_Q: tl.constexpr, SHARED: tl.constexpr, ACC: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # result (S, N), gradient (S, N) or, with FROM_Q, (N,) of the KL; g_* contiguous; g_means and g_scales have a row
    # per row, or with SHARED per program
    program = tl.program_id(0)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    valid = d < D
    for start in range(0, K, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        tile = (k[:, None] < K) & valid[None, :]
        g_mean = tl.zeros((BLOCK_K, BLOCK_D), ACC)
        g_scale = tl.zeros((BLOCK_K, BLOCK_D), ACC)
        for row in range(program, N, PROGRAMS):
            n = tl.zeros((), tl.int64) + row
            mean = tl.load(means + n * m_n + k[:, None] * m_k + d[None, :] * m_d, mask=tile, other=0.0).to(ACC)
            log_scale = tl.load(log_scales + n * c_n + k[:, None] * c_k + d[None, :] * c_d, mask=tile, other=0.0).to(
                ACC
            )
            inverse = tl.exp(-log_scale)
            weight = tl.load(log_pi + n * p_n + k * p_k, mask=k < K, other=float("-inf")).to(ACC)
            constant = weight - tl.sum(log_scale, 1) - half_log_2pi(D, ACC)
            g_weight = tl.zeros((BLOCK_K,), ACC)
            g_center = tl.zeros((BLOCK_D,), ACC)
            g_spread = tl.zeros((BLOCK_D,), ACC)
            for s in range(S):
                sample, spread = load_sample(
                    z, mean_q, log_scale_q, s, n, d, valid, z_s, z_n, z_d, q_n, q_d, r_n, r_d, FROM_Q, ACC
                )
                normalised = tl.where(tile, (sample[None, :] - mean) * inverse, 0.0)
                log_joint = constant - 0.5 * tl.sum(normalised * normalised, 1)
                place = (tl.zeros((), tl.int64) + s) * N + n
                if FROM_Q:
                    upstream = -tl.load(gradient + n).to(ACC) / S
                else:
                    upstream = tl.load(gradient + place).to(ACC)
                gap = log_joint - tl.load(result + place).to(ACC)
                # where densities of 1e8 and more leave a gap above 0 by rounding, that is no exponent to raise
                share = tl.exp(tl.where(gap > 0.0, 0.0, gap)) * upstream  # responsibility x gradient
                g_weight += share
                weighted = normalised * share[:, None]
                g_scale += weighted * normalised - tl.where(tile, share[:, None], 0.0)
                pull = weighted * inverse
                g_mean += pull
                g_sample = -tl.sum(pull, 0)
                if FROM_Q:
                    g_center += g_sample
                    g_spread += g_sample * spread
                else:
                    target = g_z + place * D + d
                    if start > 0:  # the same program wrote the share of the earlier components, perhaps other threads
                        tl.debug_barrier()
                        g_sample += tl.load(target, mask=valid, other=0.0).to(ACC)
                    tl.store(target, g_sample, mask=valid)
            tl.store(g_pi + n * K + k, g_weight, mask=k < K)
            if FROM_Q:
                target_center = g_mean_q + n * D + d
                target_spread = g_log_scale_q + n * D + d
                if start > 0:
                    tl.debug_barrier()
                    g_center += tl.load(target_center, mask=valid, other=0.0).to(ACC)
                    g_spread += tl.load(target_spread, mask=valid, other=0.0).to(ACC)
                else:
                    g_spread -= tl.load(gradient + n).to(ACC)  # of the entropy
                tl.store(target_center, g_center, mask=valid)
                tl.store(target_spread, g_spread, mask=valid)
            if not SHARED:
                own = n * K * D + k[:, None] * D + d[None, :]
                tl.store(g_means + own, g_mean, mask=tile)
                tl.store(g_scales + own, g_scale, mask=tile)
        if SHARED:
            own = program.to(tl.int64) * K * D + k[:, None] * D + d[None, :]
            tl.store(g_means + own, g_mean, mask=tile)
            tl.store(g_scales + own, g_scale, mask=tile)


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


def mixture_blocks(components: int, width: int, backward: bool, samples: int = 1) -> dict[str, int]:
    """Tile of K x D, and its warps.

    The compiler's registers decided: forward at 16 x 64 spills 8 bytes on sm_90 with 256 elements a warp and nothing
    with 512; at 4 x 512 8 bytes on sm_100 with 256 and 16 on sm_80 with 512, while 2 x 512 spills nowhere. The
    backward pass holds three times as many values a warp. The running log-sum-exp holds K x `samples` too: 32 x 1024
    spills 672 bytes on sm_100, so that many samples narrow the tile.
    """
    block_d = triton.next_power_of_2(width)
    tile = TILE // 2 if block_d > 128 and not backward else TILE
    block_k = max(1, min(triton.next_power_of_2(components), tile // block_d, SAMPLE_TILE // samples))
    per_warp = 256 if backward or block_d > 128 else 512
    warps = max(1, min(8, block_k * max(block_d, samples) // per_warp))
    return {"BLOCK_K": block_k, "BLOCK_D": block_d, "num_warps": warps, **all_registers()}


def strides(log_pi: Tensor, means: Tensor, log_scales: Tensor) -> tuple[int, ...]:
    """Strides of the mixture as the kernels take them; shared components do not move with the row."""
    component = [(0, *tensor.stride()) if tensor.dim() == 2 else tensor.stride() for tensor in (means, log_scales)]
    return (*log_pi.stride(), *component[0], *component[1])


@launcher
def mixture_log_prob(
    z: Tensor,
    log_pi: Tensor,
    means: Tensor,
    log_scales: Tensor,
    posterior: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """log-density (S, N), and with `posterior` = (mean_q, log_scale_q) the KL (N,), z being noise."""
    samples, rows, width = z.shape
    mean_q, log_scale_q = (z, z) if posterior is None else posterior
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    result = torch.empty(samples, rows, dtype=dtype, device=z.device)
    kl = torch.empty(rows if posterior is not None else 0, dtype=dtype, device=z.device)
    if rows and samples:
        q_strides = (0,) * 4 if posterior is None else (*mean_q.stride(), *log_scale_q.stride())
        block_s = triton.next_power_of_2(samples)
        log_prob_kernel[(rows,)](
            z, mean_q, log_scale_q, log_pi, means, log_scales, result, kl,
            samples, rows, log_pi.shape[1], width, *z.stride(), *q_strides, *strides(log_pi, means, log_scales),
            FROM_Q=posterior is not None, ACC=accumulator(dtype), BLOCK_S=block_s,
            **mixture_blocks(log_pi.shape[1], width, backward=False, samples=block_s),
        )  # fmt: skip
    return result, kl


@launcher
def mixture_log_joint(z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """log pi_k + log density of component k, (S, N, K)."""
    samples, rows, width = z.shape
    components = log_pi.shape[1]
    dtype = torch.float64 if z.dtype == torch.float64 else torch.float32
    result = torch.empty(samples, rows, components, dtype=dtype, device=z.device)
    if rows and samples:
        log_joint_kernel[(rows,)](
            z, log_pi, means, log_scales, result, samples, rows, components, width,
            *z.stride(), *strides(log_pi, means, log_scales), ACC=accumulator(dtype),
            **mixture_blocks(components, width, backward=False),
        )  # fmt: skip
    return result


@launcher
def mixture_log_prob_backward(
    gradient: Tensor,
    result: Tensor,
    z: Tensor,
    log_pi: Tensor,
    means: Tensor,
    log_scales: Tensor,
    posterior: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of (z or mean_q and log_scale_q), log_pi, means, log_scales."""
    samples, rows, width = z.shape
    components = log_pi.shape[1]
    shared, dtype = means.dim() == 2, result.dtype
    gradient = gradient.contiguous()
    programs = min(rows, SHARED_PROGRAMS) if shared else rows
    g_z = torch.empty(z.shape if posterior is None else 0, dtype=dtype, device=z.device)
    of_posterior = (rows if posterior is not None else 0, width)
    g_mean_q, g_log_scale_q = (torch.empty(of_posterior, dtype=dtype, device=z.device) for _ in range(2))
    g_pi = torch.zeros(log_pi.shape, dtype=dtype, device=z.device)
    per_program = (programs, components, width)
    g_means, g_scales = (torch.zeros(per_program, dtype=dtype, device=z.device) for _ in range(2))
    if rows and samples:
        mean_q, log_scale_q = (z, z) if posterior is None else posterior
        q_strides = (0,) * 4 if posterior is None else (*mean_q.stride(), *log_scale_q.stride())
        log_prob_backward_kernel[(programs,)](
            z, mean_q, log_scale_q, log_pi, means, log_scales, result, gradient,
            g_z, g_mean_q, g_log_scale_q, g_pi, g_means, g_scales,
            samples, rows, components, width, *z.stride(), *q_strides, *strides(log_pi, means, log_scales), programs,
            FROM_Q=posterior is not None, SHARED=shared, ACC=accumulator(result.dtype),
            **mixture_blocks(components, width, backward=True),
        )  # fmt: skip
    if shared:
        g_means, g_scales = g_means.sum(0), g_scales.sum(0)
    if posterior is None:
        return g_z, g_pi, g_means, g_scales
    return g_mean_q, g_log_scale_q, g_pi, g_means, g_scales
