"""Rounds of whole episodes, kept as what a replay stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aime.control.agent import Agent
from aime.control.episodes import Act, frames_of, moments, observations_of
from aime.control.replay import Trajectory
from aime.envs import ParallelEnvironment


@dataclass(frozen=True)
class Round:
    """Episodes of a round.

    Attributes:
        episodes: those whose physics did not fail.
        returns: (N,) their sums of rewards.
        films: (T, H, W, 3) of each, where pictures were kept.
        faults: why the others failed.
        steps: decisions of all environments together.
    """

    episodes: list[Trajectory]
    returns: NDArray[np.float64]
    films: list[NDArray[np.uint8]]
    faults: list[str]
    steps: int


def observation_size(environment: ParallelEnvironment) -> int:
    """O, entries of a state observation."""
    return int(sum(np.prod(shape, dtype=int) for shape in environment.observation_shapes.values()))


class Acting(Protocol):
    """What acts in an agent's place, as graphs do."""

    def act(self, observation: Tensor, state: Any, explore: bool) -> tuple[Tensor, Any]:
        """Actions (B, A) and the state to be called with next."""
        ...


def agent_acts(agent: Agent, *, explore: bool, generator: torch.Generator, acting: Acting | None = None) -> Act:
    """An agent as what acts in a round, or what acts in its place, with a generator of its own."""
    if acting is not None:
        return lambda observation, state: acting.act(observation, state, explore)
    return lambda observation, state: agent.act(observation, state, explore, generator=generator)


def random_acts(minimum: Sequence[float], maximum: Sequence[float], generator: torch.Generator) -> Act:
    """Noise correlated over about five steps: independent noise averages out and hardly moves a body."""
    low, high = torch.tensor(minimum, dtype=torch.float32), torch.tensor(maximum, dtype=torch.float32)
    keep = 0.8

    def act(observation: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        noise = torch.randn(len(observation), len(low), generator=generator)
        state = noise if state is None else keep * state + (1 - keep**2) ** 0.5 * noise
        return (low + high) / 2 + (high - low) / 2 * torch.tanh(state), state

    return act


def play_round(
    environment: ParallelEnvironment, act: Act, seeds: Sequence[int], *, states: bool, keep_films: bool = False
) -> Round:
    """Play one episode in each environment.

    Args:
        environment: with autoreset "next_step".
        act: chooses the actions.
        seeds: (N,) of the episodes.
        states: observe dm_control's observations instead of the frames.
        keep_films: keep the pictures, where the environment draws any.
    """
    count = environment.num_envs
    rows: list[tuple[NDArray[np.generic], ...]] = []
    pictures: list[NDArray[np.uint8]] = []
    lengths = np.zeros(count, np.int64)
    failed: dict[int, str] = {}
    for moment in moments(environment, act, observations_of if states else frames_of, seeds):
        if keep_films and moment.picture is not None:
            pictures.append(moment.picture)
        came = moment.step.reward.astype(np.float32), moment.step.discount.astype(np.float32)
        rows.append((moment.shown.numpy(), moment.actions, *came))
        failed |= moment.faults
        lengths += moment.live
    columns = [np.stack(column, 1) for column in zip(*rows, strict=True)]  # (N, T, ...) each
    episodes, films = [], []
    for env in range(count):
        if env in failed:
            continue
        cut = slice(0, int(lengths[env]))
        observations, actions, rewards, continues = (np.ascontiguousarray(column[env, cut]) for column in columns)
        episodes.append(Trajectory(observations, actions, rewards, continues, seed=int(seeds[env])))
        if pictures:
            films.append(np.stack([picture[env] for picture in pictures[cut]]))
    returns = np.array([float(episode.rewards.sum(dtype=np.float64)) for episode in episodes])
    faults = [f"seed {seeds[env]}: {why}" for env, why in sorted(failed.items())]
    return Round(episodes, returns, films, faults, int(lengths.sum()))
