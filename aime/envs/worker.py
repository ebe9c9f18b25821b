"""What a worker process does: it holds some environments, steps them when it is told to, and ends with its parent."""

from __future__ import annotations

import contextlib
import pickle
from multiprocessing.connection import Connection
from typing import Any

from aime.envs.parallel_environment import ParallelEnvironment
from aime.envs.shared_steps import SharedSteps
from aime.envs.time_step import EnvironmentState, TimeStep

#: Attributes of `ParallelEnvironment` that speak of all environments, not of those of one process.
_OF_ALL = {"num_envs", "num_processes", "num_threads", "seeds"}


def serve(line: Connection[Any, Any], file: int) -> None:
    """Answer messages (method name and arguments) until the parent hangs up."""
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        options, first = line.recv()
        try:
            env = ParallelEnvironment(**options)
        except Exception as error:  # noqa: BLE001 - all of them are the caller's
            line.send(_portable(error))
            return
        with env:
            share = Share(env, first, file)
            line.send(share.described())
            while True:
                method, *arguments = line.recv()
                try:
                    answer = getattr(share, method)(*arguments)
                except Exception as error:  # noqa: BLE001
                    answer = _portable(error)
                line.send(answer)


class Share:
    """The environments of this process, whose first is environment `first` of all; its methods are the messages."""

    def __init__(self, env: ParallelEnvironment, first: int, file: int) -> None:
        self._env, self._first, self._file = env, first, file
        self._steps: SharedSteps

    def described(self) -> tuple[dict[str, Any], TimeStep]:
        """The attributes that are the same in all processes, and a time step with arrays as theirs will be."""
        attributes = {
            name: value
            for name, value in vars(self._env).items()
            if name in {"_fields", "_mujoco_version"} or not (name.startswith("_") or name in _OF_ALL)
        }
        return attributes, self._template()

    def share(self, num_envs: int) -> None:
        """Map the memory for the steps of all environments."""
        self._steps = SharedSteps(self._file, self._template(), num_envs, self._env.action_size)

    def step(self, block: int) -> dict[int, str]:
        """Step with the shared actions. Like the next two: the results go to `block`; returns the faults."""
        actions = self._steps.actions[self._first : self._first + self._env.num_envs]
        return self._write(block, self._env.step(actions))

    def reset(self, block: int, ids: list[int] | None, seed: list[int | None] | None) -> dict[int, str]:
        """Begin episodes; `ids` and `seed` are numbered as here."""
        return self._write(block, self._env.reset(ids, seed=seed))

    def set_state(self, block: int, state: EnvironmentState) -> dict[int, str]:
        """Go on from a state of these environments."""
        return self._write(block, self._env.set_state(state))

    def state(self) -> EnvironmentState:
        """The state of these environments."""
        return self._env.state()

    def renderer(self) -> str:
        """What the threads have drawn with."""
        return str(self._env._open().renderer())

    def _template(self) -> TimeStep:
        return self._env._view_block(0, received=False)

    def _write(self, block: int, step: TimeStep) -> dict[int, str]:
        self._steps.write(block, self._first, step)
        return {self._first + env: reason for env, reason in step.faults.items()}


def _portable(error: Exception) -> Exception:
    """The exception, or its text where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - written in this line
    except Exception:  # noqa: BLE001 - whatever an exception's own pickling raises
        return RuntimeError(repr(error))
    return error
