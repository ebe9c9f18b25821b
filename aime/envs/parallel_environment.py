"""`ParallelEnvironment`: N copies of a dm_control task behind one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aime.documented_tables import accepts_documented_names
from aime.envs import tasks
from aime.envs.arguments import Ids, environment_ids, real_actions
from aime.envs.batch_engine import BatchEngine
from aime.envs.callback_engine import CallbackEngine, MakeEnvironment
from aime.envs.engine import Engine
from aime.envs.model_fields import Randomise
from aime.envs.process_engine import ProcessEngine, choose_processes
from aime.envs.settings import Autoreset, Quality, Renderer, Settings, checked
from aime.envs.time_step import EnvironmentState, TimeStep


@accepts_documented_names()
class ParallelEnvironment:
    """N environments of one DeepMind Control Suite task, stepped by C++ threads with the GIL released.

    The numbers are dm_control's: with the same seed the same episode starts, states are equal bit for bit, rewards and
    observations to 1e-12. dm_control compiles the model and begins the episodes of tasks that C++ does not; physics,
    rewards, observations and pictures after that are C++ over the MuJoCo library. The next episodes begin ahead, while
    environments step. What steps them is an `Engine`: a batch in this process, worker processes, or Python callbacks.

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
        dtype: numpy.float64, or numpy.float32 (by any of numpy's names) for observation, qpos and qvel; physics is
            float64 always.
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

    def __init__(
        self,
        domain: str,
        task: str,
        num_envs: int = 1,
        *,
        num_threads: int = 0,
        num_processes: int = 0,
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
        dtype: type[np.float32 | np.float64] | np.dtype[Any] | str = np.float64,
        randomise: Randomise | None = None,
    ) -> None:
        settings = checked(
            domain,
            task,
            num_envs,
            num_threads=num_threads,
            num_processes=num_processes,
            batch_size=batch_size,
            action_repeat=action_repeat,
            seed=seed,
            pixels=pixels,
            camera=camera,
            renderer=renderer,
            quality=quality,
            samples=samples,
            segmentation=segmentation,
            frame_stack=frame_stack,
            depth=depth,
            autoreset=autoreset,
            time_limit=time_limit,
            dtype=dtype,
            randomise=randomise,
        )
        self._take(settings, _make_engine(settings))

    def _take(self, settings: Settings, engine: Engine) -> None:
        """Stand in front of `engine`, made with `settings`."""
        self._engine: Engine | None = engine
        self._described, self._started = engine, False  # what describes itself still when it is closed
        self.domain, self.task, self.num_envs = settings.domain, settings.task, settings.num_envs
        self.action_repeat, self.autoreset, self.batch_size = (
            settings.action_repeat,
            settings.autoreset,
            settings.batch_size,
        )
        self.pixels, self.renderer, self.quality = settings.pixels, settings.renderer, settings.quality
        self.segmentation, self.depth = settings.segmentation, settings.depth
        self.frame_stack, self.dtype, self.seeds = settings.frame_stack, settings.dtype, settings.seeds
        found = engine.description
        self.num_threads, self.num_processes = found.num_threads, found.num_processes
        self.samples, self.camera, self.joints = found.samples, found.camera, found.joints
        self.action_minimum, self.action_maximum = found.action_minimum, found.action_maximum
        self.action_size, self.control_timestep = len(found.action_minimum), found.control_timestep

    @classmethod
    def from_dm_control(
        cls,
        make_environment: Callable[[np.random.RandomState], Any],
        num_envs: int = 1,
        *,
        name: str | None = None,
        **options: Any,
    ) -> Self:
        """Environments of a task of your own: its Python is asked under the GIL, its physics steps in C++ threads.

        Args:
            make_environment: gives a new `dm_control.rl.control.Environment` that draws from the random state it is
                called with; called once for each environment, and once more to see an observation.
            num_envs: N.
            name: of the task, in messages and states; the factory's name by default.
            **options: as in `ParallelEnvironment`.

        Raises:
            TypeError, ValueError: C++ cannot step what `make_environment` gives. What `reset`, `step` and `recv` raise
                where the task's Python does: see `CallbackEngine`.
        """
        if not callable(make_environment):
            raise ValueError(f"make_environment must be a function of a RandomState, got {make_environment!r}")  # noqa: TRY004
        task = name or str(getattr(make_environment, "__name__", "environment"))
        settings = checked("dm_control", task, num_envs, **options)
        made = cls.__new__(cls)
        made._take(settings, _make_engine(settings, make_environment))
        return made

    @property
    def observation_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each observation of one environment."""
        return dict(self._described.description.observation_shapes)

    @property
    def begins_in_cpp(self) -> bool:
        """Whether the extension begins this task's episodes, ahead and in its own threads, instead of dm_control."""
        return self._described.description.begins_in_cpp

    @property
    def suite_environment(self) -> Any:
        """A dm_control environment of the task, for its specs, not for steps; in one process the one that is used."""
        return self._described.suite_environment

    @property
    def renderer_details(self) -> str:
        """What each thread has drawn with: GL displays, such as "EGL device 0 (software)", or the ray caster's kind."""
        return self._open().renderer()

    def reset(self, ids: Ids | None = None, *, seed: int | Sequence[int | None] | None = None) -> TimeStep:
        """Begin new episodes in the environments `ids` (all by default); the others report their last step again.

        `ids` are numbers of environments or a boolean mask (N,), here and elsewhere. `seed` gives the environments that
        begin anew the random states that the constructor's `seed` would, and leaves the others alone; None, also as an
        entry of a sequence, draws on.

        Raises:
            ValueError: no such environment, or a seed outside numpy's range; nothing has changed then.
        """
        engine = self._open()
        if ids is not None:
            self._require_started()
        chosen = environment_ids(ids, self.num_envs)
        seeds = self._new_seeds(seed, chosen)
        step = engine.reset(None if ids is None else chosen, seeds)
        self.seeds = tuple(seeds.get(env, old) for env, old in enumerate(self.seeds))
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
        engine = self._open()
        values = real_actions(actions, self.num_envs, self.action_size, rows="num_envs")
        self._require_started()
        return engine.step(values)

    def send(self, actions: ArrayLike, ids: Ids | None = None) -> None:
        """Let the environments `ids` (all by default) step with `actions` (len(ids), action_size), and return at once.

        An environment takes its next action after `recv` gave its result. With a boolean mask, `actions` have a row for
        each environment chosen.

        Raises:
            ValueError: wrong actions, as in `step`; an environment that does not exist or is in flight.
            RuntimeError: as in `step`, or without `batch_size`.
        """
        engine = self._open()
        chosen = environment_ids(ids, self.num_envs)
        rows = "num_envs" if ids is None else "len(ids)"
        values = real_actions(actions, len(chosen), self.action_size, rows=rows)
        self._require_started()
        engine.send(values, chosen)

    def recv(self) -> TimeStep:
        """The results of the first `batch_size` environments to finish, in that order; `env_id` tells which they are.

        Raises:
            RuntimeError: fewer than `batch_size` environments are in flight, or no `batch_size` was given.
        """
        return self._open().recv()

    def set_model_field(self, name: str, values: ArrayLike, ids: Ids | None = None) -> None:
        """Set a field of the physics model, as `mujoco.MjModel` names it, from the next episode of `ids` on (all).

        `values` has the field's shape, one for all `ids`, or a leading axis with one for each. What MuJoCo computes
        from the field (mj_setConst) follows; other environments keep theirs. Say `reset(ids)` to begin at once.

        Raises:
            ValueError: no such field, environment or shape; a number that is not finite.

        Example:
            >>> env.set_model_field("dof_damping", 2 * env.model_field("dof_damping"))
        """
        self._open().set_model_field(name, values, environment_ids(ids, self.num_envs))

    def model_field(self, name: str) -> NDArray[np.floating[Any]]:
        """The task's own values of a numeric field of the physics model."""
        return self._open().model_field(name)

    def state(self) -> EnvironmentState:
        """All that decides how the environments go on: restore it with `set_state`, here or in another process."""
        engine = self._open()
        self._require_started()
        return engine.state()

    def set_state(self, state: EnvironmentState) -> TimeStep:
        """Go on from `state`; returns the time step that was current when it was taken, observed (and drawn) anew.

        Raises:
            ValueError: the state is of another task, another number of environments or another MuJoCo version, it is
                damaged, or MuJoCo would replace its physics by the default state; nothing has changed then.
        """
        engine = self._open()
        engine.check_state(state)
        step = engine.set_state(state)
        self._started = True
        return step

    def sample_actions(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """(num_envs, action_size) actions, uniform between the bounds."""
        return generator.uniform(self.action_minimum, self.action_maximum, (self.num_envs, self.action_size))

    def close(self) -> None:
        """End the threads and free the physics and the GL contexts; a second call does nothing.

        Raises:
            RuntimeError: another thread is within a step; the environment stays open then.
        """
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "an environment has threads and cannot be pickled or copied: pickle its state(), make another environment "
            "with the same arguments, and give that one the state with set_state()"
        )

    def _open(self) -> Engine:
        if self._engine is None:
            raise RuntimeError(f"the environment {self.domain} {self.task} is closed")
        return self._engine

    def _new_seeds(self, seed: int | Sequence[int | None] | None, ids: Iterable[int]) -> dict[int, int]:
        """The seeds that a reset of `ids` gives, by environment."""
        if seed is None:
            return {}
        if not isinstance(seed, Sequence):
            seeds = tasks.expand_seed(seed, self.num_envs)
            return {env: seeds[env] for env in ids}
        seeds = tasks.expand_seed([0 if entry is None else entry for entry in seed], self.num_envs)
        return {env: seeds[env] for env in ids if seed[env] is not None}

    def _require_started(self) -> None:
        if not self._started:
            raise RuntimeError("call reset() before the first step")


def _make_engine(settings: Settings, make_environment: MakeEnvironment | None = None) -> Engine:
    """What steps environments with these settings; `make_environment` gives those of a task in Python."""
    if make_environment is not None or tasks.is_registered(settings.domain, settings.task):
        return CallbackEngine(settings, make_environment)
    count = choose_processes(settings)
    return ProcessEngine(settings, count) if count > 1 else BatchEngine(settings)
