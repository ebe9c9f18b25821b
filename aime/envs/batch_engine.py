"""The engine in this process: a batch of environments in C++, and the episodes that begin them."""

from __future__ import annotations

import atexit
import functools
import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aime.envs import tasks
from aime.envs.arguments import wrong_action
from aime.envs.callbacks import CallbackEpisodes, TaskCallback
from aime.envs.engine import RANGE_SLACK, Description
from aime.envs.episodes import Episodes
from aime.envs.extension import gl_displays, load_extension, probe_gl
from aime.envs.saved_state import require_state
from aime.envs.settings import Settings, require_memory
from aime.envs.time_step import EnvironmentState, FinalObservation, TimeStep

#: About what Python and C++ keep of one environment besides its physics.
_BYTES_OF_AN_ENVIRONMENT = 2**14


@dataclass(frozen=True)
class Suite:
    """dm_control's part: the environment that compiled the model, and how to make others.

    `callbacks` has an entry for each environment where their tasks run in Python, and is empty for tasks of C++.
    """

    environment: Any
    load: Callable[[np.random.RandomState], Any]
    callbacks: Sequence[TaskCallback] = ()


def require_renderer(settings: Settings) -> None:
    """RuntimeError where this machine cannot draw what is asked for; it says what was tried and what to install."""
    load_extension()
    if settings.pixels is not None and settings.renderer == "gl" and not gl_displays():
        probe_gl()


class BatchEngine:
    """An `Engine` of C++ threads with the GIL released; without a `suite` it loads dm_control's by its names."""

    def __init__(self, settings: Settings, suite: Suite | None = None) -> None:
        require_renderer(settings)
        self.settings, self._extension = settings, load_extension()
        self._suite = suite or _load_suite(settings)
        self._batch = self._make_batch(self._suite)
        _OPEN.add(self)
        _close_at_exit()
        environment, model = self._suite.environment, self._suite.environment.physics.model.ptr
        fields: list[tuple[str, tuple[int, ...]]] = self._batch.fields()
        if self._suite.callbacks:
            self._episodes: Episodes | CallbackEpisodes = CallbackEpisodes(self._suite.callbacks)
        else:
            self._episodes = Episodes(environment, self._suite.load, self._batch, settings.seeds, settings.randomise)
        self.description = Description(
            num_threads=settings.num_threads,
            num_processes=1,
            camera=self._camera,
            samples=self._samples if settings.renderer == "raycast" else None,
            action_minimum=self._minimum,
            action_maximum=self._maximum,
            control_timestep=float(environment.control_timestep()) * settings.action_repeat,
            joints=tasks.joints(model),
            observation_shapes=dict(fields),
            mujoco_version=int(self._extension.mujoco_version()),
            begins_in_cpp=self._episodes.in_cpp,
        )
        self._steps: dict[tuple[int, bool], TimeStep] = {}  # of each block of the batch's memory

    @property
    def suite_environment(self) -> Any:
        """The dm_control environment that compiled the model and begins the episodes; for its specs, not for steps."""
        return self._suite.environment

    def reset(self, ids: Sequence[int] | None, seeds: Mapping[int, int]) -> TimeStep:
        """Begin episodes; all of them drop what is in flight."""
        with self._batch as batch:
            if ids is None:
                batch.drop_in_flight()
            else:
                self._require_settled()
            self._episodes.reseed(seeds)
            chosen = None if ids is None else sorted(set(ids))
            self._episodes.load(batch.lacking(chosen, True))
            return self._time_step(*batch.begin(chosen))

    def step(self, actions: NDArray[np.float64]) -> TimeStep:
        """All environments step."""
        batch = self._batch
        if self._episodes.alone:
            block, troubled = batch.step(actions)
        else:
            with batch:
                if (wrong := batch.wrong_action(actions)) >= 0:
                    raise self._wrong_action(actions, wrong, range(self.settings.num_envs))
                self._require_settled()
                self._episodes.load(batch.lacking(None, False))
                block, troubled = batch.step(actions, self._episodes.prepare_one)
        if block < 0:
            raise self._wrong_action(actions, -1 - block, range(self.settings.num_envs))
        return self._time_step(block, troubled)

    def send(self, actions: NDArray[np.float64], ids: Sequence[int]) -> None:
        """Some environments step, while the caller does something else."""
        with self._batch as batch:
            if (wrong := batch.wrong_action(actions)) >= 0:
                raise self._wrong_action(actions, wrong, ids)
            self._episodes.load(batch.lacking(ids, False))
            batch.send(ids, actions)
            self._episodes.prepare_one()

    def recv(self) -> TimeStep:
        """The first results."""
        block, troubled = self._batch.receive()
        return self._time_step(block, troubled, received=True)

    def set_model_field(self, name: str, values: ArrayLike, ids: Sequence[int]) -> None:
        """One set of values for all, or one for each."""
        with self._batch:
            self._require_settled()
            fields = self._episodes.model_fields
            own = fields.original(name)
            try:
                given = np.asarray(values)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(f"{name} must be real numbers: {error}") from None
            each = given if given.ndim == own.ndim + 1 and len(given) == len(ids) else [given] * len(ids)
            checked = [fields.check(name, one) for one in each]
            for env, one in zip(ids, checked, strict=True):
                self._episodes.set_fields(env, {name: one})

    def model_field(self, name: str) -> NDArray[np.floating[Any]]:
        """The task's own values."""
        with self._batch:
            return self._episodes.model_fields.original(name)

    def state(self) -> EnvironmentState:
        """Physics, random streams and the last report of every environment."""
        settings = self.settings
        with self._batch as batch:
            physics = batch.get_state()
            reports = batch.reports()
            shape = self._frames_shape()
            return EnvironmentState(
                task=settings.name,
                mujoco_version=self.description.mujoco_version,
                physics=physics,
                model_changes=tuple(tuple(batch.model_changes(env)) for env in range(settings.num_envs)),
                random_states=self._episodes.random_states(),
                step_count=reports["step_count"],
                reward=reports["reward"],
                discount=reports["discount"],
                step_type=reports["step_type"],
                frames=None if shape is None else reports["frames"].reshape(shape),
                fields=self._episodes.field_states(),
            )

    def check_state(self, state: EnvironmentState) -> None:
        """ValueError where something in `state` does not fit, is damaged, or would be replaced by MuJoCo."""
        with self._batch as batch:
            require_state(
                state,
                task=self.settings.name,
                num_envs=self.settings.num_envs,
                mujoco_version=self.description.mujoco_version,
                frames=self._frames_shape(),
                python_tasks=len(self._suite.callbacks),
            )
            batch.check_state(physics=state.physics, changes=[list(runs) for runs in state.model_changes])
            self._episodes.check_fields(state.fields)

    def set_state(self, state: EnvironmentState) -> TimeStep:
        """Physics, random streams and reports of `state`."""
        with self._batch as batch:
            batch.drop_in_flight()
            for env in range(self.settings.num_envs):
                batch.set_model_changes(env, list(state.model_changes[env]))
                self._episodes.restore_fields(env, *state.fields[env])
                self._episodes.forget(env, state.random_states[env])
            return self._time_step(
                *batch.set_state(
                    physics=state.physics,
                    frames=None if state.frames is None else np.ascontiguousarray(state.frames),
                    reward=state.reward,
                    discount=state.discount,
                    step_type=state.step_type,
                    step_count=state.step_count,
                )
            )

    def drop_in_flight(self) -> None:
        """Wait for what is in flight, and drop it."""
        self._batch.drop_in_flight()

    def renderer(self) -> str:
        """What each thread has drawn with."""
        return str(self._batch.renderer())

    def close(self) -> None:
        """End the threads and free the physics and the GL contexts."""
        self._batch.close()
        _OPEN.discard(self)

    def template(self) -> TimeStep:
        """A time step with arrays as those of results."""
        return self._view_block(0, received=False)

    def _make_batch(self, suite: Suite) -> Any:
        settings, environment = self.settings, suite.environment
        model, data = environment.physics.model.ptr, environment.physics.data.ptr
        size = settings.num_envs * (2 * int(data.nbuffer) + _BYTES_OF_AN_ENVIRONMENT)
        require_memory(f"{settings.num_envs} environments of {settings.name}", size)
        self._camera = tasks.camera_index(model, settings.camera)
        self._samples = settings.samples or int(self._extension.DEFAULT_SAMPLES)
        specification = environment.action_spec()
        self._minimum = np.broadcast_to(specification.minimum, specification.shape).astype(np.float64)
        self._maximum = np.broadcast_to(specification.maximum, specification.shape).astype(np.float64)
        height, width = settings.pixels or (0, 0)
        return self._extension.Batch(
            model=model._address,
            seeds=settings.seeds,
            domain=settings.domain,
            task=settings.task,
            num_threads=settings.num_threads,
            batch_size=settings.batch_size or 0,
            substeps=environment._n_sub_steps,
            step_limit=environment._step_limit,
            action_repeat=settings.action_repeat,
            autoreset=settings.autoreset,
            frame_stack=settings.frame_stack,
            single_precision=settings.dtype is np.float32,
            height=height,
            width=width,
            camera=self._camera,
            quality=settings.quality,
            segmentation=settings.segmentation,
            minimum=self._minimum - RANGE_SLACK,
            maximum=self._maximum + RANGE_SLACK,
            depth=settings.depth,
            renderer=settings.renderer,
            samples=self._samples,
            randomised=settings.randomise is not None,
            callbacks=list(suite.callbacks) or None,
        )

    def _require_settled(self) -> None:
        count = self._batch.in_flight()
        if count:
            raise RuntimeError(f"results of {count} environments are outstanding: receive them")

    def _frames_shape(self) -> tuple[int, ...] | None:
        settings = self.settings
        if settings.pixels is None or settings.frame_stack == 1:
            return None
        return settings.num_envs, settings.frame_stack, *settings.pixels, 3

    def _wrong_action(self, values: NDArray[np.float64], index: int, ids: Sequence[int]) -> ValueError:
        return wrong_action(values, index, ids, self._minimum, self._maximum)

    def _time_step(self, block: int, troubled: bool, received: bool = False) -> TimeStep:
        # The arrays of a block are the same memory every time, and so is the time step that holds them.
        step = self._steps.get((block, received))
        if step is None:
            step = self._steps[block, received] = self._view_block(block, received)
        return replace(step, faults=self._batch.faults(block, received)) if troubled else step

    def _view_block(self, block: int, received: bool) -> TimeStep:
        views = self._batch.views(block, received)  # RuntimeError: another thread closed it during the step
        final = None
        if "has_final" in views:
            final = FinalObservation(mask=views["has_final"].view(np.bool_), **self._observed(views, "final_"))
        return TimeStep(
            reward=views["reward"],
            discount=views["discount"],
            step_type=views["step_type"],
            env_id=views["env_id"],
            final=final,
            **self._observed(views, ""),
        )

    def _observed(self, views: dict[str, Any], prefix: str) -> dict[str, Any]:
        """What a time step and a final observation have in common."""
        flat = views[prefix + "observation"]
        observation: dict[str, NDArray[np.floating[Any]]] = {}
        start = 0
        for name, shape in self.description.observation_shapes.items():
            size = math.prod(shape)
            observation[name] = flat[:, start : start + size].reshape(len(flat), *shape)  # a view: one axis splits
            start += size
        mask = views.get(prefix + "body_mask")
        return {
            "observation": observation,
            "qpos": views[prefix + "qpos"],
            "qvel": views[prefix + "qvel"],
            "pixels": views.get(prefix + "pixels"),
            "segmentation": views.get(prefix + "segmentation"),
            "body_mask": None if mask is None else mask.view(np.bool_),
            "depth": views.get(prefix + "depth"),
        }


def _load_suite(settings: Settings) -> Suite:
    gl = settings.renderer == "gl"
    load = functools.partial(tasks.load, settings.domain, settings.task, settings.time_limit, gl=gl)
    return Suite(load(np.random.RandomState(settings.seeds[0])), load)


_OPEN: weakref.WeakSet[BatchEngine] = weakref.WeakSet()


@functools.cache
def _close_at_exit() -> None:
    """Threads and GL contexts must end before the exit handlers of dm_control tear down the EGL display they use.

    Handlers run last in, first out: this is called after dm_control's import.
    """
    atexit.register(_close_all)


def _close_all() -> None:
    """A thread that came back from C++ when the interpreter is gone would abort the process: wait for its step."""
    for engine in list(_OPEN):
        while True:
            try:
                engine.close()
            except RuntimeError as error:
                if "another thread" not in str(error):
                    raise
                time.sleep(0.001)
            else:
                break
