"""`ParallelEnvironment` of tasks that have no C++ implementation: the physics in C++ threads, the rules in Python."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from aime.envs import callbacks, tasks
from aime.envs.model_fields import Randomise
from aime.envs.parallel_environment import ParallelEnvironment
from aime.envs.time_step import EnvironmentState, TimeStep

_ANNOUNCED: set[str] = set()


class CallbackEnvironment(ParallelEnvironment):
    """What `ParallelEnvironment.from_dm_control` makes; `ParallelEnvironment`, too, for domains added to the suite.

    Each environment has a dm_control environment of its own. C++ threads step its physics, and ask its task under the
    GIL: after each control step after_step, get_reward, get_observation and get_termination, before it before_step
    where the task has its own, at the beginning of an episode initialize_episode. One Python thread runs at a time, so
    this is slower than a task in C++; a UserWarning says so once for each name.

    Raises:
        RuntimeError: from `reset`, `step` and `recv` also where the task's Python raises: environment, task and place
            are named, and the exception is the cause. Results of that call are lost; the environment whose task failed
            begins a new episode next (with autoreset "disabled": after `reset`), the others go on.
        KeyboardInterrupt, SystemExit: as themselves where the task raises them; else the same holds.
    """

    def __init__(
        self,
        domain: str,
        task: str,
        num_envs: int = 1,
        *,
        make_environment: Callable[[np.random.RandomState], Any] | None = None,
        num_processes: int = 0,
        **options: Any,
    ) -> None:
        self._batch: Any = None
        if num_processes > 1:
            raise ValueError(
                f"{domain} {task} runs in Python callbacks, which need all environments in one process: "
                f"num_processes must be 0 or 1, got {num_processes}"
            )
        if options.get("randomise") is not None:
            raise ValueError(f"{domain} {task} owns its model: randomise it in initialize_episode")
        self._make_environment = make_environment
        self._callbacks: list[callbacks.TaskCallback] = []
        super().__init__(domain, task, num_envs, **options)
        name = f"{domain} {task}"
        if name not in _ANNOUNCED:
            _ANNOUNCED.add(name)
            warnings.warn(
                f"{name} has no C++ task: its rewards, observations and ends come from Python, one environment at a "
                "time, which is slower",
                UserWarning,
                stacklevel=3,
            )

    def reset(self, ids: Sequence[int] | None = None, *, seed: int | Sequence[int | None] | None = None) -> TimeStep:
        """Begin new episodes; see `ParallelEnvironment.reset`. `seed` makes the environments' tasks anew."""
        with self._causes():
            return super().reset(ids, seed=seed)

    def step(self, actions: ArrayLike) -> TimeStep:
        """Apply `actions` for `action_repeat` control steps; see `ParallelEnvironment.step`."""
        with self._causes():
            return super().step(actions)

    def recv(self) -> TimeStep:
        """The first environments to finish; see `ParallelEnvironment.recv`."""
        with self._causes():
            return super().recv()

    def state(self) -> EnvironmentState:
        """As `ParallelEnvironment.state`, with the attributes of each environment's task.

        Raises:
            TypeError: a task has an attribute that does not pickle.
        """
        state = super().state()
        return replace(state, task_states=tuple(callback.get_state() for callback in self._callbacks))

    def set_state(self, state: EnvironmentState) -> TimeStep:
        """Go on from `state`; see `ParallelEnvironment.set_state`."""
        batch = self._open()
        self._check_state(state)
        if len(state.task_states) != self.num_envs:
            raise ValueError(f"the state has {len(state.task_states)} states of Python tasks, here are {self.num_envs}")
        parsed = [
            callback.parse_state(own) for callback, own in zip(self._callbacks, state.task_states, strict=True)
        ]
        batch.drop_in_flight()
        for callback, own in zip(self._callbacks, parsed, strict=True):
            callback.set_state(*own)
        return super().set_state(state)

    def _loader(self, time_limit: float | None) -> Callable[[np.random.RandomState], Any]:
        make = self._make_environment
        if make is None:
            gl = self.renderer == "gl"
            make = functools.partial(tasks.load_from_suite, self.domain, self.task, time_limit, gl=gl)
        return functools.partial(_load, make, time_limit)

    def _make_callbacks(
        self, load: Callable[[np.random.RandomState], Any], random: np.random.RandomState
    ) -> list[callbacks.TaskCallback]:
        fields = callbacks.find_fields(load(np.random.RandomState(self.seeds[0])))
        self._callbacks.append(callbacks.TaskCallback(self._environment, random, fields, load))
        for seed in self.seeds[1:]:
            stream = np.random.RandomState(seed)
            self._callbacks.append(callbacks.TaskCallback(load(stream), stream, fields, load))
        return self._callbacks

    def _make_episodes(
        self,
        load: Callable[[np.random.RandomState], Any],  # noqa: ARG002
        randomise: Randomise | None,  # noqa: ARG002
    ) -> callbacks.CallbackEpisodes:
        return callbacks.CallbackEpisodes(self._callbacks)

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


def _load(make: Callable[[np.random.RandomState], Any], time_limit: float | None, random: np.random.RandomState) -> Any:
    environment = make(random)
    callbacks.require_suitable(environment)
    if time_limit is not None:
        environment._step_limit = time_limit / environment.control_timestep()
    return environment
