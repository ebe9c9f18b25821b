# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""Mixture log-density and KL in Triton; the sticks are in triton_sticks.py.

Components are per row in AIME, so the floor is one reading of means and scales. One program owns a row, keeps a tile of
K x D of them in registers and runs samples past it; the log densities of a tile's components meet in an online
log-sum-exp once for BLOCK_S samples, so that every one is exponentiated once and the loop over samples has no barrier
while D lies within a warp. The backward pass runs the samples past the same tile again and writes each gradient once,
without atomics. Shared components are the same kernel with a row stride of 0; a fixed number of programs then walks
over the rows and their partial sums are added up.

Densities are in units of log 2: with y = (z - mean) / scale * c and c^2 = log2(e) / 2 a density is 2^(constant - sum
y^2), and the factors c^-2 = 2 log 2 of the gradients are applied once, at the end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..elementary import accumulator, all_registers
from ..launch import launcher
from .triton_sticks import stick_log_weights, stick_log_weights_backward

__all__ = [
    "mixture_log_joint",
    "mixture_log_prob",
    "mixture_log_prob_backward",
    "stick_log_weights",
    "stick_log_weights_backward",
]

TILE = 2048  # elements of one K x D tile; forward keeps two in registers, backward five
SAMPLES = 8  # whose log densities meet at once
UNROLL = tl.constexpr(2)  # samples whose loads and sums overlap
SHARED_PROGRAMS = 256  # of the backward pass with shared components: two for each of some 130 processors
LOG_2 = tl.constexpr(0.6931471805599453)
LOG_2PI = tl.constexpr(1.8378770664093453)
LOG2_E = tl.constexpr(1.4426950408889634)
ROOT = tl.constexpr(0.8493218002880191)  # c, the root of log2(e) / 2


@triton.jit
def half_log_2pi(D, ACC: tl.constexpr):
    """D / 2 log(2 pi). A constant times a scalar would be a float32, off by 1.9e-6 at D = 64, whatever ACC is."""
    return tl.full((), 0.5 * LOG_2PI, ACC) * D


@triton.jit
def number(value: tl.constexpr, ACC: tl.constexpr):
    """A constant as ACC: times a tensor of float64 a plain one would be as exact, times a scalar it is a float32."""
    return tl.full((), value, ACC)


@triton.jit
def in_fours(value, FOURS: tl.constexpr):
    """The same number, known to the compiler as a multiple of 4 if FOURS: then four channels are one load."""
    return value // 4 * 4 if FOURS else value


@triton.jit
def load_mixture(
    log_pi, means, log_scales, n, k, d, K, D, p_n, p_k, m_n, m_k, m_d, c_n, c_k, c_d,
    FOURS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A tile's means and c / scale (0 beyond K and D), both (BLOCK_K, BLOCK_D), and log2 of weight times normaliser."""
    tile = (k[:, None] < K) & (d[None, :] < in_fours(D, FOURS))
    at = n * in_fours(m_n, FOURS) + k[:, None] * in_fours(m_k, FOURS) + d[None, :] * m_d
    mean = tl.load(means + at, mask=tile, other=0.0).to(ACC)
    at = n * in_fours(c_n, FOURS) + k[:, None] * in_fours(c_k, FOURS) + d[None, :] * c_d
    log_scale = tl.load(log_scales + at, mask=tile, other=0.0).to(ACC)
    log2_scale = log_scale * number(LOG2_E, ACC)
    inverse = tl.where(tile, tl.exp2(-log2_scale) * number(ROOT, ACC), 0.0)
    weight = tl.load(log_pi + n * p_n + k * p_k, mask=k < K, other=float("-inf")).to(ACC)
    constant = (weight - tl.sum(log_scale, 1) - half_log_2pi(D, ACC)) * number(LOG2_E, ACC)
    return mean, inverse, constant


@triton.jit
def load_posterior(mean_q, log_scale_q, n, d, D, q_n, q_d, r_n, r_d, FROM_Q: tl.constexpr, ACC: tl.constexpr):
    """Mean and scale that noise is moved by: with FROM_Q those of a row, else none."""
    centre = tl.zeros_like(d).to(ACC)
    spread = centre
    if FROM_Q:
        centre = tl.load(mean_q + n * q_n + d * q_d, mask=d < D, other=0.0).to(ACC)
        spread = tl.exp(tl.load(log_scale_q + n * r_n + d * r_d, mask=d < D, other=0.0).to(ACC))
    return centre, spread


@triton.jit
def load_sample(z, centre, spread, s, n, d, D, z_s, z_n, z_d, FROM_Q: tl.constexpr, ACC: tl.constexpr):
    """Sample s of row n, and the noise times the scale, for the gradient."""
    sample = tl.zeros((), tl.int64) + s  # a 64-bit offset, also where the interpreter counts in Python
    value = tl.load(z + sample * z_s + n * z_n + d * z_d, mask=d < D, other=0.0).to(ACC)
    if FROM_Q:
        value = spread * value
        return centre + value, value
    return value, value


@triton.jit
def log_prob_kernel(
    z, mean_q, log_scale_q, log_pi, means, log_scales, result, kl,
    S, N, K, D, z_s, z_n, z_d, q_n, q_d, r_n, r_d, p_n, p_k, m_n, m_k, m_d, c_n, c_k, c_d,
    FROM_Q: tl.constexpr, FOURS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    centre, spread = load_posterior(mean_q, log_scale_q, n, d, D, q_n, q_d, r_n, r_d, FROM_Q, ACC)
    log_probs = tl.zeros((BLOCK_S,), ACC)
    for first in range(0, S, BLOCK_S):
        highest = tl.full((BLOCK_S,), float("-inf"), ACC)
        total = tl.zeros((BLOCK_S,), ACC)
        for start in range(0, K, BLOCK_K):
            k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
            mean, inverse, constant = load_mixture(
                log_pi, means, log_scales, n, k, d, K, D, p_n, p_k, m_n, m_k, m_d, c_n, c_k, c_d, FOURS, ACC
            )
            joint = tl.full((BLOCK_K, BLOCK_S), float("-inf"), ACC)
            for s in tl.range(0, tl.minimum(BLOCK_S, S - first), loop_unroll_factor=UNROLL):
                sample, _ = load_sample(z, centre, spread, first + s, n, d, D, z_s, z_n, z_d, FROM_Q, ACC)
                y = (sample[None, :] - mean) * inverse
                own = tl.where(k < K, constant - tl.sum(y * y, 1), float("-inf"))
                joint = tl.where(lanes[None, :] == s, own[:, None], joint)
            peak = tl.maximum(highest, tl.max(joint, 0))
            anchor = tl.where(peak == float("-inf"), 0.0, peak)
            total = total * tl.exp2(highest - anchor) + tl.sum(tl.exp2(joint - anchor[None, :]), 0)
            highest = peak
        log_prob = (highest + tl.log2(total)) * number(LOG_2, ACC)
        present = first + lanes < S
        tl.store(result + (first + lanes).to(tl.int64) * N + n, log_prob, mask=present)
        log_probs += tl.where(present, log_prob, 0.0)
    if FROM_Q:
        log_scale_row = tl.load(log_scale_q + n * r_n + d * r_d, mask=d < D, other=0.0).to(ACC)
        negative_entropy = -tl.sum(log_scale_row, 0) - half_log_2pi(D, ACC) - 0.5 * D
        tl.store(kl + n, negative_entropy - tl.sum(log_probs, 0) / S)


@triton.jit
def log_joint_kernel(
    z, log_pi, means, log_scales, result, S, N, K, D, z_s, z_n, z_d, p_n, p_k, m_n, m_k, m_d, c_n, c_k, c_d,
    FOURS: tl.constexpr, ACC: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    for start in range(0, K, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        mean, inverse, constant = load_mixture(
            log_pi, means, log_scales, n, k, d, K, D, p_n, p_k, m_n, m_k, m_d, c_n, c_k, c_d, FOURS, ACC
        )
        for s in range(S):
            sample, _ = load_sample(z, d, d, s, n, d, D, z_s, z_n, z_d, False, ACC)
            y = (sample[None, :] - mean) * inverse
            place = ((tl.zeros((), tl.int64) + s) * N + n) * K + k
            tl.store(result + place, (constant - tl.sum(y * y, 1)) * number(LOG_2, ACC), mask=k < K)


@triton.jit
def log_prob_backward_kernel(
    z, mean_q, log_scale_q, log_pi, means, log_scales, result, gradient,
    g_z, g_mean_q, g_log_scale_q, g_pi, g_means, g_scales,
    S, N, K, D, z_s, z_n, z_d, q_n, q_d, r_n, r_d, p_n, p_k, m_n, m_k, m_d, c_n, c_k, c_d, PROGRAMS,
    FROM_Q: tl.constexpr, SHARED: tl.constexpr, FOURS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # result (S, N), gradient (S, N) or, with FROM_Q, (N,) of the KL; g_* contiguous; g_means and g_scales have a row
    # per row, or with SHARED per program
    program = tl.program_id(0)
    d = tl.arange(0, BLOCK_D).to(tl.int64)
    for start in range(0, K, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        tile = (k[:, None] < K) & (d[None, :] < in_fours(D, FOURS))
        pulls = tl.zeros((BLOCK_K, BLOCK_D), ACC)  # sums over rows and samples of share * y,
        stretch = tl.zeros((BLOCK_K, BLOCK_D), ACC)  # share * y^2,
        shares = tl.zeros((BLOCK_K,), ACC)  # share
        for row in range(program, N, PROGRAMS):
            n = tl.zeros((), tl.int64) + row
            mean, inverse, constant = load_mixture(
                log_pi, means, log_scales, n, k, d, K, D, p_n, p_k, m_n, m_k, m_d, c_n, c_k, c_d, FOURS, ACC
            )
            centre, spread = load_posterior(mean_q, log_scale_q, n, d, D, q_n, q_d, r_n, r_d, FROM_Q, ACC)
            g_weight = tl.zeros((BLOCK_K,), ACC)
            pull = tl.zeros((BLOCK_K, BLOCK_D), ACC)  # this row's sums of share * y,
            leaning = tl.zeros((BLOCK_K, BLOCK_D), ACC)  # with FROM_Q of share * y * noise * scale
            for s in tl.range(0, S, loop_unroll_factor=UNROLL):
                sample, noise = load_sample(z, centre, spread, s, n, d, D, z_s, z_n, z_d, FROM_Q, ACC)
                y = (sample[None, :] - mean) * inverse
                place = (tl.zeros((), tl.int64) + s) * N + n
                if FROM_Q:
                    upstream = -tl.load(gradient + n).to(ACC) / S
                else:
                    upstream = tl.load(gradient + place).to(ACC)
                gap = constant - tl.sum(y * y, 1) - tl.load(result + place).to(ACC) * number(LOG2_E, ACC)
                # where densities of 1e8 and more leave a gap above 0 by rounding, that is no exponent to raise
                share = tl.exp2(tl.where(gap > 0.0, 0.0, gap)) * upstream  # responsibility x gradient
                share = tl.where(k < K, share, 0.0)
                g_weight += share
                weighted = y * share[:, None]
                stretch += weighted * y
                pull += weighted
                if FROM_Q:
                    leaning += weighted * noise[None, :]
                else:
                    g_sample = -tl.sum(weighted * inverse, 0) * number(2 * LOG_2, ACC)
                    target = g_z + place * D + d
                    if start > 0:  # the same program wrote the share of the earlier components, perhaps other threads
                        tl.debug_barrier()
                        g_sample += tl.load(target, mask=d < D, other=0.0).to(ACC)
                    tl.store(target, g_sample, mask=d < D)
            tl.store(g_pi + n * K + k, g_weight, mask=k < K)
            shares += g_weight
            pulls += pull
            if FROM_Q:
                g_center = -tl.sum(pull * inverse, 0) * number(2 * LOG_2, ACC)
                g_spread = -tl.sum(leaning * inverse, 0) * number(2 * LOG_2, ACC)
                target_center = g_mean_q + n * D + d
                target_spread = g_log_scale_q + n * D + d
                if start > 0:
                    tl.debug_barrier()
                    g_center += tl.load(target_center, mask=d < D, other=0.0).to(ACC)
                    g_spread += tl.load(target_spread, mask=d < D, other=0.0).to(ACC)
                else:
                    g_spread -= tl.load(gradient + n).to(ACC)  # of the entropy
                tl.store(target_center, g_center, mask=d < D)
                tl.store(target_spread, g_spread, mask=d < D)
            if not SHARED:
                own = (n * K + k[:, None]) * in_fours(D, FOURS) + d[None, :]
                tl.store(g_means + own, pulls * inverse * number(2 * LOG_2, ACC), mask=tile)
                tl.store(g_scales + own, stretch * number(2 * LOG_2, ACC) - shares[:, None], mask=tile)
        if SHARED:
            own = program.to(tl.int64) * K * D + k[:, None] * D + d[None, :]
            inverse = load_mixture(
                log_pi, means, log_scales, 0, k, d, K, D, p_n, p_k, m_n, m_k, m_d, c_n, c_k, c_d, FOURS, ACC
            )[1]
            tl.store(g_means + own, pulls * inverse * number(2 * LOG_2, ACC), mask=tile)
            tl.store(g_scales + own, stretch * number(2 * LOG_2, ACC) - shares[:, None], mask=tile)


def mixture_blocks(components: int, width: int, backward: bool) -> dict[str, int]:
    """Tile of K x D, and its warps, by the compiler's registers.

    A warp reads 128 channels at once: wider rows of several warps would meet at a barrier for every sample.
    """
    block_d = triton.next_power_of_2(width)
    wide = block_d > 128
    tile = (TILE // 4 if backward else TILE // 2) if wide else TILE
    block_k = max(1, min(triton.next_power_of_2(components), tile // block_d))
    warps = 1 if wide else max(1, min(8, block_k * block_d // (256 if backward else 512)))
    return {"BLOCK_K": block_k, "BLOCK_D": block_d, "num_warps": warps, **all_registers()}


def in_quads(width: int, means: Tensor, log_scales: Tensor) -> bool:
    """Whether four channels of a component always lie together at a multiple of 16 bytes, its first being aligned."""
    return width % 4 == 0 and all(stride % 4 == 0 for tensor in (means, log_scales) for stride in tensor.stride()[:-1])


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
        log_prob_kernel[(rows,)](
            z, mean_q, log_scale_q, log_pi, means, log_scales, result, kl,
            samples, rows, log_pi.shape[1], width, *z.stride(), *q_strides, *strides(log_pi, means, log_scales),
            FROM_Q=posterior is not None, FOURS=in_quads(width, means, log_scales), ACC=accumulator(dtype),
            BLOCK_S=min(SAMPLES, triton.next_power_of_2(samples)),
            **mixture_blocks(log_pi.shape[1], width, backward=False),
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
            *z.stride(), *strides(log_pi, means, log_scales), FOURS=in_quads(width, means, log_scales),
            ACC=accumulator(dtype), **mixture_blocks(components, width, backward=False),
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
            FROM_Q=posterior is not None, SHARED=shared, FOURS=in_quads(width, means, log_scales),
            ACC=accumulator(result.dtype), **mixture_blocks(components, width, backward=True),
        )  # fmt: skip
    if shared:
        g_means, g_scales = g_means.sum(0), g_scales.sum(0)
    if posterior is None:
        return g_z, g_pi, g_means, g_scales
    return g_mean_q, g_log_scale_q, g_pi, g_means, g_scales
