"""Calibration of the latent prior sum_k pi_k N(mu_k, diag sigma_k^2) at posterior draws z_t."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

USED_SHARE = 0.01
"""A component is in use when it is responsible for at least this share of the frames."""


@dataclass(frozen=True)
class GaussianMixture:
    """Diagonal mixtures of leading shape (...): ``log_pi`` (..., K), ``means`` and ``log_scales`` (..., K, D)."""

    log_pi: Tensor
    means: Tensor
    log_scales: Tensor


def component_log_prob(mixture: GaussianMixture, z: Tensor) -> Tensor:
    """log pi_k + log N(z | mu_k, sigma_k) summed over D: z (..., D) -> (..., K)."""
    standard = (z.unsqueeze(-2) - mixture.means) * torch.exp(-mixture.log_scales)
    log_normal = -0.5 * standard.square() - mixture.log_scales - 0.5 * math.log(2.0 * math.pi)
    return mixture.log_pi + log_normal.sum(-1)


def negative_log_likelihood(mixture: GaussianMixture, z: Tensor) -> Tensor:
    """-log p(z) in nats, summed over D: (...,)."""
    return -component_log_prob(mixture, z).logsumexp(-1)


def responsibilities(mixture: GaussianMixture, z: Tensor) -> Tensor:
    """p(k | z): (..., K), sums to 1."""
    return component_log_prob(mixture, z).softmax(-1)


def components_used(shares: np.ndarray) -> float:
    """Number of components whose mean responsibility (K,) is at least ``USED_SHARE``."""
    return float((shares >= USED_SHARE).sum())


def _expected_distance(mean: Tensor, scale: Tensor) -> Tensor:
    """E|X| for X ~ N(mean, scale^2)."""
    standard = mean / scale
    density = torch.exp(-0.5 * standard.square()) / math.sqrt(2.0 * math.pi)
    distance: Tensor = 2.0 * scale * density + mean * (2.0 * torch.special.ndtr(standard) - 1.0)
    return distance


def crps(mixture: GaussianMixture, z: Tensor) -> Tensor:
    """Continuous ranked probability score of each latent's marginal, averaged over D; lower is better: (...,).

    Closed form for a mixture of Gaussians (Grimit et al. 2006, eq. 5):
    sum_i pi_i E|X_i - z| - 1/2 sum_ij pi_i pi_j E|X_i - X_j|. It is in the units of z, so compare it only between
    evaluations of one model.
    """
    weights = mixture.log_pi.exp().unsqueeze(-1)  # (..., K, 1)
    means, scales = mixture.means, mixture.log_scales.exp()
    miss = (weights * _expected_distance(z.unsqueeze(-2) - means, scales)).sum(-2)  # (..., D)
    between = means.unsqueeze(-2) - means.unsqueeze(-3)  # (..., K, K, D)
    joint_scale = (scales.unsqueeze(-2).square() + scales.unsqueeze(-3).square()).sqrt()
    pair_weights = weights.unsqueeze(-2) * weights.unsqueeze(-3)
    spread = (pair_weights * _expected_distance(between, joint_scale)).sum((-3, -2))
    return (miss - 0.5 * spread).mean(-1)


def probability_integral_transform(mixture: GaussianMixture, z: Tensor) -> Tensor:
    """CDF of each latent's marginal at z: (..., D); uniform on [0, 1] when the prior is calibrated."""
    standard = (z.unsqueeze(-2) - mixture.means) * torch.exp(-mixture.log_scales)
    cdf: Tensor = (mixture.log_pi.exp().unsqueeze(-1) * torch.special.ndtr(standard)).sum(-2)
    return cdf
