"""The actor: a bounded normal distribution of actions given a state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aime.nn import mlp

LEAST_STD, LARGEST_STD = 0.1, 1.0
LARGEST_RAW = 1.5
"""Beyond it tanh has less than a fifth of its slope left: an actor that goes there hardly comes back."""


@dataclass(frozen=True)
class ActionDistribution:
    """Diagonal normals in units where an action's bounds are -1 and 1.

    Attributes:
        mean: (..., A) in (-1, 1).
        std: (..., A) from .1 to 1.
        raw: (..., A) what the mean is the tanh of.
    """

    mean: Tensor
    std: Tensor
    raw: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """(..., A), not bounded; differentiable in mean and std."""
        noise = torch.randn(self.mean.shape, device=self.mean.device, generator=generator)
        return self.mean + self.std * noise

    def log_prob(self, action: Tensor) -> Tensor:
        """Log density (...) in nats of unbounded samples (..., A)."""
        scaled = (action - self.mean) / self.std
        return -(0.5 * scaled.square() + self.std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """(...) nats."""
        return (self.std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def excess(self) -> Tensor:
        """(...) squares of how far the raw means are beyond LARGEST_RAW."""
        return (self.raw.abs() - LARGEST_RAW).clamp_min(0).square().sum(-1)

    def kl_divergence(self, other: ActionDistribution) -> Tensor:
        """KL(self || other), (...) nats."""
        ratio = (self.std / other.std).square()
        moved = ((self.mean - other.mean) / other.std).square()
        return 0.5 * (ratio + moved - 1 - ratio.log()).sum(-1)

    def detach(self) -> ActionDistribution:
        """The same values without gradient history."""
        return ActionDistribution(self.mean.detach(), self.std.detach(), self.raw.detach())


class Actor(nn.Module):
    """Mean tanh(m), standard deviation between .1 and 1, in the units of an action's bounds.

    Args:
        inputs: size of the features [h_{t-1}, z_t].
        minimum, maximum: (A,) bounds of an action.
        width: hidden units of its two layers.

    Raises:
        ValueError: a bound that is not finite.
    """

    middle: Tensor
    extent: Tensor

    def __init__(self, inputs: int, minimum: Sequence[float], maximum: Sequence[float], width: int = 192) -> None:
        super().__init__()
        low, high = torch.tensor(minimum, dtype=torch.float32), torch.tensor(maximum, dtype=torch.float32)
        if not bool(low.isfinite().all() and high.isfinite().all()):
            raise ValueError(f"actions: expected finite bounds, found {list(minimum)} to {list(maximum)}")
        self.net = mlp((inputs, width, width, 2 * len(low)))
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():  # near the middle of the bounds to begin with, but not on it
            last.weight.mul_(0.1)
            last.bias.zero_()
        self.register_buffer("middle", (low + high) / 2)
        self.register_buffer("extent", (high - low) / 2)

    def forward(self, features: Tensor) -> ActionDistribution:
        """Distribution over actions at features (..., F)."""
        raw, spread = self.net(features).float().chunk(2, -1)  # (..., A) each
        std = LEAST_STD + (LARGEST_STD - LEAST_STD) * torch.sigmoid(spread + 1.0)
        return ActionDistribution(torch.tanh(raw), std, raw)

    def scaled(self, action: Tensor) -> Tensor:
        """Samples (..., A) as actions within the task's bounds; the gradient passes the bounds as if there were none.

        Without that, a sample beyond a bound would teach nothing.
        """
        bounded = action + (action.clamp(-1, 1) - action).detach()
        return self.middle + self.extent * bounded
