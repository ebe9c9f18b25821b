"""`ParallelEnvironment`: N copies of a dm_control task behind one call."""

from __future__ import annotations

import atexit
import functools
import math
import weakref
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aime.envs import tasks
from aime.envs.extension import gl_displays, load_extension, probe_gl
from aime.envs.time_step import EnvironmentState, Joint, StepType, TimeStep

Quality = Literal["exact", "high", "fast"]
Autoreset = Literal["next_step", "disabled"]

# Actions computed in float32 may pass a bound by its last bit.
_RANGE_SLACK = 1e-6


class ParallelEnvironment:
    """N environments of one DeepMind Control Suite task, stepped by C++ threads with the GIL released.

    The numbers are dm_control's: with the same seed the same episode starts, states are equal bit for bit, rewards and
    observations to 1e-12. dm_control compiles the model and initialises every episode; physics, rewards, observations
    and pictures after that are C++ over the MuJoCo library.

    Args:
        domain, task: a pair of the suite, as `dm_control.suite.load` names it.
        num_envs: N.
        num_threads: worker threads; 0 takes one per CPU core this process may use, at most N.
        action_repeat: control steps per action; rewards are summed, an episode's end stops the repeat.
        seed: an int: environment i draws its episodes from numpy's RandomState(seed + i); a sequence: one seed for each
            environment; None: fresh entropy.
        pixels: (height, width) of the pictures, one per step after the repeat; None renders nothing.
        camera: index or name of a camera of the model; -1 is MuJoCo's free camera.
        quality: "exact" is dm_control's picture bit for bit; "high" has a shadow map of 512 instead of 2048 texels
            (under .2 % of pixels differ); "fast" has one sample a pixel as well (edges differ by a few levels).
        segmentation: also give geom ids and the body mask of each pixel.
        autoreset: "next_step": the step after a LAST one ignores that environment's action and returns the FIRST step
            of its new episode (reward 0, discount 1), as Gymnasium's NEXT_STEP mode does. "disabled": stepping a
            finished environment raises; call `reset(ids)`.
        time_limit: seconds in an episode; None keeps the task's own (1000 control steps).

    Raises:
        ValueError: an unknown domain, task, camera or setting; near names are suggested.
        ImportError: MuJoCo, dm_control or the extension is missing; the message has the command that installs it.
        RuntimeError: `pixels` without an OpenGL library that can render offscreen.

    Example:
        >>> with ParallelEnvironment("cartpole", "swingup", num_envs=4, seed=1, pixels=(64, 64)) as env:
        ...     first = env.reset()
        ...     step = env.step(env.sample_actions(np.random.default_rng(0)))
        ...     step.pixels.shape, step.reward.shape
        ((4, 64, 64, 3), (4,))
    """

    def __init__(
        self,
        domain: str,
        task: str,
        num_envs: int = 1,
        *,
        num_threads: int = 0,
        action_repeat: int = 1,
        seed: int | Sequence[int] | None = None,
        pixels: tuple[int, int] | None = None,
        camera: int | str = 0,
        quality: Quality = "exact",
        segmentation: bool = False,
        autoreset: Autoreset = "next_step",
        time_limit: float | None = None,
    ) -> None:
        self._batch: Any = None
        _check_settings(num_envs, num_threads, action_repeat, pixels, quality, segmentation, autoreset, time_limit)
        self.domain, self.task = domain, task
        self.num_envs, self.action_repeat, self.autoreset = num_envs, action_repeat, autoreset
        self.num_threads = min(num_threads or tasks.usable_cores(), num_envs)
        self.pixels, self.quality, self.segmentation = pixels, quality, segmentation
        self._extension = load_extension()
        if pixels is not None and not gl_displays():
            probe_gl()  # raises with what was tried and what to install
        self._environment = tasks.load(domain, task, time_limit)
        self._physics = self._environment.physics
        model = self._physics.model.ptr
        self.camera = tasks.camera_index(self._physics, camera)
        self.seeds = tasks.expand_seed(seed, num_envs)
        self._random = [np.random.RandomState(value) for value in self.seeds]
        height, width = pixels or (0, 0)
        self._batch = self._extension.Batch(
            model=model._address,
            domain=domain,
            task=task,
            num_envs=num_envs,
            num_threads=self.num_threads,
            substeps=self._environment._n_sub_steps,
            step_limit=self._environment._step_limit,
            action_repeat=action_repeat,
            height=height,
            width=width,
            camera=self.camera,
            quality=quality,
            segmentation=segmentation,
        )
        _OPEN.add(self)
        _close_at_exit()
        specification = self._environment.action_spec()
        self.action_size = int(specification.shape[0])
        self.action_minimum = np.broadcast_to(specification.minimum, (self.action_size,)).astype(np.float64)
        self.action_maximum = np.broadcast_to(specification.maximum, (self.action_size,)).astype(np.float64)
        self.control_timestep = float(self._environment.control_timestep()) * action_repeat
        self.joints: tuple[Joint, ...] = tasks.joints(model)
        self._fields: list[tuple[str, tuple[int, ...]]] = self._batch.fields()
        self._mujoco_version = int(self._extension.mujoco_version())
        self._started = False
        self._needs_reset = np.zeros(num_envs, dtype=np.bool_)
        self._idle = np.zeros((num_envs, self.action_size))

    @property
    def observation_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each observation of one environment."""
        return dict(self._fields)

    @property
    def suite_environment(self) -> Any:
        """The dm_control environment that compiled the model and begins the episodes; for its specs, not for steps."""
        return self._environment

    @property
    def renderer(self) -> str:
        """The GL display of each thread that has drawn, e.g. "EGL device 0 (software), EGL surfaceless (software)"."""
        return str(self._open().renderer())

    def reset(self, ids: Sequence[int] | None = None, *, seed: int | Sequence[int | None] | None = None) -> TimeStep:
        """Begin new episodes in the environments `ids` (all by default); the others report their last step again.

        `seed` gives the environments that begin anew the random states that the constructor's `seed` would, and leaves
        the others alone; None, also as an entry of a sequence, draws on.

        Raises:
            ValueError: no such environment, or a seed outside numpy's range; nothing has changed then.
        """
        batch = self._open()
        chosen = range(self.num_envs) if ids is None else sorted(set(ids))
        if ids is not None:
            self._require_started()
        for env in chosen:
            if not 0 <= env < self.num_envs:
                raise ValueError(f"no environment {env}: there are {self.num_envs}, numbered from 0")
        if seed is not None:
            self._reseed(seed, chosen)
        commands = np.full(self.num_envs, self._extension.OBSERVE, dtype=np.uint8)
        for env in chosen:
            self._initialise_episode(env)
            commands[env] = self._extension.FIRST
        batch.run(self._idle, commands)
        self._started = True
        return self._time_step()

    def step(self, actions: ArrayLike) -> TimeStep:
        """Apply `actions` (num_envs, action_size) for `action_repeat` control steps.

        Raises:
            ValueError: wrong shape, or an entry that is not finite or outside its bounds; the message names the
                environment and the entry.
            RuntimeError: before the first reset, after `close`, or (autoreset "disabled") for a finished environment.
        """
        batch = self._open()
        checked = self._check_actions(actions)
        commands = np.full(self.num_envs, self._extension.STEP, dtype=np.uint8)
        self._require_started()
        if self._needs_reset.any():
            if self.autoreset == "disabled":
                finished = np.flatnonzero(self._needs_reset).tolist()
                raise RuntimeError(f"the episodes of environments {finished} have ended: call reset({finished})")
            for env in np.flatnonzero(self._needs_reset).tolist():
                self._initialise_episode(env)
                commands[env] = self._extension.FIRST
        batch.run(checked, commands)
        return self._time_step()

    def state(self) -> EnvironmentState:
        """All that decides how the environments go on: restore it with `set_state`, here or in another process."""
        batch = self._open()
        self._require_started()
        results = batch.results()
        return EnvironmentState(
            task=f"{self.domain} {self.task}",
            mujoco_version=self._mujoco_version,
            physics=batch.get_state(),
            model_changes=tuple(tuple(batch.model_changes(env)) for env in range(self.num_envs)),
            random_states=tuple(random.get_state() for random in self._random),
            step_count=np.array([batch.step_count(env) for env in range(self.num_envs)], dtype=np.int64),
            reward=results["reward"].copy(),
            discount=results["discount"].copy(),
            step_type=results["step_type"].copy(),
        )

    def set_state(self, state: EnvironmentState) -> TimeStep:
        """Go on from `state`; returns the time step that was current when it was taken, observed (and drawn) anew.

        Raises:
            ValueError: the state is of another task, another number of environments or another MuJoCo version.
        """
        batch = self._open()
        self._check_state(state)
        for env in range(self.num_envs):
            batch.set_model_changes(env, list(state.model_changes[env]))
            batch.set_step_count(env, int(state.step_count[env]))
            self._random[env].set_state(state.random_states[env])
        batch.set_state(state.physics)
        for env in range(self.num_envs):
            batch.set_report(env, state.reward[env], state.discount[env], int(state.step_type[env]))
        batch.run(self._idle, np.full(self.num_envs, self._extension.OBSERVE, dtype=np.uint8))
        self._started = True
        return self._time_step()

    def sample_actions(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """(num_envs, action_size) actions, uniform between the bounds."""
        return generator.uniform(self.action_minimum, self.action_maximum, (self.num_envs, self.action_size))

    def close(self) -> None:
        """End the threads and free the physics and the GL contexts; a second call does nothing."""
        if self._batch is not None:
            batch, self._batch = self._batch, None
            batch.close()
            _OPEN.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Any:
        if self._batch is None:
            raise RuntimeError(f"the environment {self.domain} {self.task} is closed")
        return self._batch

    def _reseed(self, seed: int | Sequence[int | None], ids: Iterable[int]) -> None:
        if isinstance(seed, Sequence):
            seeds = tasks.expand_seed([0 if entry is None else entry for entry in seed], self.num_envs)
            chosen = {env for env in ids if seed[env] is not None}
        else:
            seeds, chosen = tasks.expand_seed(seed, self.num_envs), set(ids)
        for env in chosen:
            self._random[env] = np.random.RandomState(seeds[env])
        self.seeds = tuple(seeds[env] if env in chosen else old for env, old in enumerate(self.seeds))

    def _initialise_episode(self, env: int) -> None:
        """Let dm_control begin an episode with this environment's random state, and take it over."""
        self._environment.task._random = self._random[env]
        self._environment.reset()
        self._batch.load(env, self._physics.model.ptr._address, self._physics.data.ptr._address)

    def _time_step(self) -> TimeStep:
        results = self._batch.results()
        flat = results["observation"]
        observation: dict[str, NDArray[np.float64]] = {}
        start = 0
        for name, shape in self._fields:
            size = math.prod(shape)
            observation[name] = flat[:, start : start + size].reshape(self.num_envs, *shape)  # a view: one axis splits
            start += size
        np.equal(results["step_type"], StepType.LAST, out=self._needs_reset)
        mask = results.get("body_mask")
        return TimeStep(
            observation=observation,
            reward=results["reward"],
            discount=results["discount"],
            step_type=results["step_type"],
            qpos=results["qpos"],
            qvel=results["qvel"],
            pixels=results.get("pixels"),
            segmentation=results.get("segmentation"),
            body_mask=None if mask is None else mask.view(np.bool_),
            faults=self._batch.faults(),
        )

    def _check_actions(self, actions: ArrayLike) -> NDArray[np.float64]:
        values = np.ascontiguousarray(actions, dtype=np.float64)
        expected = (self.num_envs, self.action_size)
        if values.shape != expected:
            raise ValueError(f"actions must have shape (num_envs, action_size) = {expected}, got {values.shape}")
        low, high = self.action_minimum - _RANGE_SLACK, self.action_maximum + _RANGE_SLACK
        sound = (values >= low) & (values <= high)
        if not sound.all():
            env, entry = (int(index) for index in np.argwhere(~sound)[0])
            raise ValueError(
                f"action of environment {env}, entry {entry} is {values[env, entry]}: "
                f"it must be finite and within [{self.action_minimum[entry]}, {self.action_maximum[entry]}]"
            )
        return values

    def _require_started(self) -> None:
        if not self._started:
            raise RuntimeError("call reset() before the first step")

    def _check_state(self, state: EnvironmentState) -> None:
        own = f"{self.domain} {self.task}"
        if state.task != own:
            raise ValueError(f"the state is of '{state.task}', this environment is '{own}'")
        if len(state.physics) != self.num_envs:
            raise ValueError(f"the state is of {len(state.physics)} environments, here are {self.num_envs}")
        if not np.isfinite(state.physics).all():
            env = int(np.argwhere(~np.isfinite(state.physics))[0, 0])
            raise ValueError(f"the physics state of environment {env} is not finite")
        if state.mujoco_version != self._mujoco_version:
            raise ValueError(f"the state was made by MuJoCo {state.mujoco_version}, this is {self._mujoco_version}")


def _check_settings(
    num_envs: int,
    num_threads: int,
    action_repeat: int,
    pixels: tuple[int, ...] | None,
    quality: str,
    segmentation: bool,
    autoreset: str,
    time_limit: float | None,
) -> None:
    for name, value, least in (
        ("num_envs", num_envs, 1),
        ("num_threads", num_threads, 0),
        ("action_repeat", action_repeat, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if pixels is not None and (len(pixels) != 2 or min(pixels) < 1):
        raise ValueError(f"pixels must be (height, width), both at least 1, got {pixels}")
    for name, word, known in (
        ("quality", quality, ("exact", "high", "fast")),
        ("autoreset", autoreset, ("next_step", "disabled")),
    ):
        if word not in known:
            raise ValueError(f"unknown {name} {word!r}: {tasks.near(word, known)}")
    if segmentation and pixels is None:
        raise ValueError("segmentation needs pixels=(height, width)")
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"time_limit must be positive, got {time_limit}")


_OPEN: weakref.WeakSet[ParallelEnvironment] = weakref.WeakSet()


@functools.cache
def _close_at_exit() -> None:
    """Threads and GL contexts must end before the exit handlers of dm_control tear down the EGL display they use.

    Handlers run last in, first out: this is called after dm_control's import.
    """
    atexit.register(_close_all)


def _close_all() -> None:
    for environment in list(_OPEN):
        environment.close()
