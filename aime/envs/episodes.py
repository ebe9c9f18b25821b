"""Where episodes come from: dm_control's Python or the C++ tasks, and the random streams that draw them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


class Episodes:
    """Begins the next episodes of a batch, ahead of the end of the present ones where it can.

    One numpy RandomState for each environment draws its episodes in order, as dm_control's own would. Tasks that the
    extension initialises hold that stream in C++, and its threads begin episodes ahead; for the others dm_control does
    it here, in the calling thread, while the C++ threads step. An episode begun ahead is forgotten where it must not
    be used (new seed, restored state): its random numbers are then drawn again.
    """

    def __init__(self, suite_environment: Any, batch: Any, seeds: Sequence[int]) -> None:
        self._environment, self._batch = suite_environment, batch
        self.in_cpp = bool(batch.initialises())
        self._random = [np.random.RandomState(seed) for seed in seeds]
        self._before: list[Any] = [None] * len(seeds)

    def load(self, envs: Iterable[int]) -> None:
        """Let dm_control begin the next episodes of `envs`."""
        for env in envs:
            random = self._random[env]
            before = random.get_state()
            self._environment.task._random = random
            self._environment.reset()
            physics = self._environment.physics
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
        """Draw from RandomState(seed) from now on."""
        self.forget(env, np.random.RandomState(seed).get_state())

    def random_states(self) -> tuple[Any, ...]:
        """Per environment the state of the stream that draws the episode after the present one."""
        envs = range(len(self._random))
        if self.in_cpp:
            return tuple(self._batch.random_state(env) for env in envs)
        unprepared = set(self._batch.lacking(None, True))
        return tuple(self._stream(env, env not in unprepared) for env in envs)

    def _stream(self, env: int, prepared: bool) -> Any:
        return self._before[env] if prepared else self._random[env].get_state()
