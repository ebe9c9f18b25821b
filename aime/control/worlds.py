"""The two world models that an agent may have, pixels or states, behind the few calls that acting and learning need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aime.control.imagination import Belief
from aime.control.state_model import StateModelConfig, StateWorldModel
from aime.nn import expect_shape
from aime.temporal_dynamics import LSTMState
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig, WorldModelState
from aime.world_model.inference import perceive
from aime.world_model.state import ObservationMemory

World = DPGMMVariationalRecurrentAutoencoder | StateWorldModel


@dataclass(frozen=True)
class AgentState:
    """What an agent carries from one frame to the next, its last action absorbed.

    Attributes:
        hidden: (B, Hd) h_t.
        lstm: raw recurrent state (B, L, Hd).
        memory: of earlier frames; None for states.
    """

    hidden: Tensor
    lstm: LSTMState
    memory: ObservationMemory | None


def make_world(kind: str, values: dict[str, Any]) -> World:
    """A new world model of a kind, "pixels" or "states", from its configuration's plain values."""
    if kind == "states":
        return StateWorldModel(StateModelConfig(**values))
    return DPGMMVariationalRecurrentAutoencoder(WorldModelConfig.from_dict(values))


def feature_size(world: World) -> int:
    """Hd + D."""
    return int(world.config.hidden_dim + world.config.latent_dim)


def check_observations(world: World, observations: Tensor) -> int:
    """B; ValueError where observations (B, C, H, W) uint8 or (B, O) are not what the world model was made for."""
    if isinstance(world, StateWorldModel):
        return expect_shape(observations, "B O", "observation", O=world.config.observation_size)["B"]
    channels, height, width = world.config.image_shape
    found = expect_shape(observations, "B C H W", "observation", C=channels, H=height, W=width)
    if observations.dtype != torch.uint8:
        # float frames in 0..1 or 0..255 would be taken for [-1, 1] and the agent would see nothing
        raise TypeError(f"observation: expected uint8 frames, found {observations.dtype}")
    return found["B"]


def see(
    world: World, observations: Tensor, before: AgentState | None, *, mean: bool, generator: torch.Generator | None
) -> tuple[Belief, ObservationMemory | None]:
    """What is believed at the frames (B, C, H, W), or states (B, O), that follow ``before``; None begins an episode.

    Args:
        world: the world model.
        observations: one for each of B environments.
        before: the state after the frame and action before.
        mean: take the posterior's mean instead of a sample.
        generator: source of the sample.
    """
    batch = check_observations(world, observations)
    if before is None:
        start = world.dynamics.initial_state(batch)
        memory = None if isinstance(world, StateWorldModel) else first_state(world, batch).memory
        before = AgentState(world.dynamics.output(start), start, memory)
    if isinstance(world, StateWorldModel):
        center, log_scale = world.posterior(observations)  # (B, D) each
        memory = None
    else:
        seen = perceive(world, observations[:, None], before.memory)
        center, log_scale = seen.posterior.mean[:, 0], seen.posterior.log_scale[:, 0]  # (B, D) each
        memory = ObservationMemory(None if seen.perceiver is None else seen.perceiver.memory, seen.last_frames)
    latent = center
    if not mean:
        noise = torch.randn(center.shape, device=center.device, generator=generator)
        latent = center + log_scale.exp() * noise  # (B, D)
    return Belief(before.hidden, latent, before.lstm), memory


def first_state(world: DPGMMVariationalRecurrentAutoencoder, batch: int) -> WorldModelState:
    """The pixel model's state before the first frame."""
    return world.initial_state(batch)


def absorb(world: World, belief: Belief, actions: Tensor, memory: ObservationMemory | None) -> AgentState:
    """The state after the actions (B, A) were taken."""
    hidden, lstm = world.dynamics.step(world.recurrent_input(belief.latent, actions), belief.lstm)  # (B, Hd)
    return AgentState(hidden, lstm, memory)


@torch.no_grad()
def beliefs(world: World, latent: Tensor, actions: Tensor) -> tuple[Belief, Tensor]:
    """Beliefs at every frame of B windows, as B * T rows, and what rewards are read from, (B, T, F).

    Args:
        world: the world model.
        latent: (B, T, D) samples of the posterior.
        actions: (B, T, A).
    """
    batch, length = latent.shape[:2]
    start = world.dynamics.initial_state(batch)
    hidden, raw = world.dynamics.unroll(world.recurrent_input(latent, actions), start)  # (B, T, Hd), (B, T, L, Hd)
    before = torch.cat([world.dynamics.output(start)[:, None], hidden[:, :-1]], 1)  # (B, T, Hd)
    lstm = LSTMState(
        torch.cat([start.hidden[:, None], raw.hidden[:, :-1]], 1).flatten(0, 1),  # (B T, L, Hd)
        torch.cat([start.cell[:, None], raw.cell[:, :-1]], 1).flatten(0, 1),
    )
    rows = Belief(before.reshape(batch * length, -1), latent.reshape(batch * length, -1), lstm)
    return rows, torch.cat([hidden, latent], -1)
