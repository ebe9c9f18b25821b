"""The critic: returns as a two-hot distribution, and a slow copy that keeps it from running away."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from aime.control.heads import TwoHotHead

SLOW_RATE = 0.1
"""Of the slow copy, a step. At the usual .02 the critic was at 44 of 115 after 1,100 steps on cartpole, all that some
ten minutes of a shared core give: the regulariser held it back."""


class Critic(nn.Module):
    """Return expected at a state [h_{t-1}, z_t], before its action.

    Args:
        inputs: size of the features.
        width: hidden units of its two layers.
    """

    def __init__(self, inputs: int, width: int = 192) -> None:
        super().__init__()
        self.head = TwoHotHead(inputs, width)
        self.slow = copy.deepcopy(self.head).requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """Values (...) of features (..., F)."""
        values: Tensor = self.head(features)
        return values

    def loss(self, features: Tensor, returns: Tensor) -> Tensor:
        """(...) nats: cross entropy to the returns (...), and to the slow copy's value as a regulariser."""
        logits = self.head.logits(features)  # (..., bins)
        with torch.no_grad():
            slow = self.slow(features)  # (...)
        return self.head.loss(logits, returns) + self.head.loss(logits, slow)

    @torch.no_grad()
    def follow(self, rate: float = SLOW_RATE) -> None:
        """Move the slow copy towards the critic; called once after each of its optimizer's steps."""
        for slow, fast in zip(self.slow.parameters(), self.head.parameters(), strict=True):
            slow.lerp_(fast, rate)
