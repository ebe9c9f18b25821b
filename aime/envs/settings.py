"""Checks of the arguments of an environment, each with one error that names what was found."""

from __future__ import annotations

from typing import Any

import numpy as np

from aime.envs import tasks
from aime.envs.raycaster import SAMPLES


def check_settings(
    num_envs: int,
    num_threads: int,
    action_repeat: int,
    quality: str,
    autoreset: str,
    time_limit: float | None,
) -> None:
    """Counts, words and times. Raises ValueError."""
    for name, value, least in (
        ("num_envs", num_envs, 1),
        ("num_threads", num_threads, 0),
        ("action_repeat", action_repeat, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    for name, word, known in (
        ("quality", quality, ("exact", "high", "fast")),
        ("autoreset", autoreset, ("next_step", "same_step", "disabled")),
    ):
        if word not in known:
            raise ValueError(f"unknown {name} {word!r}: {tasks.near(word, known)}")
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"time_limit must be positive, got {time_limit}")


def check_layout(
    num_envs: int, batch_size: int | None, frame_stack: int, pixels: tuple[int, ...] | None, dtype: Any
) -> None:
    """What the arrays hold. Raises ValueError."""
    if batch_size is not None and not 1 <= batch_size <= num_envs:
        raise ValueError(f"batch_size must lie in [1, num_envs = {num_envs}], got {batch_size}")
    if frame_stack < 1:
        raise ValueError(f"frame_stack must be at least 1, got {frame_stack}")
    if frame_stack > 1 and pixels is None:
        raise ValueError("frame_stack needs pixels=(height, width)")
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype must be numpy.float32 or numpy.float64, got {dtype!r}")


def check_pictures(
    pixels: tuple[int, ...] | None, renderer: str, samples: int | None, segmentation: bool, depth: bool
) -> None:
    """What is drawn, and by what. Raises ValueError."""
    if pixels is not None and (len(pixels) != 2 or min(pixels) < 1):
        raise ValueError(f"pixels must be (height, width), both at least 1, got {pixels}")
    if renderer not in ("gl", "raycast"):
        raise ValueError(f"unknown renderer {renderer!r}: {tasks.near(renderer, ('gl', 'raycast'))}")
    if samples is not None:
        if renderer == "gl":
            raise ValueError("samples is a setting of renderer='raycast'; that of 'gl' is quality")
        if samples not in SAMPLES:
            raise ValueError(f"samples must be one of {', '.join(map(str, SAMPLES))}, got {samples}")
    for name, wanted in (("segmentation", segmentation), ("depth", depth)):
        if wanted and pixels is None:
            raise ValueError(f"{name} needs pixels=(height, width)")
