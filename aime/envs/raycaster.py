"""`RayCaster`: pictures of any MuJoCo model whose geoms it knows, without a GL library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aime.envs import tasks
from aime.envs.extension import load_extension

#: Rays a pixel that the ray caster has a pattern for.
SAMPLES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Frame:
    """What the ray caster saw.

    Attributes:
        pixels: (H, W, 3) uint8.
        segmentation: (H, W) int32, the MuJoCo geom id in the middle of each pixel, -1 where there is none (sky).
        depth: (H, W) float32, metres along the camera's axis to that point; the far plane where there is none.
    """

    pixels: NDArray[np.uint8]
    segmentation: NDArray[np.int32]
    depth: NDArray[np.float32]


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets among avx512, avx2 and baseline that this CPU runs, the fastest first."""
    return tuple(load_extension().instruction_sets())


class RayCaster:
    """Draws one mjModel on the calling thread, following MuJoCo's classic renderer.

    `ParallelEnvironment(renderer="raycast")` has one for each of its threads; this class is for models of one's own.

    Args:
        model: a `mujoco.MjModel` (dm_control: `physics.model.ptr`).
        size: (height, width) of the pictures.
        camera: index or name of a camera of the model; -1 is MuJoCo's free camera.
        samples: rays a pixel: 1, 2, 4 or 8; None takes the default.
        instruction_set: one of `instruction_sets()`; None takes the fastest.

    Raises:
        ValueError: a wrong setting, or a geom that the ray caster cannot draw (mesh, height field, skin); it is named.

    Example:
        >>> import mujoco
        >>> model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
        >>> data = mujoco.MjData(model)
        >>> mujoco.mj_forward(model, data)
        >>> RayCaster(model, (48, 64), camera=-1).render(data).pixels.shape
        (48, 64, 3)
    """

    def __init__(
        self,
        model: Any,
        size: tuple[int, int],
        *,
        camera: int | str = 0,
        samples: int | None = None,
        instruction_set: str | None = None,
    ) -> None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size must be (height, width), both at least 1, got {size}")
        if samples is not None and samples not in SAMPLES:
            raise ValueError(f"samples must be one of {', '.join(map(str, SAMPLES))}, got {samples}")
        if instruction_set is not None and instruction_set not in instruction_sets():
            raise ValueError(f"instruction set {instruction_set!r}: {tasks.near(instruction_set, instruction_sets())}")
        self.model, self.size = model, size
        self._caster = load_extension().RayCaster(
            model=model._address,
            height=size[0],
            width=size[1],
            camera=tasks.camera_index(model, camera),
            samples=samples or 0,
            instruction_set=instruction_set or "",
        )

    @property
    def samples(self) -> int:
        """Rays a pixel."""
        return int(self._caster.samples())

    @property
    def instruction_set(self) -> str:
        """The instruction set that it was made for."""
        return str(self._caster.instruction_set())

    def render(self, data: Any) -> Frame:
        """Draw `data`, a `mujoco.MjData` of the model whose positions are up to date (`mujoco.mj_forward`)."""
        drawn = self._caster.render(self.model._address, data._address)
        return Frame(drawn["pixels"], drawn["segmentation"], drawn["depth"])
