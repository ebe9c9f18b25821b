"""The critics as a player: an optimizer of their own, and how many steps they take for one of the generator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from aime.adversarial.critics import Contest, Critics
from aime.nn import apply_step

BETAS = (0.0, 0.9)
"""Of Adam: momentum hurts a game in which the other side moves (Gulrajani et al. 2017)."""


class CriticPlayer:
    """Trains critics, and no other parameter.

    Args:
        critics: whose parameters move.
        learning_rate: of AdamW without decay.
        steps: n_critic, on each contest.
        grad_clip: largest norm of a step's gradient.
    """

    def __init__(self, critics: Critics, learning_rate: float, steps: int = 1, grad_clip: float = 100.0) -> None:
        self.critics, self.steps, self.grad_clip = critics, steps, grad_clip
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            critics.parameters(), lr=learning_rate, betas=BETAS, weight_decay=0.0, fused=True
        )

    def step(
        self,
        contest: Contest,
        generator: torch.Generator | None = None,
        gather: Callable[[list[nn.Parameter]], None] | None = None,
    ) -> dict[str, Tensor]:
        """Take the steps; a step whose gradient is not finite is skipped, without waiting for the device.

        Args:
            contest: what the critics learn from.
            generator: source of the penalty's mixing weights.
            gather: where several processes have a part of the batch each: makes the `.grad` of one part that of all.

        Returns:
            of the last step, on the device: see `Critics.critic_losses`, and critic_grad_norm before clipping.
        """
        metrics: dict[str, Tensor] = {}
        contest = contest.detached()
        parameters = list(self.critics.parameters())
        for _ in range(self.steps):
            losses = self.critics.critic_losses(contest, generator)
            losses["img_disc_loss"].backward(inputs=parameters)
            if gather is not None:
                gather(parameters)
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.grad_clip)
            apply_step(self.optimizer, torch.isfinite(norm) & torch.isfinite(losses["img_disc_loss"]))
            self.optimizer.zero_grad(set_to_none=True)
            metrics = {name: value.detach() for name, value in losses.items()} | {"critic_grad_norm": norm.detach()}
        return metrics
