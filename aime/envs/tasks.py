"""The tasks behind the batch: loading through dm_control, names and their near ones, and the model's own tables."""

from __future__ import annotations

import difflib
import os
import reprlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aime.envs.extension import load_extension, load_suite
from aime.envs.time_step import Joint

# mjtJoint
_JOINT_KINDS = (("free", 7, 6), ("ball", 4, 3), ("slide", 1, 1), ("hinge", 1, 1))


def usable_cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def near(name: str, known: Iterable[str]) -> str:
    """The end of an error message: near names if there are any, and all names."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(repr(match) for match in close)}? " if close else ""
    return f"{hint}Known: {', '.join(names)}"


def supported() -> tuple[tuple[str, str], ...]:
    """The (domain, task) pairs that `ParallelEnvironment` runs."""
    return tuple((domain, task) for domain, task in load_extension().supported_tasks())


def load(domain: str, task: str, time_limit: float | None, random: np.random.RandomState, *, gl: bool = True) -> Any:
    """A dm_control environment of the pair that draws from `random`; `gl` as in `load_suite`.

    Raises:
        ValueError: the pair is not supported; near names are suggested.
    """
    pairs = supported()
    domains = {name for name, _ in pairs}
    if domain not in domains:
        raise ValueError(f"unknown domain {domain!r}: {near(domain, domains)}")
    known = [name for owner, name in pairs if owner == domain]
    if task not in known:
        raise ValueError(f"unknown task {task!r} of domain {domain!r}: {near(task, known)}")
    return load_from_suite(domain, task, time_limit, random, gl=gl)


def is_registered(domain: str, task: str) -> bool:
    """Whether somebody added this pair to dm_control's suite, so that there is no C++ for it."""
    suite = sys.modules.get("dm_control.suite")
    module = getattr(suite, "_DOMAINS", {}).get(domain)
    return module is not None and task in module.SUITE and (domain, task) not in supported()


def load_from_suite(
    domain: str, task: str, time_limit: float | None, random: np.random.RandomState, *, gl: bool = True
) -> Any:
    """As `load`, for every pair that dm_control's suite knows."""
    options: dict[str, Any] = {"random": random}
    if time_limit is not None:
        options["time_limit"] = time_limit
    return load_suite(gl).load(domain, task, task_kwargs=options)


def camera_index(model: Any, camera: int | str) -> int:
    """The index of a camera of an mjModel given by index or name.

    Raises:
        ValueError: the model has no such camera; its cameras are listed.
    """
    count = int(model.ncam)
    names = [str(model.camera(index).name) for index in range(count)]
    if isinstance(camera, str):
        if camera not in names:
            raise ValueError(f"unknown camera {camera!r}: {near(camera, names)}")
        return names.index(camera)
    if not -1 <= camera < count:
        listing = ", ".join(f"{index} ({name})" for index, name in enumerate(names))
        raise ValueError(f"no camera {camera}: the model has {listing} and -1 (free)")
    return int(camera)


def expand_seed(seed: int | Sequence[int] | NDArray[np.integer[Any]] | None, num_envs: int) -> tuple[int, ...]:
    """One seed for each environment.

    Raises:
        ValueError: a sequence of another length, or a seed outside numpy's range.
        TypeError: a seed that is not a whole number.
    """
    if seed is None:
        return tuple(int(value) for value in np.random.SeedSequence().generate_state(num_envs))
    given: Any = seed.tolist() if isinstance(seed, np.ndarray) else seed  # one number, where it has no axis
    if _is_whole(given):
        seeds = tuple(int(given) + env for env in range(num_envs))
    else:
        several = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
        for value in given if several else [given]:
            if not _is_whole(value):
                raise TypeError(f"a seed must be an int in [0, 2**32), got {reprlib.repr(value)}")
        seeds = tuple(int(value) for value in given)
        if len(seeds) != num_envs:
            raise ValueError(f"{len(seeds)} seeds for {num_envs} environments")
    for value in seeds:
        if not 0 <= value < 2**32:
            raise ValueError(f"a seed must lie in [0, 2**32), got {value}")
    return seeds


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def joints(model: Any) -> tuple[Joint, ...]:
    """The joints of an mjModel in the order of its state."""
    found = []
    for index in range(model.njnt):
        kind, positions, velocities = _JOINT_KINDS[int(model.jnt_type[index])]
        found.append(
            Joint(
                name=model.joint(index).name,
                kind=kind,
                qpos_start=int(model.jnt_qposadr[index]),
                qpos_size=positions,
                qvel_start=int(model.jnt_dofadr[index]),
                qvel_size=velocities,
                limited=bool(model.jnt_limited[index]),
            )
        )
    return tuple(found)
