"""Where episodes come from: dm_control's Python or the C++ tasks, and the random streams that draw them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np


class Episodes:
    """Begins the next episodes of a batch, ahead of the end of the present ones where it can.

    One numpy RandomState for each environment draws its episodes in order, as dm_control's own would. Tasks that the
    extension initialises hold that stream in C++, and its threads begin episodes ahead; for the others dm_control does
    it here, in the calling thread, while the C++ threads step. An episode begun ahead is forgotten where it must not
    be used (new seed, restored state): its random numbers are then drawn again. Each environment has a model of its
    own, as if it were dm_control's: what an episode changed in it is still there when the next one begins.
    """

    def __init__(
        self, environment: Any, load: Callable[[np.random.RandomState], Any], batch: Any, seeds: Sequence[int]
    ) -> None:
        """Take `batch`, made of the model of `environment`, which is `load(RandomState(seeds[0]))`."""
        self._environment, self._load_suite, self._batch = environment, load, batch
        self.in_cpp = bool(batch.initialises())
        self._random = [np.random.RandomState(seed) for seed in seeds]
        self._before: list[Any] = [None] * len(seeds)
        self._random[0] = environment.task.random
        # lqr draws the stiffness of its springs when it is made: the models of other seeds differ.
        self._draws_model = not _at_same_place(self._random[0], np.random.RandomState(seeds[0]))
        if self._draws_model:
            for env, seed in enumerate(seeds[1:], start=1):
                self.reseed(env, seed)

    def load(self, envs: Iterable[int]) -> None:
        """Let dm_control begin the next episodes of `envs`."""
        for env in envs:
            random = self._random[env]
            before = random.get_state()
            self._environment.task._random = random
            physics = self._environment.physics
            self._batch.lend_model(env, physics.model.ptr._address)
            self._environment.reset()
            self._batch.load(env, physics.model.ptr._address, physics.data.ptr._address)
            self._before[env] = before

    def prepare_one(self) -> None:
        """Begin one more next episode ahead, while the threads step."""
        env = self._batch.unprepared()
        if env >= 0:
            self.load((env,))

    def forget(self, env: int, random_state: Any = None) -> None:
        """Drop the next episode of `env`, to be drawn again, or from `random_state` (numpy's)."""
        if not self.in_cpp:
            state = self._stream(env, prepared=not self._batch.lacking([env], True))
            self._random[env].set_state(state if random_state is None else random_state)
            random_state = None
        self._batch.forget_next(env, random_state)

    def reseed(self, env: int, seed: int) -> None:
        """Draw from RandomState(seed) from now on: episodes, and the model where the task draws that."""
        random = np.random.RandomState(seed)
        if self._draws_model:
            drawn = self._load_suite(random)
            self._batch.set_model(env, drawn.physics.model.ptr._address)
        self.forget(env, random.get_state())

    def random_states(self) -> tuple[Any, ...]:
        """Per environment the state of the stream that draws the episode after the present one."""
        envs = range(len(self._random))
        if self.in_cpp:
            return tuple(self._batch.random_state(env) for env in envs)
        unprepared = set(self._batch.lacking(None, True))
        return tuple(self._stream(env, env not in unprepared) for env in envs)

    def _stream(self, env: int, prepared: bool) -> Any:
        return self._before[env] if prepared else self._random[env].get_state()


def _at_same_place(left: np.random.RandomState, right: np.random.RandomState) -> bool:
    """Whether two streams give the same numbers from now on."""
    return all(np.array_equal(one, other) for one, other in zip(left.get_state(), right.get_state(), strict=True))
