"""`RayCaster`: pictures of any MuJoCo model whose geoms it knows, without a GL library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aime.envs import arguments, tasks
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
        _require_kind("model", model, "MjModel")
        height, width = arguments.picture_size("size", size)
        if samples is not None and arguments.whole("samples", samples) not in SAMPLES:
            raise ValueError(f"samples must be one of {', '.join(map(str, SAMPLES))}, got {samples}")
        if instruction_set is not None:
            arguments.word("instruction set", instruction_set, instruction_sets())
        index = tasks.camera_index(model, camera if isinstance(camera, str) else arguments.whole("camera", camera))
        self.model, self.size = model, (height, width)
        counts = {
            "geom_xpos": "ngeom",
            "light_xpos": "nlight",
            "cam_xpos": "ncam",
            "xpos": "nbody",
            "site_xpos": "nsite",
        }
        self._rows = {name: int(getattr(model, count)) for name, count in (counts | {"qpos": "nq"}).items()}
        self._caster = load_extension().RayCaster(
            model=model._address,
            height=height,
            width=width,
            camera=index,
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
        """Draw `data`, a `mujoco.MjData` of the model whose positions are up to date (`mujoco.mj_forward`).

        Raises:
            ValueError: `data` is of a model with another number of geoms, lights, cameras, bodies or sites.
        """
        _require_kind("data", data, "MjData")
        for name in ("geom_xpos", "light_xpos", "cam_xpos", "xpos", "site_xpos", "qpos"):
            found, expected = len(getattr(data, name)), self._rows[name]
            if found != expected:
                raise ValueError(f"data is of another model: {name} has {found} rows, this model's {expected}")
        drawn = self._caster.render(self.model._address, data._address)
        return Frame(drawn["pixels"], drawn["segmentation"], drawn["depth"])


def _require_kind(name: str, value: Any, kind: str) -> None:
    """C++ takes an address: what is not MuJoCo's own object would end the process."""
    if type(value).__name__ != kind or not type(value).__module__.startswith("mujoco"):
        raise ValueError(f"{name} must be a mujoco.{kind}, got {type(value).__name__}")
