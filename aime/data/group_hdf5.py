"""Reader of HDF5 files with one group per episode: ``episode_i`` {observations, actions, rewards, dones}.

This is what the earlier AIME's collector wrote: observations uint8 (T, H, W, 3), each stored before its action was
taken, actions (T, A), rewards (T,), dones (T,). Channel-first observations and one final extra observation are
accepted too.

``dones`` marks the end of an episode, and these files do not say whether by termination or by the time limit. The
Control Suite ends its episodes by time limit, with discount 1, so continues are 1 unless the group has ``discounts``
or ``terminals``, or the reader is told that dones are terminations.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from aime.data.errors import DataError
from aime.data.hdf5 import open_file
from aime.data.source import check_window
from aime.data.spec import EpisodeSpec
from aime.data.window import Window


class GroupHDF5Source:
    """Episodes of one file with groups ``episode_0``, ``episode_1``, ...

    Args:
        path: the file.
        dones_are_terminations: take ``dones`` for true terminations (continue 0) instead of time limits.
    """

    def __init__(self, path: str | Path, *, dones_are_terminations: bool = False) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._owner = 0
        file = self._open()
        numbers = sorted(int(match[1]) for name in file if (match := re.fullmatch(r"episode_(\d+)", name)))
        if not numbers:
            raise DataError(
                self.path, expected="groups episode_0, episode_1, ...", found=", ".join(sorted(file)[:8]) or "none"
            )
        self._names = [f"episode_{number}" for number in numbers]
        self._channels_last = self._detect_channels_last(file[self._names[0]])
        first = file[self._names[0]]
        height, width = first["observations"].shape[1:3] if self._channels_last else first["observations"].shape[2:4]
        actions = self._dataset(first, 0, "actions")
        if actions.ndim != 2 or actions.shape[1] < 1:
            raise DataError(self.path, episode=0, key="actions", expected="(T, A)", found=str(actions.shape))
        self.spec = EpisodeSpec(
            image_shape=(3, int(height), int(width)),
            action_size=int(actions.shape[1]),
            domain=str(file.attrs.get("domain", "")),
            task=str(file.attrs.get("task", "")),
        )
        self._steps = [self._read_steps(file[name], i, dones_are_terminations) for i, name in enumerate(self._names)]
        self.lengths: NDArray[np.int64] = np.array([len(steps[0]) for steps in self._steps], np.int64)

    def window(self, episode: int, start: int, length: int) -> Window:
        """Steps ``start`` to ``start + length - 1`` of an episode."""
        check_window(self, episode, start, length)
        frames: NDArray[np.uint8] = self._open()[self._names[episode]]["observations"][start : start + length]
        if self._channels_last:
            frames = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))  # (T, H, W, C) -> (T, C, H, W)
        actions, rewards, continues = (array[start : start + length] for array in self._steps[episode])
        return Window(frames, actions, rewards, continues, episode=episode, start=start)

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        if self._file is not None and self._owner == os.getpid():
            self._file.close()
        self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def _open(self) -> h5py.File:
        if self._file is None or self._owner != os.getpid():  # an HDF5 handle must not be shared with a forked process
            self._file, self._owner = open_file(self.path), os.getpid()
        return self._file

    def _dataset(self, group: h5py.Group, episode: int, key: str) -> h5py.Dataset:
        if key not in group:
            raise DataError(
                self.path, episode=episode, key=key, expected="a dataset", found=f"only {', '.join(sorted(group))}"
            )
        return group[key]

    def _detect_channels_last(self, group: h5py.Group) -> bool:
        shape = self._dataset(group, 0, "observations").shape
        if len(shape) == 4 and 3 in (shape[1], shape[3]):
            return bool(shape[3] == 3)
        raise DataError(
            self.path, episode=0, key="observations", expected="(T, H, W, 3) or (T, 3, H, W)", found=str(shape)
        )

    def _read_steps(
        self, group: h5py.Group, episode: int, dones_are_terminations: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Actions (T, A), rewards (T,) and continues (T,) of one episode, checked."""
        frames = self._dataset(group, episode, "observations")
        actions = self._dataset(group, episode, "actions")
        length = len(actions)
        channels, height, width = self.spec.image_shape
        shape = (height, width, channels) if self._channels_last else (channels, height, width)
        if frames.dtype != np.uint8 or frames.shape[1:] != shape or len(frames) not in (length, length + 1):
            raise DataError(
                self.path,
                episode=episode,
                key="observations",
                expected=f"uint8 ({length}, {', '.join(map(str, shape))})",
                found=f"{frames.dtype} {frames.shape}",
            )
        if actions.shape[1:] != (self.spec.action_size,):
            raise DataError(
                self.path,
                episode=episode,
                key="actions",
                expected=f"({length}, {self.spec.action_size})",
                found=str(actions.shape),
            )
        rewards = self._vector(group, episode, "rewards", length)
        if "discounts" in group:
            continues = self._vector(group, episode, "discounts", length)
        elif "terminals" in group or dones_are_terminations:
            continues = 1 - self._vector(group, episode, "terminals" if "terminals" in group else "dones", length)
        else:
            continues = np.ones(length, np.float32)
        values = (np.asarray(actions[:], np.float32), rewards, continues)
        for key, array in zip(("actions", "rewards", "continues"), values, strict=True):
            if not np.isfinite(array).all():
                step = int(np.argwhere(~np.isfinite(array))[0, 0])
                raise DataError(
                    self.path, episode=episode, key=key, expected="finite values", found=f"{array[step]} at step {step}"
                )
        return values

    def _vector(self, group: h5py.Group, episode: int, key: str, length: int) -> NDArray[np.float32]:
        dataset = self._dataset(group, episode, key)
        if dataset.shape not in ((length,), (length, 1)):
            raise DataError(self.path, episode=episode, key=key, expected=f"({length},)", found=str(dataset.shape))
        return np.asarray(dataset[:], np.float32).reshape(length)
