"""The physics itself as a model to plan with: the upper bound of every learned one, and the test of a planner."""

from __future__ import annotations

import dataclasses
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aime.envs import ParallelEnvironment
from aime.envs.time_step import EnvironmentState
from aime.nn import expect_shape
from aime.world_model.imaginable import Imagined

LONG = 1e6  # seconds: no episode ends while it is imagined


class SimulatorModel:
    """A `ParallelEnvironment` that is set to the states of others and stepped from there; an `Imaginable` of rewards.

    What it observes is `ParallelEnvironment.state()` of B environments, in the place of frames; that is also its state.
    Rewards are exact, and an episode's end by time is not imagined. A physics fault ends the rewards of its sequence.

    Args:
        domain, task: as of the environments that are played.
        rollouts: sequences stepped at once; more of them go in turns.
        action_repeat: as of the environments that are played.
        num_threads: 0 takes one per CPU core.

    Raises:
        ValueError: an unknown domain or task; near names are suggested.
    """

    def __init__(
        self, domain: str, task: str, rollouts: int = 128, *, action_repeat: int = 1, num_threads: int = 0
    ) -> None:
        self.environment = ParallelEnvironment(
            domain,
            task,
            num_envs=rollouts,
            action_repeat=action_repeat,
            num_threads=num_threads,
            seed=0,
            time_limit=LONG,
        )
        self.environment.reset()

    def observe(
        self,
        observations: EnvironmentState,
        actions: Tensor | None = None,
        state: EnvironmentState | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> EnvironmentState:
        """The state of B environments, which holds all that there is to know; the other arguments change nothing."""
        del actions, state, generator
        return observations

    def imagine(
        self,
        state: EnvironmentState,
        actions: Tensor,
        *,
        frames: bool = False,
        generator: torch.Generator | None = None,
    ) -> Imagined:
        """See `Imaginable.imagine`; actions outside their bounds are clipped.

        Raises:
            ValueError: frames are asked for, or a shape that does not fit.
        """
        del generator
        if frames:
            raise ValueError("SimulatorModel: expected frames=False, it imagines rewards alone")
        sizes = expect_shape(actions, "B N Hz A", "actions", B=len(state.physics), A=self.environment.action_size)
        count, horizon = sizes["N"], sizes["Hz"]
        env = self.environment
        taken = np.clip(actions.flatten(0, 1).double().numpy(), env.action_minimum, env.action_maximum)
        rewards = np.zeros((len(taken), horizon))
        for first in range(0, len(taken), env.num_envs):
            # the last turn repeats its last row for the environments that have nothing to do
            rows = np.minimum(np.arange(first, first + env.num_envs), len(taken) - 1)
            part = self._roll(state, rows // count, taken[rows])
            rewards[rows] = part
        return Imagined(torch.from_numpy(rewards).float().unflatten(0, (-1, count)))

    def _roll(
        self, state: EnvironmentState, origins: NDArray[np.int64], actions: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Rewards (E, Hz) of actions (E, Hz, A), row i from environment ``origins[i]`` of the state."""
        env = self.environment
        env.set_state(picked(state, origins))
        rewards = np.zeros(actions.shape[:2])
        alive = np.ones(len(actions), bool)
        for k in range(actions.shape[1]):
            step = env.step(actions[:, k])
            alive[list(step.faults)] = False
            rewards[:, k] = np.where(alive, step.reward, 0.0)
        return rewards

    def close(self) -> None:
        """End the threads of the environment."""
        self.environment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def picked(state: EnvironmentState, rows: NDArray[np.int64]) -> EnvironmentState:
    """A state of the environments ``rows`` of another, each as often as it is named, at the first step of an episode.

    Raises:
        ValueError: a task in Python, whose attributes cannot be moved between environments.
    """
    if state.task_states:
        raise ValueError(f"{state.task}: expected a task in C++, found one in Python: its attributes do not move")

    def entries(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[row] for row in rows)

    return dataclasses.replace(
        state,
        physics=state.physics[rows],
        model_changes=entries(state.model_changes),
        random_states=entries(state.random_states),
        step_count=np.zeros(len(rows), np.int64),
        reward=state.reward[rows],
        discount=np.ones(len(rows)),
        step_type=np.ones(len(rows), state.step_type.dtype),
        frames=None,
        fields=entries(state.fields),
    )
