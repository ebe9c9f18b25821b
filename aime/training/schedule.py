"""Schedules as functions of the elapsed fraction of the run: they fit a budget of seconds as well as of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from aime.training.config import TrainConfig


def elapsed_fraction(config: TrainConfig, *, steps: int, seconds: float, epochs: float) -> float:
    """How much of the run is over, in [0, 1]: that of the limit that is nearest to being reached."""
    limits = ((config.steps, steps), (config.seconds, seconds), (config.epochs, epochs))
    return min(1.0, max(done / limit for limit, done in limits if limit is not None))


def learning_rate_factor(config: TrainConfig, fraction: float) -> float:
    """Share of the peak learning rate: a linear warm-up from 0, then half a cosine down to `final_learning_rate`."""
    if fraction < config.warmup_fraction:
        return fraction / config.warmup_fraction
    span = 1 - config.warmup_fraction
    rest = (fraction - config.warmup_fraction) / span if span > 0 else 1.0
    return config.final_learning_rate + (1 - config.final_learning_rate) * (1 + math.cos(math.pi * rest)) / 2


def beta(config: TrainConfig, fraction: float) -> float:
    """Weight of the KL terms: half a cosine from `beta_min` to `beta_max` during the warm-up, constant after."""
    if fraction >= config.beta_warmup_fraction:
        return config.beta_max
    rise = (1 - math.cos(math.pi * fraction / config.beta_warmup_fraction)) / 2
    return config.beta_min + (config.beta_max - config.beta_min) * rise


def set_learning_rate(optimizer: torch.optim.Optimizer, peaks: Sequence[float], factor: float) -> None:
    """Set every group to its own peak times the factor."""
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(peak * factor)
        else:
            group["lr"] = peak * factor
