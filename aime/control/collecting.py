"""Rounds of whole episodes: N environments begin together, and the round is over when the last of them ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aime.control.agent import Agent
from aime.control.replay import Trajectory
from aime.envs import ParallelEnvironment
from aime.envs.time_step import TimeStep

Act = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""Observations of N environments and what the last call returned -> actions (N, A), and the same again."""


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


def observation_of(step: TimeStep, states: bool) -> NDArray[np.generic]:
    """(N, O) float32, every entry of dm_control's observation in its order; or frames (N, C, H, W) uint8. A copy."""
    if not states:
        assert step.pixels is not None
        return np.ascontiguousarray(step.pixels.transpose(0, 3, 1, 2))
    parts = [value.reshape(len(step.reward), -1) for value in step.observation.values()]
    return np.concatenate(parts, 1).astype(np.float32)


def observation_size(environment: ParallelEnvironment) -> int:
    """O, entries of a state observation."""
    return int(sum(np.prod(shape, dtype=int) for shape in environment.observation_shapes.values()))


def agent_acts(agent: Agent, *, explore: bool, generator: torch.Generator) -> Act:
    """An agent as what acts in a round."""
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
    step, state = environment.reset(seed=list(seeds)), None
    rows: list[tuple[NDArray[np.generic], ...]] = []
    pictures: list[NDArray[np.uint8]] = []
    done, lengths = np.zeros(count, bool), np.zeros(count, np.int64)
    failed: dict[int, str] = {}
    low = np.asarray(environment.action_minimum, np.float32)
    high = np.asarray(environment.action_maximum, np.float32)
    while not done.all():
        seen = observation_of(step, states)
        if keep_films and step.pixels is not None:
            pictures.append(step.pixels.copy())
        chosen, state = act(torch.from_numpy(seen), state)
        actions = np.clip(chosen.numpy(), low, high)  # a bound may be passed by a rounding of the scaling
        # an action of exactly float32's bound may lie a rounding beyond the float64 one
        step = environment.step(
            np.clip(actions.astype(np.float64), environment.action_minimum, environment.action_maximum)
        )
        rows.append((seen, actions, step.reward.astype(np.float32), step.discount.astype(np.float32)))
        failed |= {env: why for env, why in step.faults.items() if not done[env]}
        lengths += ~done
        done |= step.step_type == 2
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
