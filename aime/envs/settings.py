"""The arguments of an environment, all checked in one place before any resource is taken."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aime.envs import tasks
from aime.envs.arguments import picture_size, whole, word
from aime.envs.model_fields import Randomise
from aime.envs.raycaster import SAMPLES

Renderer = Literal["gl", "raycast"]
Quality = Literal["exact", "high", "fast"]
Autoreset = Literal["next_step", "same_step", "disabled"]

#: Limits that no use comes near and that keep sizes within what the extension counts in.
_MOST_ENVIRONMENTS = 2**20
_MOST_REPEATS = 2**31 - 1
_MOST_FRAMES = 2**16


@dataclass(frozen=True)
class Settings:
    """What `ParallelEnvironment` was asked for, as its arguments of these names say; made by `checked`.

    `num_threads` is resolved; `num_processes` may still be 0; `seeds` has one entry for each environment.
    """

    domain: str
    task: str
    num_envs: int
    num_threads: int
    num_processes: int
    batch_size: int | None
    action_repeat: int
    seeds: tuple[int, ...]
    pixels: tuple[int, int] | None
    camera: int | str
    renderer: Renderer
    quality: Quality
    samples: int | None
    segmentation: bool
    frame_stack: int
    depth: bool
    autoreset: Autoreset
    time_limit: float | None
    dtype: type[np.float32 | np.float64]
    randomise: Randomise | None

    @property
    def name(self) -> str:
        """Domain and task with a space between them, for messages and states."""
        return f"{self.domain} {self.task}"


def checked(
    domain: str,
    task: str,
    num_envs: int = 1,
    *,
    num_threads: int = 0,
    num_processes: int = 0,
    batch_size: int | None = None,
    action_repeat: int = 1,
    seed: int | Sequence[int] | None = None,
    pixels: tuple[int, int] | None = None,
    camera: int | str = 0,
    renderer: Renderer = "gl",
    quality: Quality = "exact",
    samples: int | None = None,
    segmentation: bool = False,
    frame_stack: int = 1,
    depth: bool = False,
    autoreset: Autoreset = "next_step",
    time_limit: float | None = None,
    dtype: Any = np.float64,
    randomise: Randomise | None = None,
) -> Settings:
    """The settings with these arguments of `ParallelEnvironment`.

    Raises:
        ValueError: an argument of a wrong type, outside its range, or that does not go with another one.
        TypeError: a seed that is not a whole number, an argument that there is not.
    """
    for name, text in (("domain", domain), ("task", task)):
        if not isinstance(text, str):
            raise ValueError(f"{name} must be a string, got {text!r}")  # noqa: TRY004
    num_envs = whole("num_envs", num_envs, 1, _MOST_ENVIRONMENTS)
    num_threads = whole("num_threads", num_threads, 0)
    if pixels is not None:
        pixels = picture_size("pixels", pixels)
    if time_limit is not None and not (_is_real(time_limit) and time_limit > 0):
        raise ValueError(f"time_limit must be positive, got {time_limit!r}")
    if randomise is not None and not callable(randomise):
        raise ValueError(f"randomise must be a function of (env, generator), got {randomise!r}")
    settings = Settings(
        domain=domain,
        task=task,
        num_envs=num_envs,
        num_threads=min(num_threads or tasks.usable_cores(), num_envs),
        num_processes=whole("num_processes", num_processes, 0),
        batch_size=None if batch_size is None else whole("batch_size", batch_size),
        action_repeat=whole("action_repeat", action_repeat, 1, _MOST_REPEATS),
        seeds=tasks.expand_seed(seed, num_envs),
        pixels=pixels,
        camera=camera if isinstance(camera, str) else whole("camera", camera),
        renderer=word("renderer", renderer, ("gl", "raycast")),
        quality=word("quality", quality, ("exact", "high", "fast")),
        samples=None if samples is None else whole("samples", samples),
        segmentation=_flag("segmentation", segmentation),
        frame_stack=whole("frame_stack", frame_stack, 1, _MOST_FRAMES),
        depth=_flag("depth", depth),
        autoreset=word("autoreset", autoreset, ("next_step", "same_step", "disabled")),
        time_limit=None if time_limit is None else float(time_limit),
        dtype=_number_type(dtype),
        randomise=randomise,
    )
    _require_fitting(settings)
    return settings


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {value!r}")  # noqa: TRY004
    return bool(value)


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _number_type(dtype: Any) -> type[np.float32 | np.float64]:
    """The type of `numpy.float32`, `numpy.dtype("float32")`, "float32" and so on; None is no choice here."""
    try:
        found = None if dtype is None else np.dtype(dtype)
    except TypeError:
        found = None
    if found == np.float32:
        return np.float32
    if found == np.float64:
        return np.float64
    raise ValueError(f"dtype must be numpy.float32 or numpy.float64, got {dtype!r}")


def _require_fitting(settings: Settings) -> None:
    """What arguments say of each other. Raises ValueError."""
    count, pixels, processes = settings.num_envs, settings.pixels, settings.num_processes
    if settings.batch_size is not None and not 1 <= settings.batch_size <= count:
        raise ValueError(f"batch_size must lie in [1, num_envs = {count}], got {settings.batch_size}")
    if processes > count:
        raise ValueError(f"num_processes must lie in [0, num_envs = {count}], got {processes}")
    for name, value in (("batch_size", settings.batch_size), ("randomise", settings.randomise)):
        if processes > 1 and value is not None:
            raise ValueError(f"{name} needs all environments in one process, got num_processes={processes}")
    if settings.samples is not None:
        if settings.renderer == "gl":
            raise ValueError("samples is a setting of renderer='raycast'; that of 'gl' is quality")
        if settings.samples not in SAMPLES:
            raise ValueError(f"samples must be one of {', '.join(map(str, SAMPLES))}, got {settings.samples}")
    for name, wanted in (
        ("frame_stack", settings.frame_stack > 1),
        ("segmentation", settings.segmentation),
        ("depth", settings.depth),
    ):
        if wanted and pixels is None:
            raise ValueError(f"{name} needs pixels=(height, width)")
    if pixels is not None:
        a_pixel = 3 * settings.frame_stack + 5 * settings.segmentation + 4 * settings.depth
        blocks = (
            5 if settings.autoreset == "same_step" else 3
        )  # two that alternate (twice, with the final ones), the last
        require_memory(f"pictures of {pixels} for {count} environments", blocks * count * math.prod(pixels) * a_pixel)


def require_memory(what: str, size: int) -> None:
    """Raise ValueError where `size` bytes are more than the machine has left; does nothing where it does not say."""
    left = _memory_left()
    if left is not None and size > left:
        raise ValueError(
            f"{what} take about {size / 2**30:.1f} GiB of memory, this machine has {left / 2**30:.1f} left"
        )


def _memory_left() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024 * kilobytes[0] if kilobytes and os.name == "posix" else None
