"""Reader of HDF5 files with one group per episode: ``episode_i`` {observations, actions, rewards, dones}.

This is what the earlier AIME's collector wrote: observations uint8 (T, H, W, 3), each stored before its action was
taken, actions (T, A), rewards (T,), dones (T,). Channel-first observations and one final extra observation are
accepted too, and numbers with leading zeros (``episode_000``).

``dones`` marks the end of an episode, and these files do not say whether by termination or by the time limit. The
Control Suite ends its episodes by time limit, with discount 1, so continues are 1 unless the group has ``discounts``
or ``terminals``, or the reader is told that dones are terminations.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from aime.data.checked_hdf5 import FileHandle, attribute, check_stored, has_member, member, read, reading
from aime.data.errors import DataError
from aime.data.layout import check_steps
from aime.data.source import check_window
from aime.data.spec import EpisodeSpec
from aime.data.window import Window

_GROUP = re.compile(r"episode_([0-9]{1,12})")


def is_episode_name(name: str) -> bool:
    """Whether a group of this name holds an episode."""
    return _GROUP.fullmatch(name) is not None


class GroupHDF5Source:
    """Episodes of one file with groups ``episode_0``, ``episode_1``, ...

    Args:
        path: the file.
        dones_are_terminations: take ``dones`` for true terminations (continue 0) instead of time limits.

    Raises:
        DataError: naming the file, the episode, the key, what was expected and what was found.
    """

    def __init__(self, path: str | Path, *, dones_are_terminations: bool = False) -> None:
        self._handle = FileHandle(Path(path))
        self.path = self._handle.path
        file = self._handle.open()
        self._names = self._episode_names(file)
        groups = [member(self.path, file, name, h5py.Group, expected="a group of one episode") for name in self._names]
        shape = self._dataset(groups[0], 0, "observations").shape
        self._channels_last = self._detect_channels_last(shape)
        actions = self._dataset(groups[0], 0, "actions")
        if actions.ndim != 2 or actions.shape[1] < 1:
            raise DataError(self.path, episode=0, key="actions", expected="(T, A)", found=str(actions.shape))
        height, width = shape[1:3] if self._channels_last else shape[2:4]
        try:
            self.spec = EpisodeSpec(
                image_shape=(3, int(height), int(width)),
                action_size=int(actions.shape[1]),
                domain=self._label(file, "domain"),
                task=self._label(file, "task"),
            )
        except ValueError as error:
            raise DataError(self.path, expected="names and sizes that can be used", found=str(error)) from error
        self._steps = [self._read_steps(group, i, dones_are_terminations) for i, group in enumerate(groups)]
        self.lengths: NDArray[np.int64] = np.array([len(steps[0]) for steps in self._steps], np.int64)

    def window(self, episode: int, start: int, length: int) -> Window:
        """Steps ``start`` to ``start + length - 1`` of an episode."""
        check_window(self, episode, start, length)
        dataset = self._handle.dataset(f"{self._names[episode]}/observations", episode=episode)
        frames: NDArray[np.uint8] = read(
            self.path, dataset, slice(start, start + length), episode=episode, key="observations"
        )
        if self._channels_last:
            frames = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))  # (T, H, W, C) -> (T, C, H, W)
        actions, rewards, continues = (array[start : start + length] for array in self._steps[episode])
        return Window(frames, actions, rewards, continues, episode=episode, start=start)

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        self._handle.close()

    def _episode_names(self, file: h5py.File) -> list[str]:
        """The groups' names by number, as they are spelled."""
        with reading(self.path):
            names = list(file)
        numbered: dict[int, str] = {}
        for name in names:
            if (match := _GROUP.fullmatch(name)) is None:
                continue
            other = numbered.setdefault(int(match[1]), name)
            if other != name:
                raise DataError(self.path, expected="one group for each number", found=f"{other} and {name}")
        if not numbered:
            raise DataError(
                self.path, expected="groups episode_0, episode_1, ...", found=", ".join(sorted(names)[:8]) or "none"
            )
        return [numbered[number] for number in sorted(numbered)]

    def _label(self, file: h5py.File, name: str) -> str:
        with reading(self.path, key=name):
            there = name in file.attrs
        return str(attribute(self.path, file, name, str)) if there else ""

    def _dataset(self, group: h5py.Group, episode: int, key: str) -> h5py.Dataset:
        return member(self.path, group, key, h5py.Dataset, expected="a dataset", episode=episode)

    def _detect_channels_last(self, shape: tuple[int, ...]) -> bool:
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
        length = len(actions) if actions.ndim else 0
        if actions.shape != (length, self.spec.action_size) or not length:
            expected = f"({length or 'at least 1'}, {self.spec.action_size})"
            raise DataError(self.path, episode=episode, key="actions", expected=expected, found=str(actions.shape))
        channels, height, width = self.spec.image_shape
        shape = (height, width, channels) if self._channels_last else (channels, height, width)
        if (
            frames.dtype != np.uint8
            or frames.ndim != 4
            or frames.shape[1:] != shape
            or len(frames) not in (length, length + 1)
        ):
            raise DataError(
                self.path,
                episode=episode,
                key="observations",
                expected=f"uint8 ({length}, {', '.join(map(str, shape))})",
                found=f"{frames.dtype} {frames.shape}",
            )
        check_stored(self.path, frames, length, episode=episode, key="observations")
        rewards = self._numbers(group, episode, "rewards", length)
        if has_member(self.path, group, "discounts"):
            continues = self._numbers(group, episode, "discounts", length)
        elif has_member(self.path, group, "terminals"):
            continues = 1 - self._numbers(group, episode, "terminals", length)
        elif dones_are_terminations:
            continues = 1 - self._numbers(group, episode, "dones", length)
        else:
            continues = np.ones(length)
        values = {
            "actions": self._numbers(group, episode, "actions", length, self.spec.action_size),
            "rewards": rewards,
            "continues": continues,
        }
        check_steps(self.path, episode, self.spec, values)
        single = {key: array.astype(np.float32) for key, array in values.items()}
        return single["actions"], single["rewards"], single["continues"]

    def _numbers(
        self, group: h5py.Group, episode: int, key: str, length: int, width: int | None = None
    ) -> NDArray[np.float64]:
        """(length,), or (length, width) where a width is given; any numeric type is accepted."""
        dataset = self._dataset(group, episode, key)
        shapes: tuple[Any, ...] = ((length,), (length, 1)) if width is None else ((length, width),)
        if dataset.shape not in shapes or dataset.dtype.kind not in "biuf":
            numeric = dataset.dtype.kind in "biuf"
            expected = str(shapes[0]) if numeric else f"numbers {shapes[0]}"
            found = str(dataset.shape) if numeric else f"{dataset.dtype} {dataset.shape}"
            raise DataError(self.path, episode=episode, key=key, expected=expected, found=found)
        check_stored(self.path, dataset, length, episode=episode, key=key)
        values = read(self.path, dataset, slice(0, length), episode=episode, key=key).astype(np.float64)
        return values.reshape(shapes[0])
