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
    """Time-correlated actions: a clipped, discretised Ornstein-Uhlenbeck process, its time and size drawn per episode.

        tau   ~ log-uniform[3, 30] steps       correlation time
        sigma ~ uniform[0.3, 3]                amplitude, in units of half the action range
        x_0 ~ N(0, I),  x_t+1 = rho x_t + sqrt(1 - rho^2) eps_t,  rho = exp(-1 / tau),  eps_t ~ N(0, I)
        a_t = middle + half * clip(sigma x_t, -1, 1)

    x stays N(0, I) at every t. Measured on cartpole swingup (action repeat 2, 64 episodes of 150 steps from the pole
    hanging): the pole is above the horizontal in 21 % of the steps (uniform policy: 0 %), comes within 26 degrees of
    upright in 39 % of the episodes, and turns faster than 6.2 rad/s in 10 % of the steps (uniform: 1.7).
    """

    name = "smooth"
    parameters: tuple[str, ...] = ("correlation_steps", "amplitude")

    def actions(
        self,
        generator: np.random.Generator,
        steps: int,
        minimum: NDArray[np.floating],
        maximum: NDArray[np.floating],
    ) -> tuple[NDArray[np.float32], tuple[float, ...]]:
        """See `Policy.actions`."""
        tau = float(np.exp(generator.uniform(np.log(3.0), np.log(30.0))))
        sigma = float(generator.uniform(0.3, 3.0))
        rho = np.exp(-1 / tau)
        noise = generator.standard_normal((steps, len(minimum)))
        x = np.empty_like(noise)
        x[0] = noise[0]
        for t in range(1, steps):
            x[t] = rho * x[t - 1] + np.sqrt(1 - rho**2) * noise[t]
        return _within(np.clip(sigma * x, -1, 1), minimum, maximum), (tau, sigma)


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
