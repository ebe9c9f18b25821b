"""Whole episodes of a task under a policy: returns, a confidence interval, and the frames."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aime.control.planning import Policy
from aime.envs import ParallelEnvironment
from aime.envs.time_step import TimeStep

View = Callable[[ParallelEnvironment, TimeStep], Any]
"""What a policy is shown of a step."""

T_QUANTILES = (12.706, 4.303, 3.182, 2.776)  # two-sided 95 % of Student's t with 1 to 4 degrees of freedom


def frames_of(environment: ParallelEnvironment, step: TimeStep) -> Tensor:
    """The pictures, (B, C, H, W) uint8."""
    del environment
    assert step.pixels is not None
    return torch.from_numpy(np.ascontiguousarray(step.pixels.transpose(0, 3, 1, 2)))


def observations_of(environment: ParallelEnvironment, step: TimeStep) -> Tensor:
    """Every entry of the task's own observation in its order, (B, O) float32."""
    del environment
    parts = [np.asarray(value).reshape(len(step.reward), -1) for value in step.observation.values()]
    return torch.from_numpy(np.concatenate(parts, 1).astype(np.float32))


def state_of(environment: ParallelEnvironment, step: TimeStep) -> Any:
    """The state of the physics, for a policy that has the simulator as its model."""
    del step
    return environment.state()


@dataclass(frozen=True)
class Played:
    """What came of episodes.

    Attributes:
        returns: (E,) sum of the rewards of each.
        films: of the first episodes, as many as were to be kept, their frames (T, H, W, 3) uint8.
        steps: decisions of the longest episode.
        seconds: wall-clock time.
        faults: "episode i: reason" where the physics failed and ended an episode.
    """

    returns: NDArray[np.float64]
    films: tuple[NDArray[np.uint8], ...]
    steps: int
    seconds: float
    faults: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean, by Student's t; None of a single episode."""
        count = len(self.returns)
        if count < 2:
            return None
        half = t_quantile(count - 1) * float(self.returns.std(ddof=1)) / math.sqrt(count)
        return self.mean - half, self.mean + half

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "returns": [round(float(value), 3) for value in self.returns],
            "mean": self.mean,
            "interval_95": self.interval,
            "steps": self.steps,
            "seconds": self.seconds,
            "faults": list(self.faults),
        }


def t_quantile(degrees: int) -> float:
    """Two-sided 95 % quantile of Student's t, to .003 (Abramowitz & Stegun 26.7.5 beyond a table)."""
    if degrees <= len(T_QUANTILES):
        return T_QUANTILES[degrees - 1]
    z = 1.959964
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def play(
    environment: ParallelEnvironment,
    policy: Policy,
    view: View,
    episodes: int,
    *,
    explore: bool = False,
    keep_films: int = 0,
    on_step: Callable[[int, NDArray[np.float64]], None] | None = None,
) -> Played:
    """Play whole episodes, as many at once as there are environments.

    Args:
        environment: with autoreset "next_step".
        policy: acts.
        view: what the policy is shown.
        episodes: E; the last round plays the ones that are left over as well and drops them.
        explore: let the policy explore.
        keep_films: keep the pictures of this many episodes, the first ones.
        on_step: called after each step with the number of steps of the round and the returns (B,) so far.
    """
    begin, count = time.perf_counter(), environment.num_envs
    returns: list[float] = []
    films: list[NDArray[np.uint8]] = []
    faults: list[str] = []
    longest = 0
    while len(returns) < episodes:
        step, state, steps = environment.reset(), None, 0
        total, done = np.zeros(count), np.zeros(count, bool)
        pictures: list[NDArray[np.uint8]] = []
        lengths = np.zeros(count, np.int64)
        while not done.all():
            if len(returns) < keep_films and step.pixels is not None:
                pictures.append(step.pixels.copy())
            action, state = policy.act(view(environment, step), state, explore)
            # a bound may be passed by a rounding of the scaling
            bounded = np.clip(action.double().numpy(), environment.action_minimum, environment.action_maximum)
            step, steps = environment.step(bounded), steps + 1
            total += np.where(done, 0.0, step.reward)
            lengths += ~done
            faults += [f"episode {len(returns) + env}: {why}" for env, why in step.faults.items() if not done[env]]
            done |= step.last()
            if on_step is not None:
                on_step(steps, total)
        longest = max(longest, steps)
        returns += total.tolist()
        films += [np.stack([p[env] for p in pictures[: lengths[env]]]) for env in range(count) if pictures]
    kept = films[: min(episodes, keep_films)]
    return Played(
        np.array(returns[:episodes]),
        tuple(kept),
        longest,
        time.perf_counter() - begin,
        tuple(faults),
    )
