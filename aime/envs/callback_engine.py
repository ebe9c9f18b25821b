"""The engine of tasks that have no C++ implementation: the physics in C++ threads, the rules in Python."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aime.envs import callbacks, tasks
from aime.envs.batch_engine import BatchEngine, Suite, require_renderer
from aime.envs.engine import Description
from aime.envs.settings import Settings
from aime.envs.time_step import EnvironmentState, TimeStep

_ANNOUNCED: set[str] = set()

MakeEnvironment = Callable[[np.random.RandomState], Any]


class CallbackEngine:
    """The `Engine` of `ParallelEnvironment.from_dm_control`, and of domains added to the suite.

    Each environment has a dm_control environment of its own. C++ threads step its physics, and ask its task under the
    GIL: after each control step after_step, get_reward, get_observation and get_termination, before it before_step
    where the task has its own, at the beginning of an episode initialize_episode. One Python thread runs at a time, so
    this is slower than a task in C++; a UserWarning says so once for each name.

    Args:
        settings: of the environments.
        make_environment: gives a new dm_control environment; None loads the pair from dm_control's suite.

    Raises:
        ValueError, TypeError: settings that need a C++ task, or environments that C++ cannot step.
        RuntimeError: from `reset`, `step` and `recv` where the task's Python raises: environment, task and place are
            named, and the exception is the cause. The environment whose task failed begins a new episode next (with
            autoreset "disabled": after `reset`), the others go on.
        KeyboardInterrupt, SystemExit: as themselves where the task raises them; else the same holds.
    """

    def __init__(self, settings: Settings, make_environment: MakeEnvironment | None = None) -> None:
        if settings.num_processes > 1:
            raise ValueError(
                f"{settings.name} runs in Python callbacks, which need all environments in one process: "
                f"num_processes must be 0 or 1, got {settings.num_processes}"
            )
        if settings.randomise is not None:
            raise ValueError(f"{settings.name} owns its model: randomise it in initialize_episode")
        require_renderer(settings)
        suite = _load_all(settings, make_environment)
        self._callbacks = suite.callbacks
        self._batch = BatchEngine(settings, suite)
        if settings.name not in _ANNOUNCED:
            _ANNOUNCED.add(settings.name)
            warnings.warn(
                f"{settings.name} has no C++ task: its rewards, observations and ends come from Python, one "
                "environment at a time, which is slower",
                UserWarning,
                stacklevel=4,
            )

    @property
    def description(self) -> Description:
        """What was loaded."""
        return self._batch.description

    @property
    def suite_environment(self) -> Any:
        """The dm_control environment that environment 0 began with."""
        return self._batch.suite_environment

    def reset(self, ids: Sequence[int] | None, seeds: Mapping[int, int]) -> TimeStep:
        """Begin episodes; `seeds` make the environments' tasks anew."""
        with self._causes():
            return self._batch.reset(ids, seeds)

    def step(self, actions: NDArray[np.float64]) -> TimeStep:
        """All environments step."""
        with self._causes():
            return self._batch.step(actions)

    def send(self, actions: NDArray[np.float64], ids: Sequence[int]) -> None:
        """Some environments step."""
        self._batch.send(actions, ids)

    def recv(self) -> TimeStep:
        """The first results."""
        with self._causes():
            return self._batch.recv()

    def set_model_field(self, name: str, values: ArrayLike, ids: Sequence[int]) -> None:
        """Not here: raises ValueError."""
        self._batch.set_model_field(name, values, ids)

    def model_field(self, name: str) -> NDArray[np.floating[Any]]:
        """Not here: raises ValueError."""
        return self._batch.model_field(name)

    def state(self) -> EnvironmentState:
        """That of the batch, with the attributes of each environment's task; TypeError for one that does not pickle."""
        state = self._batch.state()
        return replace(state, task_states=tuple(callback.get_state() for callback in self._callbacks))

    def check_state(self, state: EnvironmentState) -> None:
        """ValueError where batch or tasks could not take `state`."""
        self._batch.check_state(state)
        self._parsed(state)

    def set_state(self, state: EnvironmentState) -> TimeStep:
        """The attributes of the tasks, and what the batch has of `state`."""
        parsed = self._parsed(state)
        self._batch.drop_in_flight()
        for callback, own in zip(self._callbacks, parsed, strict=True):
            callback.set_state(*own)
        return self._batch.set_state(state)

    def renderer(self) -> str:
        """What each thread has drawn with."""
        return self._batch.renderer()

    def close(self) -> None:
        """End the threads."""
        self._batch.close()

    def _parsed(self, state: EnvironmentState) -> list[tuple[dict[str, Any], NDArray[np.float64]]]:
        pairs = zip(self._callbacks, state.task_states, strict=True)
        return [callback.parse_state(own) for callback, own in pairs]

    @contextlib.contextmanager
    def _causes(self) -> Iterator[None]:
        """Give an error of the batch the exception of the task behind it; an interrupt is raised as itself."""
        interrupt = None
        try:
            yield
        except RuntimeError as error:
            cause = callbacks.take_error(self._callbacks, str(error))
            if cause is None:
                raise
            if isinstance(cause, Exception):
                raise error from cause
            interrupt = cause
        if interrupt is not None:
            raise interrupt


def _load_all(settings: Settings, make: MakeEnvironment | None) -> Suite:
    """An environment for each seed, and the fields of one more that is not used on."""
    if make is None:
        gl = settings.renderer == "gl"
        make = functools.partial(tasks.load_from_suite, settings.domain, settings.task, settings.time_limit, gl=gl)
    load = functools.partial(_load, make, settings.time_limit)
    streams = [np.random.RandomState(seed) for seed in settings.seeds]
    first = load(streams[0])
    fields = callbacks.find_fields(load(np.random.RandomState(settings.seeds[0])))
    environments = [first, *(load(stream) for stream in streams[1:])]
    callbacks.require_alike(environments)
    made = [
        callbacks.TaskCallback(environment, stream, fields, load)
        for environment, stream in zip(environments, streams, strict=True)
    ]
    return Suite(first, load, made)


def _load(make: MakeEnvironment, time_limit: float | None, random: np.random.RandomState) -> Any:
    environment = make(random)
    callbacks.require_suitable(environment)
    if time_limit is not None:
        environment._step_limit = time_limit / environment.control_timestep()
    return environment
