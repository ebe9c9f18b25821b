"""dm_control tasks without a C++ implementation: their Python, as the C++ threads call it around the physics."""

from __future__ import annotations

import importlib
import io
import pickle
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from aime.envs.extension import load_suite
from aime.envs.model_fields import ModelFields

Fields = list[tuple[str, tuple[int, ...]]]
Load = Callable[[np.random.RandomState], Any]
T = TypeVar("T")


class CallbackError(RuntimeError):
    """A task's Python raised; the text has the exception and its place, `__cause__` is the exception."""


def require_suitable(environment: Any) -> None:
    """Check that C++ can take the physics steps of this environment as dm_control does.

    Raises:
        TypeError: it is not a dm_control.rl.control.Environment over MuJoCo, or its action is not one bounded vector.
        ValueError: its class, or that of its physics, has a step (or a reset) of its own.
    """
    load_suite()
    control = importlib.import_module("dm_control.rl.control")
    engine = importlib.import_module("dm_control.mujoco.engine")
    if not isinstance(environment, control.Environment):
        raise TypeError(f"make_environment must return a dm_control.rl.control.Environment, got {environment!r}")
    if not isinstance(environment.physics, engine.Physics):
        raise TypeError(f"the environment's physics must be a dm_control.mujoco.Physics, got {environment.physics!r}")
    for owner, base, names in (
        (environment, control.Environment, ("step", "reset")),
        (environment.physics, engine.Physics, ("step",)),
    ):
        for name in names:
            if getattr(type(owner), name) is not getattr(base, name):
                raise ValueError(
                    f"{type(owner).__name__} has its own {name}(), but C++ takes the steps: "
                    "put what it does into the task's before_step, after_step or initialize_episode"
                )
    specification = environment.action_spec()
    if len(getattr(specification, "shape", ())) != 1 or not hasattr(specification, "minimum"):
        raise TypeError(f"the action must be one vector with bounds, its specification is {specification!r}")


def require_alike(environments: Sequence[Any]) -> None:
    """Check that C++ can step environments of one factory beside each other.

    Raises:
        ValueError: actions of several sizes, or two are the same object or share their physics.
    """
    expected = environments[0].action_spec().shape
    for owned in (environments, [each.physics for each in environments], [each.task for each in environments]):
        if len({id(each) for each in owned}) < len(environments):
            raise ValueError(
                "make_environment must return a new environment, with physics and task of its own, each time"
            )
    for environment in environments:
        size = environment.action_spec().shape
        if size != expected:
            raise ValueError(f"the action of an environment has shape {size}, that of the first one {expected}")


def find_fields(environment: Any) -> Fields:
    """Names and shapes of the observation, found by beginning an episode; for an environment that is not used on."""
    return _fields_of(environment.reset().observation)


class TaskCallback:
    """One environment: dm_control's physics and task. The C++ threads step its physics where it lies, and call this.

    Attributes:
        environment: the dm_control environment; `reseed` makes another one.
        random: the random state that its factory was given.
        fields: names and shapes of the observation.
        observation: the last observation, flat float64; C++ reads this memory.
        action: what `before_step` gives to the task; C++ writes this memory.
        sets_control_only: the task's before_step copies the action to the actuators: C++ does that without Python.
        legacy_step: dm_control's flag of the environment.
        error: what the last call raised, KeyboardInterrupt and SystemExit included; see `take_error`.
    """

    def __init__(self, environment: Any, random: np.random.RandomState, fields: Fields, load: Load) -> None:
        """Take `environment`, made by `load(random)`."""
        self.environment, self.random, self.fields, self._load = environment, random, fields, load
        self.observation: NDArray[np.float64] = np.zeros(sum(int(np.prod(shape)) for _, shape in fields))
        self.action: NDArray[np.float64] = np.zeros(environment.action_spec().shape)
        self.legacy_step = bool(environment.physics.legacy_step)
        self.error: BaseException | None = None
        self._following: tuple[Any, np.random.RandomState] | None = None
        base = importlib.import_module("dm_control.suite.base")
        engine = importlib.import_module("dm_control.mujoco.engine")
        self.sets_control_only = (
            type(environment.task).before_step is base.Task.before_step
            and type(environment.physics).set_control is engine.Physics.set_control
            and len(self.action) == int(environment.physics.model.nu)
        )

    def physics(self) -> tuple[int, int, Any, Any]:
        """Addresses of the mjModel and the mjData (a task may load others), and what keeps them in memory meanwhile."""
        physics = self.environment.physics
        model, data = physics.model.ptr, physics.data.ptr
        return int(model._address), int(data._address), model, data

    def begin(self) -> None:
        """Begin an episode."""
        if self._following is not None:
            self.environment, self.random = self._following
            self._following = None
        self._guard(lambda: self._write(self.environment.reset().observation))

    def before_step(self) -> None:
        """Give `action` to the task."""
        environment = self.environment
        self._guard(lambda: environment.task.before_step(self.action.copy(), environment.physics))

    def after_step(self, time_limit: bool) -> tuple[float, float | None]:
        """(reward, the discount of an episode that ends here), asked in dm_control's order."""
        return self._guard(lambda: self._after_step(time_limit))

    def remake(self, seed: int) -> tuple[Any, np.random.RandomState]:
        """An environment that draws from RandomState(seed), for `follow`; raises what the factory raises."""
        random = np.random.RandomState(seed)
        return self._load(random), random

    def follow(self, environment: Any, random: np.random.RandomState) -> None:
        """Let what `remake` gave take over at the beginning of an episode."""
        self._following = environment, random

    def get_state(self) -> bytes:
        """The attributes of the task and the last observation, which another call might draw anew.

        Raises:
            TypeError: the task has an attribute that does not pickle.
        """
        file = io.BytesIO()
        pickler = _Pickler(file, self._shared())
        try:
            pickler.dump((vars(self.environment.task), self.observation))
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise TypeError(f"the state of {type(self.environment.task).__name__} does not pickle: {error}") from error
        return file.getvalue()

    def parse_state(self, state: bytes) -> tuple[dict[str, Any], NDArray[np.float64]]:
        """The attributes and the observation that `get_state` gave; nothing changes yet.

        Raises:
            ValueError: the bytes are of something else.
        """
        name = type(self.environment.task).__name__
        try:
            attributes, observation = _Unpickler(io.BytesIO(state), self._shared()).load()
            attributes, observation = dict(attributes), np.asarray(observation, dtype=np.float64)
        except Exception as error:  # whatever the unpickling of damaged bytes, or of a task's attribute, raises
            raise ValueError(f"the state of {name} does not unpickle: {type(error).__name__}: {error}") from error
        if observation.shape != self.observation.shape:
            expected, found = self.observation.shape, observation.shape
            raise ValueError(f"the observation in the state of {name} has shape {found}, expected {expected}")
        return attributes, observation

    def set_state(self, attributes: Mapping[str, Any], observation: NDArray[np.float64]) -> None:
        """Take what `parse_state` gave."""
        self._following = None
        own = vars(self.environment.task)
        own.clear()
        own.update(attributes)
        self.observation[:] = observation

    def _shared(self) -> dict[str, Any]:
        """What a task may refer to and is not part of its state."""
        environment = self.environment
        return {
            "random": self.random,
            "environment": environment,
            "physics": environment.physics,
            "task": environment.task,
        }

    def _after_step(self, time_limit: bool) -> tuple[float, float | None]:
        task, physics = self.environment.task, self.environment.physics
        task.after_step(physics)
        reward = float(task.get_reward(physics))
        observation = task.get_observation(physics)
        if self.environment._flat_observation:
            observation = importlib.import_module("dm_control.rl.control").flatten_observation(observation)
        self._write(observation)
        end = None if time_limit else task.get_termination(physics)
        if end is not None and not 0.0 <= float(end) <= 1.0:
            raise ValueError(f"get_termination must return None or a discount within [0, 1], got {end!r}")
        return reward, None if end is None else float(end)

    def _write(self, observation: Any) -> None:
        found = _fields_of(observation)
        if found != self.fields:
            raise ValueError(
                f"the observation is {dict(found)}, the first one of this task was {dict(self.fields)}: "
                "names, their order and shapes must stay"
            )
        start = 0
        for value in observation.values():
            flat = np.ravel(value)
            self.observation[start : start + len(flat)] = flat
            start += len(flat)

    def _guard(self, call: Callable[[], T]) -> T:
        self.error = None
        try:
            return call()
        except BaseException as error:  # an interrupt too: C++ passes on its text, `take_error` the exception itself
            self.error = error
            raise CallbackError(_described(error)) from error


class CallbackEpisodes:
    """What `Episodes` is for other tasks: here each environment begins its own episodes, when they are due."""

    in_cpp = False
    alone = True  # nothing is loaded into the batch

    def __init__(self, callbacks: Sequence[TaskCallback]) -> None:
        self._callbacks = callbacks

    def load(self, envs: Iterable[int]) -> None:
        """Nothing is lacking ever."""

    def prepare_one(self) -> None:
        """Nothing is begun ahead: the task may keep what belongs to the present episode."""

    @property
    def model_fields(self) -> ModelFields:
        """Not here.

        Raises:
            ValueError: always.
        """
        raise ValueError("a Python task owns its model: write its fields in initialize_episode or in make_environment")

    def set_fields(self, env: int, fields: Any) -> None:  # noqa: ARG002
        """Not here; see `model_fields`."""
        raise AssertionError(self.model_fields)

    def field_states(self) -> tuple[tuple[Mapping[str, NDArray[np.floating[Any]]], Any], ...]:
        """Nothing for each environment."""
        return tuple(({}, None) for _ in self._callbacks)

    def restore_fields(self, env: int, fields: Any, generator_state: Any) -> None:
        """There are none."""

    def check_fields(self, fields: Sequence[tuple[Mapping[str, Any], Any]]) -> None:
        """Raise ValueError where a state has fields."""
        for env, entry in enumerate(fields):
            if not isinstance(entry, tuple) or entry != ({}, None):
                raise ValueError(f"the state has model fields of environment {env}, but a Python task owns its model")

    def forget(self, env: int, random_state: Any) -> None:
        """Draw from `random_state` (numpy's) from now on."""
        self._callbacks[env].random.set_state(random_state)

    def reseed(self, seeds: Mapping[int, int]) -> None:
        """Make environments anew, from RandomState(seed); all of them, or none where the factory raises."""
        made = {env: self._callbacks[env].remake(seed) for env, seed in seeds.items()}
        require_alike(
            [*(each.environment for each in self._callbacks), *(environment for environment, _ in made.values())]
        )
        for env, following in made.items():
            self._callbacks[env].follow(*following)

    def random_states(self) -> tuple[Any, ...]:
        """Per environment the state of the random state that its factory was given."""
        return tuple(callback.random.get_state() for callback in self._callbacks)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, shared: Mapping[str, Any]) -> None:
        super().__init__(file)
        self._names = {id(value): name for name, value in shared.items()}

    def persistent_id(self, value: Any) -> str | None:
        return self._names.get(id(value))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, shared: Mapping[str, Any]) -> None:
        super().__init__(file)
        self._shared = shared

    def persistent_load(self, name: str) -> Any:
        return self._shared[name]


def take_error(callbacks: Sequence[TaskCallback], text: str) -> BaseException | None:
    """What a task raised in the call that failed with `text`, once; None where that came from no task.

    An interrupt (KeyboardInterrupt, SystemExit and others that are no Exception) goes before the errors of other tasks.
    """
    raised = [callback for callback in callbacks if callback.error is not None]
    interrupts = [callback for callback in raised if not isinstance(callback.error, Exception)]
    named = [callback for callback in raised if callback.error is not None and _described(callback.error) in text]
    for callback in (*interrupts, *named):
        error, callback.error = callback.error, None
        return error
    return None


def _described(error: BaseException) -> str:
    """The exception and the place in the task that raised it."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - its __str__ is the task's own code
        text = type(error).__name__
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{text} ({Path(place.filename).name}, line {place.lineno}, in {place.name})"


def _fields_of(observation: Any) -> Fields:
    if not isinstance(observation, Mapping):
        raise TypeError(f"get_observation must return a mapping of names to arrays, got {type(observation).__name__}")
    return [(str(name), tuple(np.shape(value))) for name, value in observation.items()]
