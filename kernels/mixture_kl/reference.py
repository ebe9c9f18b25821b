"""Kumaraswamy sticks, mixture log-density and Monte-Carlo KL in plain PyTorch: the truth in every test.

Straight from the definitions, meant for float64: nothing here is stable at the edges of float32.
"""

import math

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def stick_log_weights_reference(log_a: Tensor, log_b: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sticks v ~ Kumaraswamy(a, b) with P(v > x) = (1 - x^a)^b = u, broken into weights.

    Args:
        log_a, log_b, u: (N, K - 1).

    Returns:
        log_pi (N, K), log_v (N, K - 1), log_q_v = log density of v (N, K - 1).
    """
    a, b = log_a.exp(), log_b.exp()
    v = (1 - u ** (1 / b)) ** (1 / a)
    log_density = log_a + log_b + (a - 1) * v.log() + (b - 1) * (1 - v**a).log()
    remaining = torch.cat((torch.ones_like(v[:, :1]) if v.shape[1] else v.new_ones(len(v), 1), (1 - v).cumprod(-1)), -1)
    weights = torch.cat((v * remaining[:, :-1], remaining[:, -1:]), -1)  # (N, K)
    return weights.log(), v.log(), log_density


def mixture_log_prob_reference(z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """log sum_k pi_k N(z; mean_k, diag scale_k^2).

    Args:
        z: (S, N, D); log_pi: (N, K); means, log_scales: (N, K, D) or (K, D).

    Returns:
        (S, N) in nats.
    """
    normalised = (z[:, :, None, :] - means) / log_scales.exp()  # (S, N, K, D)
    log_normal = (-0.5 * normalised.square() - log_scales - 0.5 * LOG_2PI).sum(-1)  # (S, N, K)
    return torch.logsumexp(log_pi + log_normal, -1)


def mixture_responsibilities_reference(z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """Posterior of the components, p(k | z), (S, N, K); arguments as `mixture_log_prob_reference`."""
    normal = torch.distributions.Normal(means, log_scales.exp())
    log_normal: Tensor = normal.log_prob(z[:, :, None, :]).sum(-1)  # (S, N, K)
    return (log_pi + log_normal).softmax(-1)


def mixture_kl_reference(
    mean_q: Tensor, log_scale_q: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor, eps: Tensor
) -> Tensor:
    """KL(q || mixture) with the entropy of q exact and the cross entropy averaged over z = mean_q + scale_q eps.

    Args:
        mean_q, log_scale_q: (N, D); eps: (S, N, D); the mixture as in `mixture_log_prob_reference`.

    Returns:
        (N,) in nats.
    """
    entropy = (log_scale_q + 0.5 * (LOG_2PI + 1)).sum(-1)
    z = mean_q + log_scale_q.exp() * eps
    return -entropy - mixture_log_prob_reference(z, log_pi, means, log_scales).mean(0)
