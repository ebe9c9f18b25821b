"""The engine of several processes: software OpenGL serves two threads of one process at most."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aime.envs import tasks
from aime.envs.arguments import wrong_action
from aime.envs.engine import RANGE_SLACK, Description
from aime.envs.extension import gl_displays
from aime.envs.saved_state import require_state
from aime.envs.settings import Settings
from aime.envs.shared_steps import BLOCKS, SharedSteps
from aime.envs.time_step import EnvironmentState, TimeStep
from aime.envs.worker_processes import Workers

#: Fields of `EnvironmentState` that do not have one entry for each environment.
_SHARED_FIELDS = {"task", "mujoco_version"}


def choose_processes(settings: Settings) -> int:
    """How many processes environments are split over.

    More than one, unless asked for, only for pictures of software OpenGL with more threads than it has displays: it
    draws under one lock per display, so that further threads wait. Each process then has a thread for each display.
    """
    if settings.num_processes > 0:
        return settings.num_processes
    threads = settings.num_threads
    in_one = settings.pixels is None or settings.renderer != "gl" or threads <= 1
    if in_one or settings.batch_size is not None or settings.randomise is not None:
        return 1
    displays = gl_displays()
    if not displays or not all(name.endswith("(software)") for name in displays):
        return 1  # a GPU draws for any number of threads; without a display, the engine says what is missing
    return -(-threads // len(displays))


class ProcessEngine:
    """An `Engine` with the numbers of one process, from environments that live in `count` worker processes.

    Each process is a new interpreter with an engine of its share of the environments and of `num_threads`; results come
    back through shared memory. There is no `send` and `recv`, and no change of model fields.

    Raises:
        RuntimeError: also where a worker process ends; its environments are named, and the environment is closed.
    """

    def __init__(self, settings: Settings, count: int) -> None:
        self.settings, self._block = settings, 0
        counts = _split(settings.num_envs, count)
        self._starts = (0, *itertools.accumulate(counts))
        num_threads = max(settings.num_threads, count)
        threads = _split(num_threads, count)
        self._workers = Workers(counts, settings.name)
        messages = []
        for index, (first, end) in enumerate(itertools.pairwise(self._starts)):
            own = replace(
                settings,
                num_envs=end - first,
                num_threads=threads[index],
                num_processes=1,
                seeds=settings.seeds[first:end],
            )
            messages.append((own, first))
        try:
            described, template = self._workers.ask(*messages)[0]
            self.description: Description = replace(described, num_threads=num_threads, num_processes=count)
            action_size = len(self.description.action_minimum)
            self._shared = SharedSteps(self._workers.file.fileno(), template, settings.num_envs, action_size)
            self._workers.ask(("share", settings.num_envs))
        except BaseException:
            self.close()
            raise

    @functools.cached_property
    def suite_environment(self) -> Any:
        """A dm_control environment of the task, for its specs; it is loaded here when it is asked for."""
        settings = self.settings
        random = np.random.RandomState(settings.seeds[0])
        return tasks.load(settings.domain, settings.task, settings.time_limit, random, gl=settings.renderer == "gl")

    def reset(self, ids: Sequence[int] | None, seeds: Mapping[int, int]) -> TimeStep:
        """Begin episodes."""
        chosen = None if ids is None else set(ids)
        arguments = []
        for first, end in itertools.pairwise(self._starts):
            own = None if chosen is None else [env - first for env in range(first, end) if env in chosen]
            arguments.append((own, {env - first: seeds[env] for env in range(first, end) if env in seeds}))
        return self._next("reset", arguments)

    def step(self, actions: NDArray[np.float64]) -> TimeStep:
        """All environments step."""
        low, high = self.description.action_minimum, self.description.action_maximum
        sound = (actions >= low - RANGE_SLACK) & (actions <= high + RANGE_SLACK)
        if not sound.all():
            raise wrong_action(actions, int(np.flatnonzero(~sound)[0]), range(len(actions)), low, high)
        self._workers.settle()  # a step that was interrupted still reads its actions
        if self.settings.autoreset == "disabled":
            # Every process would find its own, after others have stepped.
            ended = np.flatnonzero(self._shared.blocks[self._block].last()).tolist()
            if ended:
                raise RuntimeError(f"the episodes of environments {ended} have ended: call reset({ended})")
        self._shared.actions[:] = actions
        return self._next("step", [()] * len(self._workers.workers))

    def send(self, actions: NDArray[np.float64], ids: Sequence[int]) -> None:  # noqa: ARG002
        """Not here: raises RuntimeError."""
        self._refuse("send and recv need")

    def recv(self) -> TimeStep:
        """Not here: raises RuntimeError."""
        self._refuse("send and recv need")

    def set_model_field(self, name: str, values: ArrayLike, ids: Sequence[int]) -> None:  # noqa: ARG002
        """Not here: raises RuntimeError."""
        self._refuse("model fields need")

    def model_field(self, name: str) -> NDArray[np.floating[Any]]:  # noqa: ARG002
        """Not here: raises RuntimeError."""
        self._refuse("model fields need")

    def state(self) -> EnvironmentState:
        """The states of all processes in one; the processes do not show in it."""
        return _joined(self._workers.ask(("state",)))

    def check_state(self, state: EnvironmentState) -> None:
        """ValueError where a process could not take its part of `state`."""
        settings = self.settings
        stacked = settings.pixels is not None and settings.frame_stack > 1
        require_state(
            state,
            task=settings.name,
            num_envs=settings.num_envs,
            mujoco_version=self.description.mujoco_version,
            frames=(settings.num_envs, settings.frame_stack, *(settings.pixels or ()), 3) if stacked else None,
        )
        self._workers.ask(*(("check_state", part) for part in self._parts(state)))

    def set_state(self, state: EnvironmentState) -> TimeStep:
        """Every process goes on from its part."""
        return self._next("set_state", [(part,) for part in self._parts(state)])

    def renderer(self) -> str:
        """What each thread of each process has drawn with."""
        return ", ".join(name for name in self._workers.ask(("renderer",)) if name)

    def close(self) -> None:
        """End the processes, in order where they answer."""
        self._workers.close()

    def _parts(self, state: EnvironmentState) -> list[EnvironmentState]:
        return [_part(state, *ends) for ends in itertools.pairwise(self._starts)]

    def _next(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> TimeStep:
        """Let every process write its rows of the next block."""
        block = (self._block + 1) % BLOCKS
        messages = [(method, block, *own) for own in arguments]
        faults: dict[int, str] = {}
        self._block = block  # at once: what is interrupted here, the processes complete
        for found in self._workers.ask(*messages):
            faults.update(found)
        step = self._shared.blocks[block]
        return replace(step, faults=faults) if faults else step

    def _refuse(self, what: str) -> NoReturn:
        raise RuntimeError(f"{what} all environments in one process: make it with num_processes=1")


def _split(count: int, parts: int) -> list[int]:
    """`count` in `parts` that differ by one at most, the larger ones first."""
    return [count // parts + (part < count % parts) for part in range(parts)]


def _part(state: EnvironmentState, first: int, end: int) -> EnvironmentState:
    """The state of the environments first ... end - 1."""
    rows: dict[str, Any] = {name: None if value is None else value[first:end] for name, value in _rows(state).items()}
    return replace(state, **rows)


def _joined(states: Sequence[EnvironmentState]) -> EnvironmentState:
    """One state of the environments of all."""
    rows: dict[str, Any] = {}
    for name, value in _rows(states[0]).items():
        parts = [getattr(state, name) for state in states]
        if isinstance(value, np.ndarray):
            rows[name] = np.concatenate(parts)
        else:
            rows[name] = None if value is None else tuple(itertools.chain.from_iterable(parts))
    return replace(states[0], **rows)


def _rows(state: EnvironmentState) -> dict[str, Any]:
    """The fields that have one entry for each environment."""
    return {entry.name: getattr(state, entry.name) for entry in fields(state) if entry.name not in _SHARED_FIELDS}
