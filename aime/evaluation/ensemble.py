"""Scores of M sampled rollouts: how good they are as a distribution, and whether they know how wrong they are."""

from __future__ import annotations

import torch
from torch import Tensor


def fair_crps(samples: Tensor, target: Tensor) -> Tensor:
    """Fair continuous ranked probability score of each value, E|X - y| - E|X - X'| / 2 without bias in M: low is good.

    The second mean is over pairs of different samples (Ferro, 2014), so that ensembles of any size compare. A single
    sample is a point forecast and scores its absolute error.

    Args:
        samples: (N, M, ...).
        target: (N, ...).

    Returns:
        (N, ...) in the units of the values.
    """
    members = samples.shape[1]
    miss = (samples - target.unsqueeze(1)).abs().mean(1)
    if members == 1:
        return miss
    ordered = samples.sort(dim=1).values
    # The sum over pairs i < j of x_(j) - x_(i): the k-th smallest is added k times and taken away M - 1 - k times.
    weight = 2.0 * torch.arange(members, dtype=samples.dtype, device=samples.device) - (members - 1)
    pairs = torch.tensordot(weight, ordered, dims=([0], [1]))
    score: Tensor = miss - pairs / (members * (members - 1))
    return score


def spread_and_error(samples: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Squared spread of the samples and squared error of their mean, for values of which the target might be one.

    Were the target one more draw from what the samples are drawn from, both would have the same expectation: the
    variance (unbiased) is enlarged by (M + 1) / M, for the error of the mean of M has that of the mean in it (Fortin et
    al., 2014). The root of the ratio of their sums is 1 for a calibrated ensemble, below for one too sure of itself.

    Args:
        samples: (N, M, ...), M at least 2.
        target: (N, ...).

    Returns:
        Both (N, ...).
    """
    members = samples.shape[1]
    if members < 2:
        raise ValueError(f"the spread of an ensemble needs at least 2 samples, found {members}")
    return samples.var(1) * (members + 1) / members, (samples.mean(1) - target).square()
