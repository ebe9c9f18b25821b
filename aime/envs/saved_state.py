"""Checks of a saved state, all of them before an environment takes anything from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aime.envs.time_step import EnvironmentState, StepType

#: Words of the key of numpy's RandomState.
_KEY = 624
_MOST_STEPS = 2**53


def require_state(
    state: EnvironmentState,
    *,
    task: str,
    num_envs: int,
    mujoco_version: int,
    frames: tuple[int, ...] | None,
    python_tasks: int = 0,
) -> None:
    """Check that a state fits environments of this task, number and MuJoCo; `frames` is the shape of their stacks.

    `python_tasks` is the number of environments whose tasks run in Python.

    The physics and the model's changes are checked by the extension, fields and tasks by who keeps them.

    Raises:
        ValueError: it does not, or it is damaged; the first entry that is wrong is named.
    """
    if not isinstance(state, EnvironmentState):
        raise ValueError(f"set_state takes what state() gave, got {type(state).__name__}")  # noqa: TRY004
    if state.task != task:
        raise ValueError(f"the state is of '{state.task}', this environment is '{task}'")
    physics = _numbers("physics", state.physics, "f")
    if physics.ndim != 2:
        raise ValueError(f"the physics of a state has shape (environments, numbers), got {physics.shape}")
    if len(physics) != num_envs:
        raise ValueError(f"the state is of {len(physics)} environments, here are {num_envs}")
    if state.mujoco_version != mujoco_version:
        raise ValueError(f"the state was made by MuJoCo {state.mujoco_version}, this is {mujoco_version}")
    if not np.isfinite(physics).all():
        env = int(np.argwhere(~np.isfinite(physics))[0, 0])
        raise ValueError(f"the physics state of environment {env} is not finite")
    _require_counters(state, num_envs)
    for name in ("model_changes", "random_states", "fields"):
        rows = getattr(state, name)
        if not isinstance(rows, Sequence) or len(rows) != num_envs:
            raise ValueError(f"{name} of a state has an entry for each of {num_envs} environments, got {_size(rows)}")
    own = state.task_states
    if not isinstance(own, Sequence) or len(own) != python_tasks or not all(isinstance(one, bytes) for one in own):
        raise ValueError(f"the state has {_size(own)} states of Python tasks, here are {python_tasks}")
    for env in range(num_envs):
        _require_changes(env, state.model_changes[env])
        _require_random_state(env, state.random_states[env])
    if state.frames is None:
        return
    found = _numbers("frames", state.frames, "u")
    if frames is None or found.shape != frames or found.dtype != np.uint8:
        raise ValueError(f"frames of a state must be {frames} uint8 here, got {found.shape} {found.dtype}")


def generator_of(env: int, state: Any) -> np.random.Generator:
    """A generator in the state of an entry of `EnvironmentState.fields`.

    Raises:
        ValueError: it is no state of numpy's PCG64.
    """
    generator = np.random.default_rng(0)
    try:
        generator.bit_generator.state = state
    except (TypeError, ValueError, KeyError, OverflowError, AttributeError) as error:
        raise ValueError(f"the generator of environment {env} has no state of numpy's PCG64: {error}") from None
    return generator


def _require_counters(state: EnvironmentState, num_envs: int) -> None:
    lasts = max(StepType)
    for name, kinds, sound, expected in (
        ("reward", "f", lambda _: True, "a number"),
        ("discount", "f", lambda value: 0.0 <= value <= 1.0, "within [0, 1]"),
        ("step_type", "iu", lambda value: 0 <= value <= lasts, "0, 1 or 2"),
        ("step_count", "iu", lambda value: 0 <= value < _MOST_STEPS, "at least 0"),
    ):
        values = _numbers(name, getattr(state, name), kinds)
        if values.shape != (num_envs,):
            raise ValueError(f"{name} of a state has shape ({num_envs},) here, got {values.shape}")
        for env, value in enumerate(values.tolist()):
            if not sound(value):
                raise ValueError(f"{name} of environment {env} in the state must be {expected}, got {value}")


def _require_changes(env: int, changes: Any) -> None:
    wrong = f"model_changes of environment {env} in the state must be pairs of an offset and bytes"
    if not isinstance(changes, Sequence) or isinstance(changes, (str, bytes)):
        raise ValueError(f"{wrong}, got {type(changes).__name__}")  # noqa: TRY004
    for change in changes:
        sound = isinstance(change, Sequence) and len(change) == 2
        if not sound or not _is_whole(change[0], 0, 2**63 - 1) or not isinstance(change[1], bytes):
            raise ValueError(wrong)


def _require_random_state(env: int, state: Any) -> None:
    """numpy takes a position outside the key, and reads what lies there; a key of zeros never draws anything else."""
    wrong = (
        f"the random state of environment {env} must be numpy's ('MT19937', key, position, has_gauss, cached_gaussian)"
    )
    if not isinstance(state, tuple) or len(state) != 5 or state[0] != "MT19937":
        raise ValueError(wrong)
    key = np.asarray(state[1])
    if key.shape != (_KEY,) or key.dtype.kind not in "iu" or (key < 0).any() or (key >= 2**32).any():
        raise ValueError(f"{wrong}: its key has {_KEY} words of 32 bits")
    if not key.any():
        raise ValueError(f"{wrong}: a key of zeros draws nothing but zeros")
    if not _is_whole(state[2], 0, _KEY):
        raise ValueError(f"{wrong}: a position lies in [0, {_KEY}], got {state[2]!r}")
    if not _is_whole(state[3], 0, 1):
        raise ValueError(f"{wrong}: has_gauss is 0 or 1, got {state[3]!r}")
    if not isinstance(state[4], (int, float)) or not math.isfinite(state[4]):
        raise ValueError(f"{wrong}: cached_gaussian is a finite number, got {state[4]!r}")


def _numbers(name: str, value: Any, kinds: str) -> np.ndarray[Any, Any]:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
        found = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        kind = "real" if kinds == "f" else "whole"
        raise ValueError(f"{name} of a state must be an array of {kind} numbers, got {found}")
    return value


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, (int, np.integer)) and bool(least <= value <= most)


def _size(rows: Any) -> str:
    return str(len(rows)) if isinstance(rows, (Sequence, Mapping)) else type(rows).__name__
