"""`ParallelEnvironment` over several processes: software OpenGL serves two threads of one process at most."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aime.envs import tasks
from aime.envs.extension import gl_displays
from aime.envs.parallel_environment import _RANGE_SLACK, ParallelEnvironment
from aime.envs.shared_steps import BLOCKS, SharedSteps
from aime.envs.time_step import EnvironmentState, TimeStep
from aime.envs.worker_processes import Workers

#: Fields of `EnvironmentState` that do not have one entry for each environment.
_SHARED_FIELDS = {"task", "mujoco_version"}


def choose_processes(
    num_envs: int,
    *,
    num_processes: int = 0,
    num_threads: int = 0,
    pixels: tuple[int, int] | None = None,
    renderer: str = "gl",
    batch_size: int | None = None,
    randomise: Any = None,
    **_: Any,
) -> int:
    """How many processes `ParallelEnvironment` splits over, by its arguments.

    More than one only for pictures of software OpenGL with more threads than it has displays: it draws under one lock
    per display, so that further threads wait. Each process then has a thread for each display.

    Raises:
        ValueError: a negative number, more processes than environments, or several with `batch_size` or `randomise`.
    """
    if num_processes < 0 or num_processes > num_envs:
        raise ValueError(f"num_processes must lie in [0, num_envs = {num_envs}], got {num_processes}")
    if num_processes > 1 and batch_size is not None:
        raise ValueError(f"batch_size needs all environments in one process, got num_processes={num_processes}")
    if num_processes > 1 and randomise is not None:
        raise ValueError(f"randomise needs all environments in one process, got num_processes={num_processes}")
    if num_processes > 0:
        return num_processes
    if pixels is None or renderer != "gl" or batch_size is not None or randomise is not None:
        return 1
    threads = min(num_threads or tasks.usable_cores(), num_envs)
    if threads <= 1:
        return 1
    displays = gl_displays()
    if not displays or not all(name.endswith("(software)") for name in displays):
        return 1  # a GPU draws for any number of threads; without a display, the constructor says what is missing
    return -(-threads // len(displays))


class ProcessEnvironment(ParallelEnvironment):
    """`ParallelEnvironment(num_processes=n)`: the same numbers, from environments that live in n worker processes.

    Each process is a new interpreter with a `ParallelEnvironment` of its share of the environments and of
    `num_threads`; results come back through shared memory. There is no `send` and `recv`,
    and no change of model fields.

    Raises:
        RuntimeError: also where a worker process ends; its environments are named, and the environment is closed.
    """

    def __init__(
        self,
        domain: str,
        task: str,
        num_envs: int = 1,
        *,
        num_processes: int = 0,
        num_threads: int = 0,
        seed: int | Sequence[int] | None = None,
        time_limit: float | None = None,
        **options: Any,
    ) -> None:
        self._batch: Any = None
        self._block, self._started = 0, False
        self._suite_arguments = (domain, task, time_limit)
        self._suite_environment: Any = None
        num_processes = choose_processes(num_envs, num_processes=num_processes, num_threads=num_threads, **options)
        self.num_envs, self.num_processes = num_envs, num_processes
        self.num_threads = max(min(num_threads or tasks.usable_cores(), num_envs), num_processes)
        self.seeds = tasks.expand_seed(seed, num_envs)
        counts = _split(num_envs, num_processes)
        self._starts = (0, *itertools.accumulate(counts))
        self._batch = workers = Workers(counts, f"{domain} {task}")
        common = {**options, "domain": domain, "task": task, "time_limit": time_limit, "num_processes": 1}
        threads = _split(self.num_threads, num_processes)
        messages = []
        for index, (first, end) in enumerate(itertools.pairwise(self._starts)):
            own = {"num_envs": end - first, "num_threads": threads[index], "seed": list(self.seeds[first:end])}
            messages.append((common | own, first))
        try:
            attributes, template = workers.ask(*messages)[0]
            vars(self).update(attributes)
            self._shared = SharedSteps(workers.file.fileno(), template, num_envs, self.action_size)
            workers.ask(("share", num_envs))
        except BaseException:
            self.close()
            raise

    @property
    def suite_environment(self) -> Any:
        """A dm_control environment of the task, for its specs; it is loaded here when it is asked for."""
        if self._suite_environment is None:
            random = np.random.RandomState(self.seeds[0])
            self._suite_environment = tasks.load(*self._suite_arguments, random, gl=self.renderer == "gl")
        return self._suite_environment

    def reset(self, ids: Sequence[int] | None = None, *, seed: int | Sequence[int | None] | None = None) -> TimeStep:
        """Begin new episodes in the environments `ids` (all by default); see `ParallelEnvironment.reset`."""
        self._open()
        chosen = set(self._chosen(ids))
        seeds: list[int | None] = [None] * self.num_envs
        for env, value in self._new_seeds(seed, chosen).items():
            seeds[env] = value
        self.seeds = tuple(old if new is None else new for old, new in zip(self.seeds, seeds, strict=True))
        arguments = []
        for first, end in itertools.pairwise(self._starts):
            own = [env - first for env in range(first, end) if env in chosen]
            arguments.append((None if ids is None else own, None if seed is None else seeds[first:end]))
        return self._next("reset", arguments)

    def step(self, actions: ArrayLike) -> TimeStep:
        """Apply `actions` (num_envs, action_size) for `action_repeat` control steps; see `ParallelEnvironment.step`."""
        workers = self._open()
        values = self._float_actions(actions, self.num_envs)
        low, high = self.action_minimum - _RANGE_SLACK, self.action_maximum + _RANGE_SLACK
        sound = (values >= low) & (values <= high)
        if not sound.all():
            raise self._wrong_action(values, int(np.flatnonzero(~sound)[0]), range(self.num_envs))
        self._require_started()
        workers.settle()  # a step that was interrupted still reads its actions
        if self.autoreset == "disabled":
            # Every process would find its own, after others have stepped.
            ended = np.flatnonzero(self._shared.blocks[self._block].last()).tolist()
            if ended:
                raise RuntimeError(f"the episodes of environments {ended} have ended: call reset({ended})")
        self._shared.actions[:] = values
        return self._next("step", [()] * self.num_processes)

    def send(self, actions: ArrayLike, ids: Sequence[int] | None = None) -> None:  # noqa: ARG002
        """Not here: raises RuntimeError."""
        raise RuntimeError("send and recv need all environments in one process: make it with num_processes=1")

    def recv(self) -> TimeStep:
        """Not here: raises RuntimeError."""
        raise RuntimeError("send and recv need all environments in one process: make it with num_processes=1")

    def set_model_field(self, name: str, values: ArrayLike, ids: Sequence[int] | None = None) -> None:  # noqa: ARG002
        """Not here: raises RuntimeError."""
        raise RuntimeError("model fields need all environments in one process: make it with num_processes=1")

    def model_field(self, name: str) -> NDArray[np.floating[Any]]:  # noqa: ARG002
        """Not here: raises RuntimeError."""
        raise RuntimeError("model fields need all environments in one process: make it with num_processes=1")

    def state(self) -> EnvironmentState:
        """All that decides how the environments go on; the processes do not show in it."""
        workers = self._open()
        self._require_started()
        return _joined(workers.ask(("state",)))

    def set_state(self, state: EnvironmentState) -> TimeStep:
        """Go on from `state`, of any number of processes; see `ParallelEnvironment.set_state`."""
        self._open()
        self._check_state(state)
        return self._next("set_state", [(_part(state, *ends),) for ends in itertools.pairwise(self._starts)])

    def _next(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> TimeStep:
        """Let every process write its rows of the next block."""
        block = (self._block + 1) % BLOCKS
        messages = [(method, block, *own) for own in arguments]
        faults: dict[int, str] = {}
        self._block = block  # at once: what is interrupted here, the processes complete
        for found in self._open().ask(*messages):
            faults.update(found)
        self._started = True
        step = self._shared.blocks[block]
        return replace(step, faults=faults) if faults else step


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
