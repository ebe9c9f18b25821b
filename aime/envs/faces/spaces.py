"""What both Gymnasium faces share: the spaces of an environment, and its observations as those spaces have them."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from aime.envs.arguments import word
from aime.envs.parallel_environment import ParallelEnvironment
from aime.envs.time_step import FinalObservation, TimeStep

Observe = Literal["dict", "flat", "pixels"]
OBSERVE: tuple[Observe, ...] = ("dict", "flat", "pixels")


def check_observe(observe: str, pixels: tuple[int, int] | None) -> None:
    """Raise ValueError where the way to observe is unknown or does not fit `pixels`."""
    word("observe", observe, OBSERVE)
    if observe == "pixels" and pixels is None:
        raise ValueError("observe='pixels' needs pixels=(height, width)")
    if observe == "flat" and pixels is not None:
        raise ValueError("observe='flat' has no place for pixels: take 'dict' or 'pixels'")


def observation_space(env: ParallelEnvironment, observe: Observe) -> spaces.Space[Any]:
    """The space of one environment's observation.

    "dict": dm_control's names, unbounded as its own specs are, and "pixels" where there are any; "flat": the same
    numbers in one vector; "pixels": the picture alone, uint8 (H, W, 3), or (k, H, W, 3) with a frame stack.
    """
    shapes = env.observation_shapes
    if observe == "flat":
        return spaces.Box(-np.inf, np.inf, (sum(math.prod(shape) for shape in shapes.values()),), env.dtype)
    stack = (env.frame_stack,) if env.frame_stack > 1 else ()
    picture = None if env.pixels is None else spaces.Box(0, 255, (*stack, *env.pixels, 3), np.uint8)
    if observe == "pixels":
        assert picture is not None
        return picture
    entries: dict[str, spaces.Space[Any]] = {
        name: spaces.Box(-np.inf, np.inf, shape, env.dtype) for name, shape in shapes.items()
    }
    return spaces.Dict(entries | ({} if picture is None else {"pixels": picture}))


def action_space(env: ParallelEnvironment) -> spaces.Box:
    """The space of one environment's action: dm_control's bounds, float32 as Gymnasium's own MuJoCo tasks have it."""
    return spaces.Box(env.action_minimum.astype(np.float32), env.action_maximum.astype(np.float32), dtype=np.float32)


def observations(step: TimeStep | FinalObservation, observe: Observe) -> Any:
    """The batch of observations of a time step: views of its memory, but for "flat"."""
    if observe == "pixels":
        return step.pixels
    if observe == "flat":
        columns = [value.reshape(len(value), -1) for value in step.observation.values()]
        return np.concatenate(columns, axis=1)
    return {**step.observation} | ({} if step.pixels is None else {"pixels": step.pixels})


def one_of(batch: Any, env: int) -> Any:
    """The observation of one environment, in memory of its own."""
    if isinstance(batch, dict):
        return {name: np.array(value[env]) for name, value in batch.items()}
    return np.array(batch[env])


def copied(batch: Any) -> Any:
    """The batch in memory of its own."""
    return {name: value.copy() for name, value in batch.items()} if isinstance(batch, dict) else batch.copy()
