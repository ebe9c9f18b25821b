"""What a worker process does: it holds some environments, steps them when it is told to, and ends with its parent."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from aime.envs.batch_engine import BatchEngine
from aime.envs.engine import Description
from aime.envs.shared_steps import SharedSteps
from aime.envs.time_step import EnvironmentState, TimeStep


def serve(line: Connection[Any, Any], file: int) -> None:
    """Answer messages (method name and arguments) until the parent hangs up."""
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        settings, first = line.recv()
        try:
            engine = BatchEngine(settings)
        except Exception as error:  # noqa: BLE001 - all of them are the caller's
            line.send(_portable(error))
            return
        with contextlib.closing(engine):
            share = Share(engine, first, file)
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

    def __init__(self, engine: BatchEngine, first: int, file: int) -> None:
        self._engine, self._first, self._file = engine, first, file
        self._steps: SharedSteps

    def described(self) -> tuple[Description, TimeStep]:
        """What is the same in all processes, and a time step with arrays as theirs will be."""
        return self._engine.description, self._engine.template()

    def share(self, num_envs: int) -> None:
        """Map the memory for the steps of all environments."""
        action_size = len(self._engine.description.action_minimum)
        self._steps = SharedSteps(self._file, self._engine.template(), num_envs, action_size)

    def step(self, block: int) -> dict[int, str]:
        """Step with the shared actions. Like the next two: the results go to `block`; returns the faults."""
        actions = self._steps.actions[self._first : self._first + self._engine.settings.num_envs]
        return self._write(block, self._engine.step(actions))

    def reset(self, block: int, ids: Sequence[int] | None, seeds: Mapping[int, int]) -> dict[int, str]:
        """Begin episodes; `ids` and `seeds` are numbered as here."""
        return self._write(block, self._engine.reset(ids, seeds))

    def set_state(self, block: int, state: EnvironmentState) -> dict[int, str]:
        """Go on from a state of these environments."""
        return self._write(block, self._engine.set_state(state))

    def check_state(self, state: EnvironmentState) -> None:
        """ValueError where `set_state` could not take `state`."""
        self._engine.check_state(state)

    def state(self) -> EnvironmentState:
        """The state of these environments."""
        return self._engine.state()

    def renderer(self) -> str:
        """What the threads have drawn with."""
        return self._engine.renderer()

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
