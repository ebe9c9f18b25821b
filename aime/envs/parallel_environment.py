"""`ParallelEnvironment`: N copies of a dm_control task behind one call."""

from __future__ import annotations

import atexit
import functools
import math
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aime.envs import tasks
from aime.envs.callbacks import CallbackEpisodes
from aime.envs.episodes import Episodes
from aime.envs.extension import gl_displays, load_extension, probe_gl
from aime.envs.model_fields import Randomise
from aime.envs.settings import check_layout, check_pictures, check_settings
from aime.envs.time_step import EnvironmentState, FinalObservation, Joint, TimeStep

Renderer = Literal["gl", "raycast"]
Quality = Literal["exact", "high", "fast"]
Autoreset = Literal["next_step", "same_step", "disabled"]

# Actions computed in float32 may pass a bound by its last bit.
_RANGE_SLACK = 1e-6


class ParallelEnvironment:
    """N environments of one DeepMind Control Suite task, stepped by C++ threads with the GIL released.

    The numbers are dm_control's: with the same seed the same episode starts, states are equal bit for bit, rewards and
    observations to 1e-12. dm_control compiles the model and begins the episodes of tasks that C++ does not; physics,
    rewards, observations and pictures after that are C++ over the MuJoCo library. The next episodes begin ahead, while
    environments step.

    Args:
        domain, task: a pair of the suite, as `dm_control.suite.load` names it.
        num_envs: N.
        num_threads: threads that work, at most N; 0 takes one per CPU core this process may use. The calling thread is
            one of them, except with pixels (an OpenGL context keeps to its thread) or `batch_size`.
        num_processes: 1 keeps all environments in this process; more split them, and the threads, over as many worker
            processes, with the same numbers; 0 splits only pictures of software OpenGL that ask for more threads than
            it can draw with at once (see docs/environment.md).
        batch_size: rows that `recv` returns; `step` always steps all N.
        action_repeat: control steps per action; rewards are summed, an episode's end stops the repeat.
        seed: an int: environment i draws its episodes from numpy's RandomState(seed + i); a sequence: one seed for each
            environment; None: fresh entropy.
        pixels: (height, width) of the pictures, one per step after the repeat; None renders nothing.
        camera: index or name of a camera of the model; -1 is MuJoCo's free camera.
        renderer: "gl" is MuJoCo's own, which needs an OpenGL library; "raycast" draws nearly the same pictures many
            times faster and loads none. See docs/raycaster.md for how near and how fast.
        samples: rays a pixel of the ray caster: 1, 2, 4 or 8; None takes its default.
        quality: of "gl". "exact" is dm_control's picture bit for bit; "high" has a shadow map of 512 instead of 2048
            texels (under .2 % of pixels differ); "fast" has one sample a pixel as well (edges differ by a few levels).
        segmentation: also give geom ids and the body mask of each pixel.
        frame_stack: k > 1: pixels are (N, k, H, W, 3), the last k pictures, the newest last; an episode begins with k
            times its first.
        depth: also give the distance of each pixel.
        autoreset: "next_step": the step after a LAST one ignores that environment's action and returns the FIRST step
            of its new episode (reward 0, discount 1), as Gymnasium's NEXT_STEP mode does. "same_step": a LAST step has
            the reward of the old episode and the first observation of the new one; `TimeStep.final` keeps the old
            one's last. "disabled": stepping a finished environment raises; call `reset(ids)`.
        time_limit: seconds in an episode; None keeps the task's own (1000 control steps).
        dtype: numpy.float64, or numpy.float32 for observation, qpos and qvel; physics is float64 always.
        randomise: function(env, generator) -> {field: values}: fields of the physics model for the next episode of
            that environment, drawn from its own numpy Generator; called once before each episode. See
            `set_model_field`.

    Raises:
        ValueError: an unknown domain, task, camera or setting; near names are suggested. A geom that the chosen
            renderer cannot draw.
        ImportError: MuJoCo, dm_control or the extension is missing; the message has the command that installs it.
        RuntimeError: `pixels` of "gl" without an OpenGL library that can render offscreen.

    Example:
        >>> with ParallelEnvironment("cartpole", "swingup", num_envs=4, seed=1, pixels=(64, 64)) as env:
        ...     first = env.reset()
        ...     step = env.step(env.sample_actions(np.random.default_rng(0)))
        ...     step.pixels.shape, step.reward.shape
        ((4, 64, 64, 3), (4,))
    """

    def __new__(cls, domain: str, task: str, num_envs: int = 1, **options: Any) -> Self:
        """An environment of this class, or of the one that splits it over processes; arguments as in `__init__`."""
        if cls is ParallelEnvironment:
            if tasks.is_registered(domain, task):
                from aime.envs.callback_environment import CallbackEnvironment

                return cast(Self, super().__new__(CallbackEnvironment))
            from aime.envs.process_environment import ProcessEnvironment, choose_processes

            if choose_processes(num_envs, **options) > 1:
                return cast(Self, super().__new__(ProcessEnvironment))
        return super().__new__(cls)

    def __init__(
        self,
        domain: str,
        task: str,
        num_envs: int = 1,
        *,
        num_threads: int = 0,
        num_processes: int = 0,  # noqa: ARG002 - `__new__` has chosen the class by it
        batch_size: int | None = None,
        action_repeat: int = 1,
        seed: int | Sequence[int] | None = None,
        pixels: tuple[int, int] | None = None,
        camera: int | str = 0,
        renderer: Renderer = "gl",
        quality: Quality = "exact",
        samples: int | None = None,
        segmentation: bool = False,
        frame_stack: int = 1,
        depth: bool = False,
        autoreset: Autoreset = "next_step",
        time_limit: float | None = None,
        dtype: type[np.float32 | np.float64] = np.float64,
        randomise: Randomise | None = None,
    ) -> None:
        self._batch: Any = None
        check_settings(num_envs, num_threads, action_repeat, quality, autoreset, time_limit)
        check_pictures(pixels, renderer, samples, segmentation, depth)
        check_layout(num_envs, batch_size, frame_stack, pixels, dtype)
        self.domain, self.task = domain, task
        self.num_envs, self.action_repeat, self.autoreset = num_envs, action_repeat, autoreset
        self.num_threads = min(num_threads or tasks.usable_cores(), num_envs)
        self.num_processes = 1
        self.batch_size, self.frame_stack, self.dtype = batch_size, frame_stack, dtype
        self.pixels, self.renderer, self.quality = pixels, renderer, quality
        self.segmentation, self.depth = segmentation, depth
        self._extension = load_extension()
        self.samples: int | None = (samples or int(self._extension.DEFAULT_SAMPLES)) if renderer == "raycast" else None
        if pixels is not None and renderer == "gl" and not gl_displays():
            probe_gl()  # raises with what was tried and what to install
        self.seeds = tasks.expand_seed(seed, num_envs)
        load = self._loader(time_limit)
        random = np.random.RandomState(self.seeds[0])
        self._environment = load(random)
        physics = self._environment.physics
        model = physics.model.ptr
        self.camera = tasks.camera_index(model, camera)
        specification = self._environment.action_spec()
        self.action_size = int(specification.shape[0])
        self.action_minimum = np.broadcast_to(specification.minimum, (self.action_size,)).astype(np.float64)
        self.action_maximum = np.broadcast_to(specification.maximum, (self.action_size,)).astype(np.float64)
        height, width = pixels or (0, 0)
        self._batch = self._extension.Batch(
            model=model._address,
            seeds=self.seeds,
            domain=domain,
            task=task,
            num_threads=self.num_threads,
            batch_size=batch_size or 0,
            substeps=self._environment._n_sub_steps,
            step_limit=self._environment._step_limit,
            action_repeat=action_repeat,
            autoreset=autoreset,
            frame_stack=frame_stack,
            single_precision=dtype is np.float32,
            height=height,
            width=width,
            camera=self.camera,
            quality=quality,
            segmentation=segmentation,
            minimum=self.action_minimum - _RANGE_SLACK,
            maximum=self.action_maximum + _RANGE_SLACK,
            depth=depth,
            renderer=renderer,
            samples=self.samples or int(self._extension.DEFAULT_SAMPLES),
            randomised=randomise is not None,
            callbacks=self._make_callbacks(load, random),
        )
        _OPEN.add(self)
        _close_at_exit()
        self.control_timestep = float(self._environment.control_timestep()) * action_repeat
        self.joints: tuple[Joint, ...] = tasks.joints(model)
        self._fields: list[tuple[str, tuple[int, ...]]] = self._batch.fields()
        self._mujoco_version = int(self._extension.mujoco_version())
        self._episodes = self._make_episodes(load, randomise)
        self._started = False
        self._steps: dict[tuple[int, bool], TimeStep] = {}  # of each block of the batch's memory

    @classmethod
    def from_dm_control(
        cls,
        make_environment: Callable[[np.random.RandomState], Any],
        num_envs: int = 1,
        *,
        name: str | None = None,
        **options: Any,
    ) -> ParallelEnvironment:
        """Environments of a task of your own: its Python is asked under the GIL, its physics steps in C++ threads.

        Args:
            make_environment: gives a new `dm_control.rl.control.Environment` that draws from the random state it is
                called with; called once for each environment, and once more to see an observation.
            num_envs: N.
            name: of the task, in messages and states; the factory's name by default.
            **options: as in `ParallelEnvironment`.

        Raises:
            TypeError, ValueError: C++ cannot step what `make_environment` gives; see `CallbackEnvironment`.
        """
        from aime.envs.callback_environment import CallbackEnvironment

        task = name or str(getattr(make_environment, "__name__", "environment"))
        return CallbackEnvironment("dm_control", task, num_envs, make_environment=make_environment, **options)

    @property
    def observation_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each observation of one environment."""
        return dict(self._fields)

    @property
    def begins_in_cpp(self) -> bool:
        """Whether the extension begins this task's episodes, ahead and in its own threads, instead of dm_control."""
        return self._episodes.in_cpp

    @property
    def suite_environment(self) -> Any:
        """The dm_control environment that compiled the model and begins the episodes; for its specs, not for steps."""
        return self._environment

    @property
    def renderer_details(self) -> str:
        """What each thread has drawn with: GL displays, such as "EGL device 0 (software)", or the ray caster's kind."""
        return str(self._open().renderer())

    def reset(self, ids: Sequence[int] | None = None, *, seed: int | Sequence[int | None] | None = None) -> TimeStep:
        """Begin new episodes in the environments `ids` (all by default); the others report their last step again.

        `seed` gives the environments that begin anew the random states that the constructor's `seed` would, and leaves
        the others alone; None, also as an entry of a sequence, draws on.

        Raises:
            ValueError: no such environment, or a seed outside numpy's range; nothing has changed then.
        """
        batch = self._open()
        chosen = self._chosen(ids)
        seeds = self._new_seeds(seed, chosen)
        if ids is None:
            batch.drop_in_flight()
        for env, value in seeds.items():
            self._episodes.reseed(env, value)
        self.seeds = tuple(seeds.get(env, old) for env, old in enumerate(self.seeds))
        self._episodes.load(batch.lacking(chosen, True))
        batch.start_episodes(None if ids is None else chosen)
        step = self._time_step(*batch.finish())
        self._started = True
        return step

    def step(self, actions: ArrayLike) -> TimeStep:
        """Apply `actions` (num_envs, action_size) for `action_repeat` control steps.

        Raises:
            ValueError: wrong shape, or an entry that is not finite or outside its bounds; the message names the
                environment and the entry.
            RuntimeError: before the first reset, after `close`, while results of `send` are outstanding, or (autoreset
                "disabled") for a finished environment.
        """
        batch = self._open()
        values = self._float_actions(actions, self.num_envs)
        if not self._started or not self._episodes.alone:
            return self._step_and_load(batch, values)
        block, troubled = batch.step(values)
        if block < 0:
            raise self._wrong_action(values, -1 - block, range(self.num_envs))
        return self._time_step(block, troubled)

    def send(self, actions: ArrayLike, ids: Sequence[int] | None = None) -> None:
        """Let the environments `ids` (all by default) step with `actions` (len(ids), action_size), and return at once.

        An environment takes its next action after `recv` gave its result.

        Raises:
            ValueError: wrong actions, as in `step`; an environment that does not exist or is in flight.
            RuntimeError: as in `step`, or without `batch_size`.
        """
        batch = self._open()
        chosen = list(range(self.num_envs)) if ids is None else [int(env) for env in ids]
        for env in chosen:
            if not 0 <= env < self.num_envs:
                raise ValueError(f"no environment {env}: there are {self.num_envs}, numbered from 0")
        values = self._float_actions(actions, len(chosen))
        wrong = batch.wrong_action(values)
        if wrong >= 0:
            raise self._wrong_action(values, wrong, chosen)
        self._require_started()
        self._episodes.load(batch.lacking(chosen, False))
        batch.send(chosen, values)
        self._episodes.prepare_one()

    def recv(self) -> TimeStep:
        """The results of the first `batch_size` environments to finish, in that order; `env_id` tells which they are.

        Raises:
            RuntimeError: fewer than `batch_size` environments are in flight, or no `batch_size` was given.
        """
        block, troubled = self._open().receive()
        return self._time_step(block, troubled, received=True)

    def set_model_field(self, name: str, values: ArrayLike, ids: Sequence[int] | None = None) -> None:
        """Set a field of the physics model, as `mujoco.MjModel` names it, from the next episode of `ids` on (all).

        `values` has the field's shape, one for all `ids`, or a leading axis with one for each. What MuJoCo computes
        from the field (mj_setConst) follows; other environments keep theirs. Say `reset(ids)` to begin at once.

        Raises:
            ValueError: no such field, environment or shape; a number that is not finite.

        Example:
            >>> env.set_model_field("dof_damping", 2 * env.model_field("dof_damping"))
        """
        batch = self._open()
        if batch.in_flight():
            raise RuntimeError(f"results of {batch.in_flight()} environments are outstanding: receive them")
        chosen = list(range(self.num_envs)) if ids is None else [int(env) for env in ids]
        for env in chosen:
            if not 0 <= env < self.num_envs:
                raise ValueError(f"no environment {env}: there are {self.num_envs}, numbered from 0")
        fields = self._episodes.model_fields
        own = self.model_field(name)
        given = np.asarray(values)
        each = given if given.ndim == own.ndim + 1 and len(given) == len(chosen) else [given] * len(chosen)
        checked = [fields.check(name, one) for one in each]
        for env, one in zip(chosen, checked, strict=True):
            self._episodes.set_fields(env, {name: one})

    def model_field(self, name: str) -> NDArray[np.floating[Any]]:
        """The task's own values of a numeric field of the physics model."""
        self._open()
        return self._episodes.model_fields.original(name)

    def state(self) -> EnvironmentState:
        """All that decides how the environments go on: restore it with `set_state`, here or in another process."""
        batch = self._open()
        self._require_started()
        physics = batch.get_state()
        reports = batch.reports()
        frames = None
        if self.pixels is not None and self.frame_stack > 1:
            frames = reports["frames"].reshape(self.num_envs, self.frame_stack, *self.pixels, 3)
        return EnvironmentState(
            task=f"{self.domain} {self.task}",
            mujoco_version=self._mujoco_version,
            physics=physics,
            model_changes=tuple(tuple(batch.model_changes(env)) for env in range(self.num_envs)),
            random_states=self._episodes.random_states(),
            step_count=reports["step_count"],
            reward=reports["reward"],
            discount=reports["discount"],
            step_type=reports["step_type"],
            frames=frames,
            fields=self._episodes.field_states(),
        )

    def set_state(self, state: EnvironmentState) -> TimeStep:
        """Go on from `state`; returns the time step that was current when it was taken, observed (and drawn) anew.

        Raises:
            ValueError: the state is of another task, another number of environments or another MuJoCo version.
        """
        batch = self._open()
        self._check_state(state)
        batch.drop_in_flight()
        for env in range(self.num_envs):
            batch.set_model_changes(env, list(state.model_changes[env]))
            self._episodes.restore_fields(env, *state.fields[env])
            self._episodes.forget(env, state.random_states[env])
        step = self._time_step(
            *batch.set_state(
                physics=state.physics,
                frames=state.frames,
                reward=state.reward,
                discount=state.discount,
                step_type=state.step_type,
                step_count=state.step_count,
            )
        )
        self._started = True
        return step

    def sample_actions(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """(num_envs, action_size) actions, uniform between the bounds."""
        return generator.uniform(self.action_minimum, self.action_maximum, (self.num_envs, self.action_size))

    def close(self) -> None:
        """End the threads and free the physics and the GL contexts; a second call does nothing."""
        if self._batch is not None:
            self._batch.close()  # an error where another thread is within a step: the environment stays open then
            self._batch = None
            _OPEN.discard(self)

    def _end(self) -> None:
        """Close at the interpreter's exit, after the step that another thread may be in.

        A thread that came back from C++ when the interpreter is gone would abort the process.
        """
        batch, self._batch = self._batch, None  # the other thread's next step finds the environment closed
        while batch is not None:
            try:
                batch.close()
            except RuntimeError as error:
                if "another thread" not in str(error):
                    raise
                time.sleep(0.001)
            else:
                batch = None

    def __enter__(self) -> Self:
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            "an environment has threads and cannot be pickled or copied: pickle its state(), make another environment "
            "with the same arguments, and give that one the state with set_state()"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _loader(self, time_limit: float | None) -> Callable[[np.random.RandomState], Any]:
        return functools.partial(tasks.load, self.domain, self.task, time_limit, gl=self.renderer == "gl")

    def _make_callbacks(
        self,
        load: Callable[[np.random.RandomState], Any],  # noqa: ARG002
        random: np.random.RandomState,  # noqa: ARG002
    ) -> Any:
        """What asks Python for the task, an entry for each environment; None where C++ has it."""
        return None

    def _make_episodes(
        self, load: Callable[[np.random.RandomState], Any], randomise: Randomise | None
    ) -> Episodes | CallbackEpisodes:
        return Episodes(self._environment, load, self._batch, self.seeds, randomise)

    def _open(self) -> Any:
        if self._batch is None:
            raise RuntimeError(f"the environment {self.domain} {self.task} is closed")
        return self._batch

    def _chosen(self, ids: Sequence[int] | None) -> list[int]:
        if ids is None:
            return list(range(self.num_envs))
        self._require_started()
        for env in ids:
            if not 0 <= env < self.num_envs:
                raise ValueError(f"no environment {env}: there are {self.num_envs}, numbered from 0")
        return sorted(set(ids))

    def _new_seeds(self, seed: int | Sequence[int | None] | None, ids: Iterable[int]) -> dict[int, int]:
        """The seeds that a reset of `ids` gives, by environment."""
        if seed is None:
            return {}
        if not isinstance(seed, Sequence):
            seeds = tasks.expand_seed(seed, self.num_envs)
            return {env: seeds[env] for env in ids}
        seeds = tasks.expand_seed([0 if entry is None else entry for entry in seed], self.num_envs)
        return {env: seeds[env] for env in ids if seed[env] is not None}

    def _step_and_load(self, batch: Any, values: NDArray[np.float64]) -> TimeStep:
        wrong = batch.wrong_action(values)
        if wrong >= 0:
            raise self._wrong_action(values, wrong, range(self.num_envs))
        self._require_started()
        self._episodes.load(batch.lacking(None, False))
        batch.start_steps(values)
        try:
            self._episodes.prepare_one()
        finally:
            block, troubled = batch.finish()
        return self._time_step(block, troubled)

    def _time_step(self, block: int, troubled: bool, received: bool = False) -> TimeStep:
        # The arrays of a block are the same memory every time, and so is the time step that holds them.
        step = self._steps.get((block, received))
        if step is None:
            step = self._steps[block, received] = self._view_block(block, received)
        return replace(step, faults=self._open().faults(block, received)) if troubled else step

    def _view_block(self, block: int, received: bool) -> TimeStep:
        views = self._open().views(block, received)  # another thread may have closed it during the step
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
        for name, shape in self._fields:
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

    def _float_actions(self, actions: ArrayLike, count: int) -> NDArray[np.float64]:
        given = np.asarray(actions)
        if given.dtype.kind not in "fiu":
            raise ValueError(f"actions must be real numbers, got an array of {given.dtype}")
        values = np.ascontiguousarray(given, dtype=np.float64)
        if values.shape != (count, self.action_size):
            rows = "num_envs" if count == self.num_envs else "len(ids)"
            expected = (count, self.action_size)
            raise ValueError(f"actions must have shape ({rows}, action_size) = {expected}, got {values.shape}")
        return values

    def _wrong_action(self, values: NDArray[np.float64], index: int, ids: Sequence[int]) -> ValueError:
        row, entry = divmod(index, self.action_size)
        return ValueError(
            f"action of environment {ids[row]}, entry {entry} is {values[row, entry]}: "
            f"it must be finite and within [{self.action_minimum[entry]}, {self.action_maximum[entry]}]"
        )

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


_OPEN: weakref.WeakSet[ParallelEnvironment] = weakref.WeakSet()


@functools.cache
def _close_at_exit() -> None:
    """Threads and GL contexts must end before the exit handlers of dm_control tear down the EGL display they use.

    Handlers run last in, first out: this is called after dm_control's import.
    """
    atexit.register(_close_all)


def _close_all() -> None:
    for environment in list(_OPEN):
        environment._end()
