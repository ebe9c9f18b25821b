"""What is read of a state by numbers: rewards, values and whether the episode goes on.

Rewards and values are two-hot distributions over bins that lie evenly in symlog (Hafner et al. 2023, Mastering Diverse
Domains through World Models): the loss is a classification, whose gradient does not grow with the size of the target.
The bins end at symexp(7.5) = 1807, not at symexp(20): with outer bins of 5e8 a probability of 1e-7 decides the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime.nn import mlp

BIN_RANGE = 7.5
"""Bins lie from -symexp(7.5) to symexp(7.5): a discounted return of the Control Suite is at most 2 x 333."""
BINS = 97
"""As dense as 255 bins over symexp(-20) to symexp(20)."""


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return torch.sign(x) * torch.log1p(x.abs())


def symexp(x: Tensor) -> Tensor:
    """Inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(x.abs())


class TwoHotHead(nn.Module):
    """A number as a distribution over bins; its last layer starts at zero, so that it says 0 until it has learnt.

    >>> TwoHotHead(8, width=16)(torch.zeros(3, 8))
    tensor([0., 0., 0.], grad_fn=<SumBackward1>)

    Args:
        inputs: size of the features.
        width: hidden units of its two layers.
        bins: an odd number of bins, symmetric about 0.
    """

    edges: Tensor

    def __init__(self, inputs: int, width: int = 192, bins: int = BINS) -> None:
        super().__init__()
        if bins < 3 or bins % 2 == 0:
            raise ValueError(f"bins: expected an odd number of at least 3, found {bins}")
        self.net = mlp((inputs, width, width, bins))
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        positive = symexp(torch.linspace(0, BIN_RANGE, bins // 2 + 1))
        self.register_buffer("edges", torch.cat([-positive[1:].flip(0), positive]), persistent=False)

    def logits(self, features: Tensor) -> Tensor:
        """(..., F) -> (..., bins)."""
        scores: Tensor = self.net(features)
        return scores.float()

    def mean(self, logits: Tensor) -> Tensor:
        """Expected number (...) under logits (..., bins).

        Bins of opposite sign are paired before they are summed: even probabilities give exactly 0.
        """
        probabilities = torch.softmax(logits, -1)  # (..., bins)
        half = len(self.edges) // 2
        difference = probabilities[..., half + 1 :] - probabilities[..., :half].flip(-1)  # (..., bins // 2)
        return (difference * self.edges[half + 1 :]).sum(-1)

    def forward(self, features: Tensor) -> Tensor:
        """Expected number (...) of features (..., F)."""
        return self.mean(self.logits(features))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy (...) in nats between logits (..., bins) and the two-hot codes of targets (...)."""
        log_probabilities = torch.log_softmax(logits, -1)  # (..., bins)
        bounded = targets.detach().float().clamp(self.edges[0], self.edges[-1])  # (...)
        above = torch.searchsorted(self.edges, bounded).clamp(1, len(self.edges) - 1)  # (...)
        low, high = self.edges[above - 1], self.edges[above]
        weight = (bounded - low) / (high - low)  # (...) of the bin above
        of_below = log_probabilities.gather(-1, (above - 1).unsqueeze(-1)).squeeze(-1)  # (...)
        of_above = log_probabilities.gather(-1, above.unsqueeze(-1)).squeeze(-1)  # (...)
        return -((1 - weight) * of_below + weight * of_above)


class ContinueHead(nn.Module):
    """Probability that the episode goes on after an action.

    Args:
        inputs: size of the features.
        width: hidden units.
    """

    def __init__(self, inputs: int, width: int = 64) -> None:
        super().__init__()
        self.net = mlp((inputs, width, 1))
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, 4.0)  # episodes of the Control Suite hardly ever end: .982 to begin with

    def forward(self, features: Tensor) -> Tensor:
        """Probability (...) of features (..., F)."""
        return torch.sigmoid(self.net(features).squeeze(-1))

    def loss(self, features: Tensor, continues: Tensor) -> Tensor:
        """Binary cross entropy (...) in nats against continues (...) in [0, 1]."""
        return F.binary_cross_entropy_with_logits(self.net(features).squeeze(-1), continues, reduction="none")
