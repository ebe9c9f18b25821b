"""Sticks and mixture densities with PyTorch's own kernels: stable in float32, no tensor of S x N x K x D.

Gradients are written by hand: they recompute instead of store, and loop over the few samples S: on 2 CPU cores one
pass over (S, N, K, D) = (8, 1024, 32, 64) at once takes 56 ms, mostly page faults, and the loop over S 2.7 ms.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

LOG_2 = math.log(2.0)
LOG_2PI = math.log(2 * math.pi)
# Below this t = log(1 - x^a), 1 - x equals exp(t) / a to the precision of the dtype (the next term is of relative size
# exp(t): 8e-7 and 9e-17).
SERIES_BELOW = {torch.float32: -14.0, torch.float64: -37.0}
# torch.rand returns multiples of 2^-24 in [0, 1), so exactly 0 once in 2^24 draws; the clamp keeps the sticks finite.
SMALLEST_U, LARGEST_U = 2.0**-26, 1.0 - 2.0**-24


def log1mexp(t: Tensor) -> Tensor:
    """log(1 - exp(t)) for t <= 0, accurate at both ends."""
    return torch.where(t > -LOG_2, torch.log(-torch.expm1(t)), torch.log1p(-torch.exp(t)))


def _sticks(log_a: Tensor, log_b: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """t = log(1 - v^a), log v and log(1 - v), each (N, K - 1)."""
    t = torch.log(u) * torch.exp(-log_b)
    log_v = log1mexp(t) * torch.exp(-log_a)
    log_rest = torch.where(t < SERIES_BELOW[t.dtype], t - log_a, log1mexp(log_v))
    return t, log_v, log_rest


def stick_log_weights(log_a: Tensor, log_b: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, K - 1) sticks to log_pi (N, K), log_v and log_q_v (N, K - 1)."""
    u = u.clamp(SMALLEST_U, LARGEST_U)
    t, log_v, log_rest = _sticks(log_a, log_b, u)
    log_q = log_a + log_b + (torch.exp(log_a) - 1) * log_v + torch.log(u) - t
    total = torch.nn.functional.pad(log_rest.cumsum(-1), (1, 0))  # (N, K)
    return total + torch.nn.functional.pad(log_v, (0, 1)), log_v, log_q


def stick_log_weights_backward(
    log_a: Tensor, log_b: Tensor, u: Tensor, g_pi: Tensor, g_v: Tensor, g_q: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of log_a and log_b."""
    t, log_v, _ = _sticks(log_a, log_b, u.clamp(SMALLEST_U, LARGEST_U))
    a = torch.exp(log_a)
    # d loss / d log(1 - v_j) sums the weights after j
    g_rest = g_pi.flip(-1).cumsum(-1).flip(-1)[:, 1:]
    series = t < SERIES_BELOW[t.dtype]
    g_log_v = g_pi[:, :-1] + g_v + g_q * (a - 1)
    g_log_v = g_log_v + torch.where(series, torch.zeros_like(t), -g_rest / torch.expm1(-log_v))
    through_series = torch.where(series, g_rest, torch.zeros_like(t))
    g_t = through_series - g_log_v / (a * torch.expm1(-t))
    g_a = -g_log_v * log_v - through_series + g_q * (1 + a * log_v)
    return g_a, -g_t * t + g_q * (1 + t)


def _log_joint_of(sample: Tensor, constant: Tensor, means: Tensor, inverse: Tensor) -> Tensor:
    """(N, K) of one sample (N, D), in the direct form."""
    square = (sample[:, None, :] - means).mul_(inverse).square_().sum(-1)
    return constant - 0.5 * square


def _constant(log_pi: Tensor, log_scales: Tensor) -> Tensor:
    """What of the log joint density does not depend on the sample, (N, K)."""
    return log_pi - log_scales.sum(-1) - 0.5 * LOG_2PI * log_scales.shape[-1]


def mixture_log_prob(z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """(S, N) log-density: direct form, one sample at a time."""
    inverse, constant = torch.exp(-log_scales), _constant(log_pi, log_scales)
    result = z.new_empty(z.shape[:2])
    for s, sample in enumerate(z):
        result[s] = torch.logsumexp(_log_joint_of(sample, constant, means, inverse), -1)
    return result


def mixture_log_joint(z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """log pi_k + log density of component k, (S, N, K), one sample at a time."""
    inverse, constant = torch.exp(-log_scales), _constant(log_pi, log_scales)
    result = z.new_empty(*z.shape[:2], log_pi.shape[1])
    for s, sample in enumerate(z):
        result[s] = _log_joint_of(sample, constant, means, inverse)
    return result


def mixture_log_prob_backward(
    gradient: Tensor, _: Tensor, z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of z, log_pi, means and log_scales; responsibilities are made again.

    Not from the forward's densities (S, N): where those are beyond 1e8, another order of the sum over D leaves a
    difference that overflows.
    """
    constant = _constant(log_pi, log_scales)

    def share(s: int, normalised: Tensor) -> Tensor:
        log_joint = constant - 0.5 * normalised.square().sum(-1)
        return log_joint.softmax(-1) * gradient[s][:, None]  # responsibility x gradient

    return _pull_back(share, z, log_pi, means, log_scales)


def mixture_log_joint_backward(
    gradient: Tensor, z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of z, log_pi, means and log_scales from that of the log joint densities (S, N, K)."""
    return _pull_back(lambda s, _: gradient[s], z, log_pi, means, log_scales)


def _pull_back(
    share: Callable[[int, Tensor], Tensor], z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients from share(s, normalised (N, K, D)), that of the log joint densities (N, K) of sample s."""
    inverse = torch.exp(-log_scales)
    shared = means.dim() == 2
    g_z = torch.empty_like(z)
    g_pi, g_means, g_scales = (torch.zeros_like(tensor) for tensor in (log_pi, means, log_scales))
    for s, sample in enumerate(z):
        normalised = (sample[:, None, :] - means).mul_(inverse)  # (N, K, D)
        weight = share(s, normalised)
        g_pi += weight
        weighted = normalised * weight[:, :, None]  # (N, K, D)
        if shared:
            g_scales += (weighted * normalised).sum(0)
            pull = weighted.mul_(inverse)
            g_means += pull.sum(0)
        else:
            g_scales.addcmul_(weighted, normalised)
            pull = weighted.mul_(inverse)
            g_means += pull
        g_z[s] = -pull.sum(1)
    g_scales -= (g_pi.sum(0) if shared else g_pi)[..., None]
    return g_z, g_pi, g_means, g_scales
