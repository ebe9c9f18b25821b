"""Time steps of many environments in memory that several processes map: each process writes the rows of its own."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from aime.envs.time_step import TimeStep

#: Results stay valid until the second next step.
BLOCKS = 2
_ALIGNMENT = 64
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a file without a name, in memory


def make_file() -> IO[bytes]:
    """A file without a name, in memory where the system has a place for that: it is gone with its last process."""
    directory = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    return tempfile.TemporaryFile(dir=directory)


class SharedSteps:
    """Actions and `BLOCKS` blocks of results in a shared file.

    Args:
        file: its descriptor; it is made large enough.
        template: a time step of some of the environments; only the kinds and shapes of its arrays matter.
        num_envs: rows of every array in the file.
        action_size: of one environment.

    Attributes:
        actions: (num_envs, action_size) float64.
        blocks: one time step of all environments each; views of the file.

    Raises:
        OSError: the system has no room for the file (in containers /dev/shm is often 64 MB).
    """

    def __init__(self, file: int, template: TimeStep, num_envs: int, action_size: int) -> None:
        self._end = 0
        self._memory: mmap.mmap | None = None
        self._lay_out(template, num_envs, action_size)
        os.posix_fallocate(file, 0, self._end)  # now, with an error; a page that is missing later ends the process
        self._memory = mmap.mmap(file, self._end)
        self._end = 0
        self.actions, self.blocks = self._lay_out(template, num_envs, action_size)

    def write(self, block: int, first: int, step: TimeStep) -> None:
        """Copy the rows of the environments from `first` on into a block."""
        target = self.blocks[block]
        for source, rows in zip(_arrays(step), _arrays(target), strict=True):
            np.copyto(rows[first : first + len(source)], source)
        target.env_id[first : first + len(step.env_id)] += first

    def _lay_out(
        self, template: TimeStep, num_envs: int, action_size: int
    ) -> tuple[NDArray[np.float64], tuple[TimeStep, ...]]:
        actions = self._place(np.zeros((0, action_size)), num_envs)
        return actions, tuple(self._place(template, num_envs) for _ in range(BLOCKS))

    def _place(self, value: Any, num_envs: int) -> Any:
        """`value` with each array replaced by the next place in the file, `num_envs` rows of it."""
        if isinstance(value, np.ndarray):
            shape, start = (num_envs, *value.shape[1:]), self._end
            size = num_envs * int(np.prod(value.shape[1:])) * value.dtype.itemsize
            self._end = start + -(-size // _ALIGNMENT) * _ALIGNMENT
            return value if self._memory is None else np.ndarray(shape, value.dtype, self._memory, start)
        if isinstance(value, Mapping):
            return {key: self._place(entry, num_envs) for key, entry in value.items()}
        if is_dataclass(value) and not isinstance(value, type):
            places = {entry.name: self._place(getattr(value, entry.name), num_envs) for entry in fields(value)}
            return type(value)(**places)
        return value


def _arrays(value: Any) -> Iterator[NDArray[Any]]:
    """The arrays of a time step in a fixed order."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _arrays(entry)
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            yield from _arrays(getattr(value, entry.name))
