"""Whole episodes of a task under a policy: returns, a confidence interval, and the frames."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aime.control.episodes import View, moments
from aime.control.planning import Policy
from aime.envs import ParallelEnvironment

T_QUANTILES = (12.706, 4.303, 3.182, 2.776)  # two-sided 95 % of Student's t with 1 to 4 degrees of freedom


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
        total, lengths, steps = np.zeros(count), np.zeros(count, np.int64), 0
        pictures: list[NDArray[np.uint8]] = []
        for moment in moments(environment, lambda shown, state: policy.act(shown, state, explore), view):
            if len(returns) < keep_films and moment.picture is not None:
                pictures.append(moment.picture)
            steps += 1
            total += np.where(moment.live, moment.step.reward, 0.0)
            lengths += moment.live
            faults += [f"episode {len(returns) + env}: {why}" for env, why in moment.faults.items()]
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
