"""Where episodes come from: dm_control's Python or the C++ tasks, and the random streams that draw them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aime.envs.model_fields import Fields, ModelFields, Randomise
from aime.envs.saved_state import generator_of


class Episodes:
    """Begins the next episodes of a batch, ahead of the end of the present ones where it can.

    One numpy RandomState for each environment draws its episodes in order, as dm_control's own would. Tasks that the
    extension initialises hold that stream in C++, and its threads begin episodes ahead; for the others dm_control does
    it here, in the calling thread, while the C++ threads step. An episode begun ahead is forgotten where it must not
    be used (new seed, restored state, new model fields): its random numbers are then drawn again. Each environment has
    a model of its own, as if it were dm_control's: what an episode changed in it is still there when the next begins.
    """

    def __init__(
        self,
        environment: Any,
        load: Callable[[np.random.RandomState], Any],
        batch: Any,
        seeds: Sequence[int],
        randomise: Randomise | None = None,
    ) -> None:
        """Take `batch`, made of the model of `environment`, which is `load(RandomState(seeds[0]))`."""
        self._environment, self._load_suite, self._batch = environment, load, batch
        self.in_cpp: bool = bool(batch.initialises())
        self._randomise = randomise
        self._generators = [np.random.default_rng([seed, 1]) for seed in seeds]
        self._generators_before: list[Any] = [None] * len(seeds)
        self._model_fields: ModelFields | None = None
        self._fields: list[dict[str, NDArray[np.floating[Any]]]] = [{} for _ in seeds]
        self._random = [np.random.RandomState(seed) for seed in seeds]
        self._before: list[Any] = [None] * len(seeds)
        self._random[0] = environment.task.random
        # lqr draws the stiffness of its springs when it is made: the models of other seeds differ.
        self._draws_model = not _at_same_place(self._random[0], np.random.RandomState(seeds[0]))
        if self._draws_model:
            if randomise is not None:
                self._refuse_fields()
            self.reseed(dict(enumerate(seeds[1:], start=1)))

    @property
    def alone(self) -> bool:
        """Whether the extension begins all episodes without any help from here."""
        return self.in_cpp and self._randomise is None

    @property
    def model_fields(self) -> ModelFields:
        """Checks and encodes values of model fields.

        Raises:
            ValueError: the task draws the models of its environments itself.
        """
        if self._draws_model:
            self._refuse_fields()
        if self._model_fields is None:
            self._model_fields = ModelFields(self._environment.physics.model.ptr, self._batch)
        return self._model_fields

    def load(self, envs: Iterable[int]) -> None:
        """Begin the next episodes of `envs`, as far as the extension does not: fields of the model, and dm_control."""
        for env in envs:
            if self._randomise is not None:
                self._draw_fields(env, self._randomise)
            if not self.in_cpp:
                self._begin(env)

    def prepare_one(self) -> None:
        """Begin one more next episode ahead, while the threads step."""
        env = self._batch.unprepared() if not self.in_cpp else -1
        if env >= 0:
            self.load((env,))

    def set_fields(self, env: int, fields: Fields) -> None:
        """Fields of the model of `env`, from its next episode on."""
        self.forget(env)
        self._fields[env].update(fields)
        self._encode(env, {})

    def forget(self, env: int, random_state: Any = None) -> None:
        """Drop the next episode of `env`, to be drawn again, or from `random_state` (numpy's)."""
        pending = self._is_pending(env)
        if pending and self._randomise is not None:
            self._generators[env].bit_generator.state = self._generators_before[env]
        if not self.in_cpp:
            state = self._before[env] if pending else self._random[env].get_state()
            self._random[env].set_state(state if random_state is None else random_state)
            random_state = None
        self._batch.forget_next(env, random_state)

    def reseed(self, seeds: Mapping[int, int]) -> None:
        """Draw from RandomState(seed) from now on: episodes, and the model where the task draws that."""
        for env, seed in seeds.items():
            random = np.random.RandomState(seed)
            if self._draws_model:
                drawn = self._load_suite(random)
                self._batch.set_model(env, drawn.physics.model.ptr._address)
            self.forget(env, random.get_state())
            self._generators[env] = np.random.default_rng([seed, 1])

    def random_states(self) -> tuple[Any, ...]:
        """Per environment the state of the stream that draws the episode after the present one."""
        envs = range(len(self._random))
        if self.in_cpp:
            return tuple(self._batch.random_state(env) for env in envs)
        return tuple(self._before[env] if self._is_pending(env) else self._random[env].get_state() for env in envs)

    def field_states(self) -> tuple[tuple[Mapping[str, NDArray[np.floating[Any]]], Any], ...]:
        """Per environment the fields that were set, and the state of the generator that randomises them."""
        return tuple(
            (
                dict(self._fields[env]),
                self._generators_before[env]
                if self._randomise is not None and self._is_pending(env)
                else generator.bit_generator.state,
            )
            for env, generator in enumerate(self._generators)
        )

    def check_fields(self, fields: Sequence[tuple[Fields, Any]]) -> None:
        """Raise ValueError where `restore_fields` could not take an entry; nothing changes."""
        for env, entry in enumerate(fields):
            if not isinstance(entry, tuple) or len(entry) != 2 or not isinstance(entry[0], Mapping):
                raise ValueError(
                    f"fields of environment {env} in the state must be a pair of fields and a generator's state"
                )
            for name, values in entry[0].items():
                self.model_fields.check(name, values)
            generator_of(env, entry[1])

    def restore_fields(self, env: int, fields: Fields, generator_state: Any) -> None:
        """Go on from an entry of `field_states`; drops the next episode."""
        self.forget(env)
        if fields or self._fields[env]:
            self._fields[env] = dict(fields)
            self._encode(env, {})
        self._generators[env].bit_generator.state = generator_state

    def _is_pending(self, env: int) -> bool:
        """Whether the next episode, or the fields for it, are drawn already."""
        return not self.alone and not self._batch.lacking([env], True)

    def _draw_fields(self, env: int, randomise: Randomise) -> None:
        generator = self._generators[env]
        before = self._generators_before[env] = generator.bit_generator.state
        try:
            checked = self.model_fields.check_all(randomise(env, generator))
        except BaseException:
            generator.bit_generator.state = before  # as if it had not been asked, also after an interrupt
            raise
        self._encode(env, checked)

    def _encode(self, env: int, drawn: Fields) -> None:
        fields = self._fields[env] | dict(drawn)
        self._batch.set_fields(env, self.model_fields.changes(fields) if fields else [])
        if self._randomise is not None and not drawn:
            self._batch.forget_next(env)  # what was set is in force, what is drawn for the next episode is not yet

    def _begin(self, env: int) -> None:
        """Let dm_control begin an episode with this environment's random state and model, and hand it over."""
        random = self._random[env]
        before = random.get_state()
        self._environment.task._random = random
        physics = self._environment.physics
        self._batch.lend_model(env, physics.model.ptr._address)
        try:
            self._environment.reset()
        except BaseException:
            random.set_state(before)  # the next try draws the same episode, also after an interrupt
            raise
        self._batch.load(env, physics.model.ptr._address, physics.data.ptr._address)
        self._before[env] = before

    def _refuse_fields(self) -> None:
        raise ValueError("this task draws a model for each environment: its fields cannot be set or randomised")


def _at_same_place(left: np.random.RandomState, right: np.random.RandomState) -> bool:
    """Whether two streams give the same numbers from now on."""
    return all(np.array_equal(one, other) for one, other in zip(left.get_state(), right.get_state(), strict=True))
