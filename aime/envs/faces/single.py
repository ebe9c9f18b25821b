"""`GymnasiumEnvironment`: one environment as a `gymnasium.Env`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import Env
from numpy.typing import ArrayLike, NDArray

from aime.envs.faces import rendering, spaces
from aime.envs.parallel_environment import ParallelEnvironment
from aime.envs.time_step import TimeStep


class GymnasiumEnvironment(Env[Any, Any]):
    """One environment of a task under Gymnasium's interface.

    `gymnasium.make("aime/walker-walk-v0")` makes one after `import aime.envs`. `reset(seed=7)` begins the episodes of
    the dm_control environment with random state 7. An end by the time limit is a truncation; only dm_control's discount
    0, or a physics fault (`info["fault"]`), is a termination.

    Args:
        domain, task: a pair of the suite.
        observe: "dict": dm_control's observations by name, with "pixels" where there are any; "flat": one vector of
            them; "pixels": the picture alone.
        render_mode: "rgb_array" or None; `render()` draws on demand, steps pay nothing for it.
        render_size: (height, width) of `render()`; the size of `pixels`, or else dm_control's (240, 320).
        options: further arguments of `ParallelEnvironment`, such as pixels, camera, quality, action_repeat, time_limit.

    Raises:
        ValueError, ImportError, RuntimeError: as `ParallelEnvironment` raises them.
    """

    metadata = {"render_modes": list(rendering.RENDER_MODES)}  # noqa: RUF012 - Gymnasium reads it from the class

    def __init__(
        self,
        domain: str,
        task: str,
        *,
        observe: spaces.Observe = "dict",
        render_mode: str | None = None,
        render_size: tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        spaces.check_observe(observe, options.get("pixels"))
        rendering.check_render_mode(render_mode)
        options["autoreset"] = "disabled"
        self.parallel = ParallelEnvironment(domain, task, 1, **options)
        self.observe, self.render_mode = observe, render_mode
        self.metadata = rendering.metadata(self.parallel)
        self.observation_space = spaces.observation_space(self.parallel, observe)
        self.action_space = spaces.action_space(self.parallel)
        self._current: TimeStep | None = None
        self._painter = rendering.Painter(self.parallel, render_size, options)

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a new episode; there are no options.

        Raises:
            ValueError: a seed outside [0, 2**32), or any option.
        """
        if options:
            raise ValueError(f"reset has no options, got {sorted(options)}")
        self._current = self.parallel.reset(seed=seed)
        super().reset(seed=seed)
        return spaces.one_of(spaces.observations(self._current, self.observe), 0), {}

    def step(self, action: ArrayLike) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Apply an action (A,); `ParallelEnvironment.step` has the errors."""
        values = np.asarray(action)
        if values.shape != self.action_space.shape:
            raise ValueError(f"the action must have shape {self.action_space.shape}, got {values.shape}")
        step = self._current = self.parallel.step(values[None])
        terminated = bool(step.last()[0] and step.discount[0] == 0.0)
        observation = spaces.one_of(spaces.observations(step, self.observe), 0)
        info = {"fault": step.faults[0]} if step.faults else {}
        return observation, float(step.reward[0]), terminated, bool(step.last()[0]) and not terminated, info

    def render(self) -> NDArray[np.uint8] | None:
        """The current picture, (H, W, 3) uint8; None without render_mode="rgb_array".

        Raises:
            RuntimeError: before the first reset, or without an OpenGL library that can render offscreen.
        """
        return None if self.render_mode is None else self._painter.draw(self._current)[0]

    def close(self) -> None:
        """End the thread and free the physics; a second call does nothing."""
        self._painter.close()
        self.parallel.close()
