"""Rollouts of the actor in the world model's imagination, and the returns along them.

    f_t = [h_{t-1}, z_t]                  what actor and critic read: the frame is known, the action is not
    a_t ~ actor(f_t)
    h_t = LSTM(h_{t-1}, [z_t; a_t])
    r_t, c_t = heads([h_t, z_t])          of that action
    z_{t+1} ~ prior(h_t, z_t)

One index discipline throughout: action, reward and continue of index t lie between features t and t + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from aime.control.actor import Actor
from aime.temporal_dynamics import LSTMLayer, LSTMState


class LatentWorld(Protocol):
    """What imagination needs of a world model: a recurrence and a prior."""

    dynamics: LSTMLayer

    def recurrent_input(self, latent: Tensor, actions: Tensor) -> Tensor:
        """[z_t; a_t]."""
        ...

    def sample_next_latent(
        self, hidden: Tensor, previous_latent: Tensor, temperature: float = ..., generator: torch.Generator | None = ...
    ) -> tuple[Tensor, Any]:
        """A sample of z_{t+1} (B, D) given h_t (B, Hd) and z_t (B, D); and its prior."""
        ...


@dataclass(frozen=True)
class Belief:
    """What is known at a frame, before its action.

    Attributes:
        hidden: (B, Hd) h_{t-1}, normalised.
        latent: (B, D) z_t.
        lstm: raw recurrent state (B, L, Hd) that h_{t-1} is the output of.
    """

    hidden: Tensor
    latent: Tensor
    lstm: LSTMState

    @property
    def features(self) -> Tensor:
        """(B, Hd + D)."""
        return torch.cat([self.hidden, self.latent], -1)

    def rows(self, chosen: Tensor) -> Belief:
        """The beliefs of these rows (N,)."""
        return Belief(
            self.hidden[chosen], self.latent[chosen], LSTMState(self.lstm.hidden[chosen], self.lstm.cell[chosen])
        )


@dataclass(frozen=True)
class Dream:
    """Imagined trajectories of H actions.

    Attributes:
        features: (B, H + 1, F) [h_{t-1}, z_t].
        actions: (B, H, A) samples of the actor, not bounded, in units of the bounds.
        rewards: (B, H) of those actions.
        continues: (B, H) probability that the episode goes on after them.
    """

    features: Tensor
    actions: Tensor
    rewards: Tensor
    continues: Tensor


def imagine(
    world: LatentWorld,
    actor: Actor,
    reward: Callable[[Tensor], Tensor],
    continues: Callable[[Tensor], Tensor],
    start: Belief,
    horizon: int = 15,
    generator: torch.Generator | None = None,
) -> Dream:
    """Let the actor act for ``horizon`` actions from beliefs (B, ...) in imagination.

    Args:
        world: the world model.
        actor: acts by sampling.
        reward: of an action, from [h_t, z_t].
        continues: likewise.
        start: posterior beliefs.
        horizon: H.
        generator: source of randomness.
    """
    hidden, latent, lstm = start.hidden, start.latent, start.lstm
    features, actions, acted = [torch.cat([hidden, latent], -1)], [], []  # (B, F) each
    for _ in range(horizon):
        action = actor(features[-1]).sample(generator)  # (B, A)
        hidden, lstm = world.dynamics.step(world.recurrent_input(latent, actor.scaled(action)), lstm)  # (B, Hd)
        acted.append(torch.cat([hidden, latent], -1))  # (B, F): of the action just taken
        latent, _ = world.sample_next_latent(hidden, latent, 1.0, generator)  # (B, D)
        features.append(torch.cat([hidden, latent], -1))  # (B, F): of the frame that it led to
        actions.append(action)
    after = torch.stack(acted, 1)  # (B, H, F)
    return Dream(torch.stack(features, 1), torch.stack(actions, 1), reward(after), continues(after))


def lambda_returns(
    rewards: Tensor, continues: Tensor, next_values: Tensor, discount: float = 1 - 1 / 333, lambda_: float = 0.95
) -> Tensor:
    """R_t = r_t + discount c_t ((1 - lambda) v_{t+1} + lambda R_{t+1}), with R_H = v_H (Sutton & Barto, 12.1).

    Args:
        rewards: (B, H) r_0 .. r_{H-1}.
        continues: (B, H).
        next_values: (B, H) v_1 .. v_H, of the states that the actions led to.
        discount: of a step.
        lambda_: 0 trusts the next value, 1 the rewards.

    Returns:
        (B, H) R_0 .. R_{H-1}.
    """
    following, returns = next_values[:, -1], []  # (B,)
    for t in reversed(range(rewards.shape[1])):
        mixed = (1 - lambda_) * next_values[:, t] + lambda_ * following
        following = rewards[:, t] + discount * continues[:, t] * mixed
        returns.append(following)
    return torch.stack(returns[::-1], 1)


def reach(continues: Tensor, discount: float) -> Tensor:
    """Weight (B, H) of each imagined state: how likely the episode comes so far, discounted; 1 at the start."""
    steps = discount * continues  # (B, H)
    return torch.cat([torch.ones_like(steps[:, :1]), steps[:, :-1]], 1).cumprod(1)
