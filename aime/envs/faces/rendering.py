"""`render()` of the Gymnasium faces: pictures on demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aime.envs.arguments import picture_size, word
from aime.envs.parallel_environment import ParallelEnvironment
from aime.envs.time_step import TimeStep

RENDER_MODES = ("rgb_array",)
#: Arguments of an environment that say nothing of how it looks.
STEPPING = ("autoreset", "batch_size", "depth", "dtype", "frame_stack", "num_processes", "segmentation", "seed")
#: dm_control's own size of a picture, (height, width).
RENDER_SIZE = (240, 320)


def check_render_mode(render_mode: str | None) -> None:
    """Raise ValueError for a mode that is not among `RENDER_MODES`."""
    if render_mode is not None:
        word("render_mode", render_mode, RENDER_MODES)


def metadata(env: ParallelEnvironment) -> dict[str, Any]:
    """What Gymnasium keeps of rendering: the modes, and the pictures per second of simulated time."""
    return {"render_modes": list(RENDER_MODES), "render_fps": round(1.0 / env.control_timestep)}


class Painter:
    """Draws the states of a batch: a second batch takes them over.

    So an environment that is never rendered pays nothing, and a step costs the same with any size of picture.

    Args:
        env: whose states are drawn.
        size: (height, width); None takes the environment's own `pixels`, or else dm_control's size.
        options: the arguments that `env` was made with.
    """

    def __init__(self, env: ParallelEnvironment, size: tuple[int, int] | None, options: Mapping[str, Any]) -> None:
        self._env, self.size = env, env.pixels or RENDER_SIZE
        if size is not None:
            self.size = picture_size("render_size", size)
        kept = {name: value for name, value in options.items() if name not in STEPPING}
        self._options = {**kept, "pixels": self.size}
        self._painting: ParallelEnvironment | None = None

    def draw(self, step: TimeStep | None) -> NDArray[np.uint8]:
        """(N, H, W, 3) pictures of the environment's states; `step` is its latest time step.

        Raises:
            RuntimeError: before the first reset, or without an OpenGL library that can render offscreen.
        """
        env = self._env
        if step is not None and step.pixels is not None and env.pixels == self.size:
            return step.pixels.copy() if env.frame_stack == 1 else step.pixels[:, -1].copy()
        state = replace(env.state(), frames=None)
        if self._painting is None:
            self._painting = ParallelEnvironment(env.domain, env.task, env.num_envs, **self._options)
        drawn = self._painting.set_state(state).pixels
        assert drawn is not None
        return drawn.copy()

    def close(self) -> None:
        """Free the second batch."""
        if self._painting is not None:
            self._painting.close()
