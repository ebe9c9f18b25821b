"""Open-loop policies for collecting episodes: an action sequence is drawn before the episode is played.

Each takes its own seeded generator, so an episode's actions do not depend on how many environments run beside it.
"""

from __future__ import annotations

import difflib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Policy(Protocol):
    """Draws the actions of whole episodes."""

    name: str
    parameters: tuple[str, ...]
    """Names of what is drawn once per episode and stored with it."""

    def actions(
        self,
        generator: np.random.Generator,
        steps: int,
        minimum: NDArray[np.floating],
        maximum: NDArray[np.floating],
    ) -> tuple[NDArray[np.float32], tuple[float, ...]]:
        """Actions (steps, A) within the bounds (A,), and the values of `parameters`."""
        ...


class UniformPolicy:
    """Every action independent and uniform within the bounds. Slow bodies hardly move under it."""

    name = "uniform"
    parameters: tuple[str, ...] = ()

    def actions(
        self,
        generator: np.random.Generator,
        steps: int,
        minimum: NDArray[np.floating],
        maximum: NDArray[np.floating],
    ) -> tuple[NDArray[np.float32], tuple[float, ...]]:
        """See `Policy.actions`."""
        return _within(generator.uniform(-1, 1, (steps, len(minimum))), minimum, maximum), ()


class SmoothPolicy:
    """Time-correlated actions: two slow cosines and a little coloured noise, drawn per episode and action entry.

        P_k   ~ log-uniform[40, 90] steps      periods, k = 1, 2
        s_k   ~ +-uniform[0.5, 1.5]            amplitudes, in units of half the action range
        tau   ~ log-uniform[3, 10] steps       correlation time of the noise x, an Ornstein-Uhlenbeck process N(0, I)
        a_t = middle + half * clip(sum_k s_k cos(2 pi t / P_k) + 0.2 x_t, -1, 1)

    A force that starts as a cosine moves a free body from rest to and fro and leaves it without drift; one that starts
    anywhere, or an Ornstein-Uhlenbeck process alone, drives it away: under the latter (times of 3 to 30 steps,
    amplitudes to 3) the cart of cartpole stood beyond 1.5, out of the picture or nearly so, in 35 % of the steps, here
    in 10 %.
    Measured on cartpole swingup (action repeat 2, 64 episodes of 150 steps from the pole hanging): the pole is above
    the horizontal in 19 % of the steps (uniform policy: 0 %), comes within 26 degrees of upright in 36 % of the
    episodes, and turns faster than 6.2 rad/s in 11 % of the steps.
    """

    name = "smooth"
    parameters: tuple[str, ...] = ("period_1", "period_2", "noise_steps")

    def actions(
        self,
        generator: np.random.Generator,
        steps: int,
        minimum: NDArray[np.floating],
        maximum: NDArray[np.floating],
    ) -> tuple[NDArray[np.float32], tuple[float, ...]]:
        """See `Policy.actions`."""
        size = len(minimum)
        periods = np.exp(generator.uniform(np.log(40.0), np.log(90.0), (2, 1)))
        amplitudes = generator.uniform(0.5, 1.5, (2, size)) * generator.choice((-1.0, 1.0), (2, size))
        tau = float(np.exp(generator.uniform(np.log(3.0), np.log(10.0))))
        rho = np.exp(-1 / tau)
        noise = generator.standard_normal((steps, size))
        x = np.empty_like(noise)
        x[0] = noise[0]
        for t in range(1, steps):
            x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * noise[t]
        waves = np.cos(2 * np.pi * np.arange(steps)[:, None, None] / periods) * amplitudes  # (steps, 2, A)
        unit = np.clip(waves.sum(1) + 0.2 * x, -1, 1)
        return _within(unit, minimum, maximum), (float(periods[0, 0]), float(periods[1, 0]), tau)


POLICIES: dict[str, type[UniformPolicy | SmoothPolicy]] = {
    policy.name: policy for policy in (UniformPolicy, SmoothPolicy)
}


def make_policy(name: str) -> Policy:
    """The policy of that name; ValueError with the near names where there is none."""
    if name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"policy: expected one of {', '.join(POLICIES)}, found {name!r}{hint}")
    return POLICIES[name]()


def _within(
    unit: NDArray[np.float64], minimum: NDArray[np.floating], maximum: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Map [-1, 1] to the bounds, rounded to float32 without leaving them."""
    actions = (minimum + maximum) / 2 + (maximum - minimum) / 2 * unit
    return np.clip(actions.astype(np.float32), minimum.astype(np.float32), maximum.astype(np.float32))
