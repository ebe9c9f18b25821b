"""`DmEnvironment`: one environment as a `dm_env.Environment`."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import dm_env
import numpy as np
from dm_env import specs
from numpy.typing import ArrayLike

from aime.envs.parallel_environment import ParallelEnvironment
from aime.envs.settings import checked
from aime.envs.time_step import StepType, TimeStep


class DmEnvironment(dm_env.Environment):  # type: ignore[misc] # dm_env has no types
    """One environment of a task under dm_env's interface, with dm_control's own specs and time steps.

    A step before the first reset, or after a LAST step, ignores its action and begins an episode. A physics fault
    ends the episode with discount 0, where dm_control raises.

    Args:
        domain, task: a pair of the suite.
        seed: the random state of `suite.load(..., task_kwargs={"random": seed})`; None: fresh entropy.
        options: further arguments of `ParallelEnvironment`, such as pixels, camera, quality, action_repeat, time_limit.
            With pixels, the observation has a "pixels" entry.

    Raises:
        ValueError, ImportError, RuntimeError: as `ParallelEnvironment` raises them; float32, which dm_control's specs
            do not have, is one.
    """

    def __init__(self, domain: str, task: str, *, seed: int | None = None, **options: Any) -> None:
        options["autoreset"] = "next_step"
        if checked(domain, task, 1, seed=seed, **options).dtype is not np.float64:
            raise ValueError("dtype must be numpy.float64 here: dm_control's specs are")
        self.parallel = ParallelEnvironment(domain, task, 1, seed=seed, **options)
        self._started = False

    def reset(self) -> dm_env.TimeStep:
        """Begin an episode."""
        self._started = True
        return self._converted(self.parallel.reset())

    def step(self, action: ArrayLike) -> dm_env.TimeStep:
        """Apply an action (A,); `ParallelEnvironment.step` has the errors."""
        if not self._started:
            return self.reset()
        values = np.asarray(action)
        if values.shape != (self.parallel.action_size,):
            raise ValueError(f"the action must have shape ({self.parallel.action_size},), got {values.shape}")
        return self._converted(self.parallel.step(values[None]))

    def action_spec(self) -> specs.BoundedArray:
        """dm_control's spec of the action."""
        return self.parallel.suite_environment.action_spec()

    def observation_spec(self) -> OrderedDict[str, specs.Array]:
        """dm_control's specs of the observations, and that of the picture."""
        found: OrderedDict[str, specs.Array] = OrderedDict(self.parallel.suite_environment.observation_spec())
        if self.parallel.pixels is not None:
            stack = (self.parallel.frame_stack,) if self.parallel.frame_stack > 1 else ()
            found["pixels"] = specs.BoundedArray((*stack, *self.parallel.pixels, 3), np.uint8, 0, 255, "pixels")
        return found

    def close(self) -> None:
        """End the thread and free the physics; a second call does nothing."""
        self.parallel.close()

    def _converted(self, step: TimeStep) -> dm_env.TimeStep:
        observation = OrderedDict((name, np.array(value[0])) for name, value in step.observation.items())
        if step.pixels is not None:
            observation["pixels"] = step.pixels[0].copy()
        kind = dm_env.StepType(int(step.step_type[0]))
        first = step.step_type[0] == StepType.FIRST
        reward, discount = (None, None) if first else (float(step.reward[0]), float(step.discount[0]))
        return dm_env.TimeStep(kind, reward, discount, observation)
