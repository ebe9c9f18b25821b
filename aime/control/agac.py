"""Adversarially guided actor-critic (Flet-Berliac et al. 2021): an adversary imitates the actor, who is paid to differ.

    advantage += c (log pi(a | f) - log pi_adv(a | f))      the adversary's parameters and the actor's own are held
    adversary: minimise KL(pi || pi_adv)                    the actor is held

c falls linearly to 0, so that in the end the task's reward alone counts. Earlier ports took the loss of values over a
B x B broadcast, never gave the adversary the learning rate meant for it, and read the old policy's deviation from the
adversary's parameters: here shapes are checked, the adversary has its own optimizer, and both densities are evaluated
from the distribution they belong to.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from aime.control.actor import ActionDistribution, Actor


class Adversary(nn.Module):
    """A second actor that learns to foresee the first.

    Args:
        actor: whose sizes and bounds it takes; its parameters are its own.
        learning_rate: of its own optimizer.
    """

    def __init__(self, actor: Actor, learning_rate: float = 1e-4) -> None:
        super().__init__()
        self.actor = copy.deepcopy(actor)
        for module in self.actor.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        self.optimizer = torch.optim.Adam(self.actor.parameters(), lr=learning_rate)

    @torch.no_grad()
    def bonus(self, policy: ActionDistribution, features: Tensor, actions: Tensor) -> Tensor:
        """log pi - log pi_adv (...) of actions (..., A) taken at features (..., F)."""
        own, foreseen = policy.log_prob(actions), self.actor(features).log_prob(actions)
        if own.shape != foreseen.shape or own.shape != actions.shape[:-1]:
            raise ValueError(
                f"actions: expected one log density each, found {tuple(own.shape)} of {tuple(actions.shape)}"
            )
        difference: Tensor = own - foreseen
        return difference

    def learn(self, policy: ActionDistribution, features: Tensor, weights: Tensor) -> Tensor:
        """One step towards the policy at features (..., F), weighted by (...); returns the divergence, ()."""
        divergence = policy.detach().kl_divergence(self.actor(features.detach()))  # (...)
        loss = (divergence * weights).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def annealed(start: float, fraction: float | Tensor) -> float | Tensor:
    """The bonus's weight: ``start`` falling linearly to 0 over the run."""
    if isinstance(fraction, Tensor):  # its value is the device's
        return start * (1.0 - fraction).clamp_min(0.0)
    return start * max(1.0 - fraction, 0.0)
