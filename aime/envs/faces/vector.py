"""`GymnasiumVectorEnvironment`: a batch of environments as a `gymnasium.vector.VectorEnv`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from aime.envs import tasks
from aime.envs.faces import rendering, spaces
from aime.envs.parallel_environment import ParallelEnvironment
from aime.envs.settings import Autoreset
from aime.envs.time_step import FinalObservation, TimeStep

Booleans = NDArray[np.bool_]
#: Gymnasium's modes and the engine's names for them.
AUTORESET: dict[AutoresetMode, Autoreset] = {
    AutoresetMode.NEXT_STEP: "next_step",
    AutoresetMode.SAME_STEP: "same_step",
    AutoresetMode.DISABLED: "disabled",
}


class GymnasiumVectorEnvironment(VectorEnv[Any, Any, Any]):
    """N environments of one task under Gymnasium's vector interface.

    `gymnasium.make_vec("aime/walker-walk-v0", num_envs=8)` makes one after `import aime.envs`. Seeds are given to
    `reset`: an int makes environment i the dm_control environment of seed + i. An end by the time limit is a
    truncation; only dm_control's discount 0, or a physics fault (`infos["fault"]`), is a termination.

    Args:
        domain, task: a pair of the suite.
        num_envs: N.
        observe: "dict": dm_control's observations by name, with "pixels" where there are any; "flat": one vector of
            them; "pixels": the picture alone.
        autoreset_mode: Gymnasium's AutoresetMode or its value. NextStep: the step after an end begins the new episode.
            SameStep: the step that ends an episode returns the first observation of the next, and the final one in
            `infos["final_obs"]`. Disabled: call `reset(options={"reset_mask": ...})`.
        render_mode: "rgb_array" or None; `render()` draws on demand, steps pay nothing for it.
        render_size: (height, width) of `render()`; the size of `pixels`, or else dm_control's (240, 320).
        copy: whether results have memory of their own; False gives views that stay valid until the second next step.
        options: further arguments of `ParallelEnvironment`, such as pixels, camera, renderer, quality, frame_stack,
            action_repeat, num_threads, time_limit, dtype.

    Raises:
        ValueError, ImportError, RuntimeError: as `ParallelEnvironment` raises them.
    """

    metadata = {"render_modes": list(rendering.RENDER_MODES)}  # noqa: RUF012 - Gymnasium reads it from the class

    def __init__(
        self,
        domain: str,
        task: str,
        num_envs: int = 1,
        *,
        observe: spaces.Observe = "dict",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        render_size: tuple[int, int] | None = None,
        copy: bool = True,
        **options: Any,
    ) -> None:
        self.closed = True  # until there is something to close: older versions of Gymnasium close in __del__
        mode = _autoreset_mode(autoreset_mode)
        spaces.check_observe(observe, options.get("pixels"))
        rendering.check_render_mode(render_mode)
        options["autoreset"] = AUTORESET[mode]
        self.parallel = ParallelEnvironment(domain, task, num_envs, **options)
        self.num_envs, self.observe, self.render_mode, self.copy = num_envs, observe, render_mode, copy
        self.metadata = rendering.metadata(self.parallel) | {"autoreset_mode": mode}
        self.single_observation_space = spaces.observation_space(self.parallel, observe)
        self.single_action_space = spaces.action_space(self.parallel)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.autoreset_mode = mode
        self._current: TimeStep | None = None
        self._painter = rendering.Painter(self.parallel, render_size, options)
        self.closed = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes; `options={"reset_mask": (N,) bool}` in the environments of the mask only.

        Raises:
            ValueError: a seed outside [0, 2**32), another number of seeds, a mask that is not (N,) bool, or an option
                of another name.
        """
        ids = self._chosen(options or {})
        self._current = self.parallel.reset(ids, seed=seed)
        if isinstance(seed, int):
            super().reset(seed=seed)
        return self._observations(self._current), {}

    def step(self, actions: ArrayLike) -> tuple[Any, NDArray[np.float64], Booleans, Booleans, dict[str, Any]]:
        """Apply (N, A) actions; `ParallelEnvironment.step` has the errors."""
        step = self._current = self.parallel.step(actions)
        ended = step.last()
        terminated = ended & (step.discount == 0.0)
        truncated = ended & ~terminated
        infos = self._infos(step.faults)
        if step.final is not None and ended.any():
            infos = self._final(step.final, ended, infos)
        return self._observations(step), step.reward.copy(), terminated, truncated, infos

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """The picture of each environment, (H, W, 3) uint8; None without render_mode="rgb_array".

        Raises:
            RuntimeError: before the first reset, or without an OpenGL library that can render offscreen.
        """
        return None if self.render_mode is None else tuple(self._painter.draw(self._current))

    def close_extras(self, **_: Any) -> None:
        """End the threads and free the physics."""
        self._painter.close()
        self.parallel.close()

    def _observations(self, step: TimeStep) -> Any:
        batch = spaces.observations(step, self.observe)
        return spaces.copied(batch) if self.copy else batch

    def _chosen(self, options: Mapping[str, Any]) -> list[int] | None:
        for name in options:
            if name != "reset_mask":
                raise ValueError(f"unknown option {name!r} of reset: {tasks.near(name, ['reset_mask'])}")
        mask = options.get("reset_mask")
        if mask is None:
            return None
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise ValueError(f"reset_mask must be a bool array of shape ({self.num_envs},), got {found}")
        if not mask.any():
            raise ValueError("reset_mask must choose at least one environment, got none")
        return [int(env) for env in np.flatnonzero(mask)]

    def _infos(self, faults: Mapping[int, str]) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for env, reason in faults.items():
            infos = self._add_info(infos, {"fault": reason}, env)
        return infos

    def _final(self, last: FinalObservation, ended: Booleans, infos: dict[str, Any]) -> dict[str, Any]:
        """The final observations of the environments that ended, and their infos, as Gymnasium keeps them."""
        batch = spaces.observations(last, self.observe)
        final = np.full(self.num_envs, None, dtype=object)
        for env in np.flatnonzero(ended).tolist():
            final[env] = spaces.one_of(batch, env)
        return {"final_obs": final, "_final_obs": ended.copy(), "final_info": infos, "_final_info": ended.copy()}


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    values = [known.value for known in AutoresetMode]
    if isinstance(mode, str) and mode not in values:
        raise ValueError(f"unknown autoreset_mode {mode!r}: {tasks.near(mode, values)}")
    return AutoresetMode(mode)
