"""Checks of single arguments, of calls and of settings; each wrong one is a ValueError that says what was found."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aime.envs.tasks import near

_LONGEST_SIDE = 2**14  # of a picture; no GL library draws larger ones
#: Which environments: their numbers, or a boolean mask of all.
Ids = Sequence[int] | NDArray[np.integer[Any]] | NDArray[np.bool_]


def environment_ids(ids: Ids | None, num_envs: int) -> list[int]:
    """The numbers of the environments in their order; None: all; a boolean mask (num_envs,): those where it is True.

    Raises:
        ValueError: no such environment, a mask of another length, or something else.
    """
    if ids is None:
        return list(range(num_envs))
    wrong = f"ids must be numbers of environments or a boolean mask ({num_envs},), got {reprlib.repr(ids)}"
    asked: Any = ids
    if isinstance(asked, (str, bytes, Mapping)) or not (_is_array(asked) or isinstance(asked, Collection)):
        raise ValueError(wrong)
    try:
        given = np.asarray(asked if _is_array(asked) else list(asked))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(wrong) from None
    if given.ndim != 1:
        raise ValueError(wrong)
    if given.dtype == np.bool_:
        if len(given) != num_envs:
            raise ValueError(f"a boolean mask needs an entry for each of the {num_envs} environments, got {len(given)}")
        return [int(env) for env in np.flatnonzero(given)]
    if given.size and given.dtype.kind not in "iu":
        raise ValueError(wrong)
    for env in given.tolist():
        if not 0 <= env < num_envs:
            raise ValueError(f"no environment {env}: there are {num_envs}, numbered from 0")
    return [int(env) for env in given]


def real_actions(actions: ArrayLike, count: int, action_size: int, *, rows: str) -> NDArray[np.float64]:
    """`actions` as float64 (count, action_size), in C order; `rows` names the first axis in messages.

    Raises:
        ValueError: no real numbers, or another shape.
    """
    try:
        given = np.asarray(actions)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"actions must be an array of real numbers: {error}") from None
    if given.dtype.kind not in "fiu":
        raise ValueError(f"actions must be real numbers, got an array of {given.dtype}")
    values = np.ascontiguousarray(given, dtype=np.float64)
    if given.shape != (count, action_size):
        expected = (count, action_size)
        raise ValueError(f"actions must have shape ({rows}, action_size) = {expected}, got {given.shape}")
    return values


def wrong_action(
    values: NDArray[np.float64],
    index: int,
    ids: Sequence[int],
    minimum: NDArray[np.float64],
    maximum: NDArray[np.float64],
) -> ValueError:
    """The error of `values`, row i for environment ids[i], whose flat entry `index` is not within its bounds."""
    row, entry = divmod(index, values.shape[1])
    return ValueError(
        f"action of environment {ids[row]}, entry {entry} is {values[row, entry]}: "
        f"it must be finite and within [{minimum[entry]}, {maximum[entry]}]"
    )


def word(name: str, value: Any, known: Collection[str]) -> Any:
    """`value`, one of the `known` words. Raises ValueError, with near words."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"unknown {name} {value!r}: {near(str(value), known)}")
    return value


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """`value` as an int within [least, most]. Raises ValueError."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name} must be a whole number, got {value!r}")  # noqa: TRY004
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")
    return int(value)


def picture_size(name: str, value: Any) -> tuple[int, int]:
    """(height, width). Raises ValueError."""
    problem = f"{name} must be (height, width), both at least 1, got {value!r}"
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(problem)
    try:
        height, width = (whole(name, side, 1) for side in value)
    except ValueError:
        raise ValueError(problem) from None
    if max(height, width) > _LONGEST_SIDE:
        raise ValueError(f"{name} must be (height, width), both at most {_LONGEST_SIDE}, got {value!r}")
    return height, width


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__")
