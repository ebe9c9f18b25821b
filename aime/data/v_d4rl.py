"""Reader of V-D4RL (Lu et al. 2023): npz episodes at 64 x 64, or HDF5 of all steps in a row, at 84 x 84.

Row t of an episode holds the frame and the action, reward and discount that led to it; those of row 0 mean nothing. So
an episode of T rows has T - 1 steps: action and reward t are those of row t + 1.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from aime.data.checked_hdf5 import FileHandle, check_stored, has_member, open_file, read, reading
from aime.data.decoded import DecodedSource, Steps, channels_first, checked_steps, named_in, spec_of
from aime.data.errors import DataError

NPZ_ERRORS = (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)
LARGEST_ARRAY = 1 << 32  # bytes
FRAME_KEYS = ("image", "observation")
_PARTS = re.compile(r"([0-9]+)")


def npz_files(path: Path) -> list[Path]:
    """The npz files at a path: itself, or those in the directory, by name."""
    if path.is_file():
        return [path] if path.suffix == ".npz" else []
    return sorted(path.glob("*.npz")) if path.is_dir() else []


def npz_names(path: Path) -> set[str]:
    """Names of the arrays of an npz file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except NPZ_ERRORS as error:
        raise DataError(path, expected="a readable npz file", found=str(error)) from error


def read_array(path: Path, key: str, *, episode: int) -> NDArray[Any]:
    """One array of an npz file; nothing is unpickled.

    Raises:
        DataError: missing, damaged, of objects, or larger than it may be.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo(f"{key}.npy").file_size
            if size > LARGEST_ARRAY:
                raise ValueError(f"a claim of {size} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            values: NDArray[Any] = arrays[key]
            return values
    except NPZ_ERRORS as error:
        raise DataError(path, episode=episode, key=key, expected="an array of numbers", found=str(error)) from error


def shifted_steps(path: Path, episode: int, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Actions, rewards and continues of an episode whose rows hold what led to them."""
    length = len(columns["action"]) if columns["action"].ndim else 0
    flat = {
        key: array.reshape(len(array)) for key, array in columns.items() if array.size == length and key != "action"
    }
    for key in columns:
        if key != "action" and len(flat.get(key, ())) != length:
            raise DataError(
                path, episode=episode, key=key, expected=f"({length},), one of each row", found=str(columns[key].shape)
            )
    if "discount" in flat:
        continues = flat["discount"][1:]
    elif "is_terminal" in flat:
        continues = 1.0 - flat["is_terminal"][1:]
    else:
        continues = np.ones(max(length - 1, 0))
    return {"actions": columns["action"][1:], "rewards": flat["reward"][1:], "continues": continues}


class VD4RLNpzSource(DecodedSource):
    """A directory of npz episodes {image, action, reward, discount, is_terminal}, or one of them.

    Raises:
        DataError: naming the file and the array.
    """

    def __init__(self, path: Path) -> None:
        self._files, steps = npz_files(path), []
        for episode, file in enumerate(self._files):
            names = npz_names(file)
            optional = [key for key in ("discount", "is_terminal") if key in names]
            columns = {key: read_array(file, key, episode=episode) for key in ("action", "reward", *optional)}
            values = shifted_steps(file, episode, columns)
            if episode == 0:
                self._key = next((key for key in FRAME_KEYS if key in names), FRAME_KEYS[0])
                frames = channels_first(file, read_array(file, self._key, episode=0), episode=0)
                if values["actions"].ndim != 2:
                    raise DataError(
                        file, episode=0, key="action", expected="(T, A)", found=str(columns["action"].shape)
                    )
                spec = spec_of(path, frames, values["actions"].shape[1], **named_in(file.absolute()))
            steps.append(checked_steps(file, episode, spec, values))
        super().__init__(path, spec, steps)

    def _place(self, episode: int) -> Path:
        return self._files[episode]

    def _decode(self, episode: int) -> NDArray[np.uint8]:
        file = self._files[episode]
        return channels_first(file, read_array(file, self._key, episode=episode), episode=episode)


class VD4RLHDF5Source(DecodedSource):
    """HDF5 files {observation (N, 3, H, W), action, reward, discount, step_type} of episodes in a row.

    A directory holds shards 0.hdf5, 1.hdf5, ..., whose rows are one after the other: an episode may begin in one and
    go on in the next.

    Args:
        path: one such file, or a directory of them.

    Raises:
        DataError: naming the file and the dataset.
    """

    def __init__(self, path: Path) -> None:
        self._handles = [FileHandle(file) for file in hdf5_files(path)]
        tables = [_columns(handle) for handle in self._handles]
        _check_alike(self._handles, tables)
        self._ends = np.cumsum([len(table["action"]) for table in tables])
        columns = {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}
        starts = np.flatnonzero(columns.pop("step_type").reshape(-1) == 0).tolist()
        self._check_starts(starts)
        self._rows = list(zip(starts, [*starts[1:], int(self._ends[-1])], strict=True))
        first = channels_first(self._handles[0].path, self._read(0, slice(0, 1), 0), episode=0)
        spec = spec_of(path, first, columns["action"].shape[1], **named_in(path.absolute()))
        steps: list[Steps] = []
        for episode, (start, end) in enumerate(self._rows):
            place = self._place(episode)
            values = shifted_steps(place, episode, {key: array[start:end] for key, array in columns.items()})
            steps.append(checked_steps(place, episode, spec, values))
        super().__init__(path, spec, steps)

    def _check_starts(self, starts: list[int]) -> None:
        """Raise DataError unless the first row begins an episode, and shards that none begins follow one another."""
        begins = [0, *self._ends[:-1].tolist()]
        known = set(starts)
        for number, begin in enumerate(begins):
            if begin in known:
                continue
            path, before = self._handles[number].path, self._handles[number - 1].path
            if number and path.stem.isdigit() and before.stem.isdigit() and int(path.stem) == int(before.stem) + 1:
                continue
            expected = "0 at the first row of each episode" + ("" if not number else ", or the shard before it")
            found = "none at row 0" + ("" if not number else f", and {before.name} before it")
            raise DataError(path, key="step_type", expected=expected, found=found)

    def _place(self, episode: int) -> Path:
        """The file in which an episode begins."""
        return self._handles[int(np.searchsorted(self._ends, self._rows[episode][0], side="right"))].path

    def _read(self, number: int, rows: slice, episode: int) -> NDArray[np.uint8]:
        handle = self._handles[number]
        frames: NDArray[np.uint8] = read(
            handle.path, handle.dataset("observation"), rows, episode=episode, key="observation"
        )
        return frames

    def _decode(self, episode: int) -> NDArray[np.uint8]:
        (start, end), parts, begin = self._rows[episode], [], 0
        for number, stop in enumerate(self._ends.tolist()):
            if start < stop and end > begin:
                rows = slice(max(start, begin) - begin, min(end, stop) - begin)
                parts.append(self._read(number, rows, episode))
            begin = stop
        if len({part.shape[1:] for part in parts}) > 1:
            found = " and ".join(str(part.shape[1:]) for part in parts)
            expected = "frames of one shape in all shards of an episode"
            raise DataError(self._place(episode), episode=episode, key="observation", expected=expected, found=found)
        return channels_first(self._place(episode), np.concatenate(parts), episode=episode)


def hdf5_files(path: Path) -> list[Path]:
    """The HDF5 files at a path: itself, or those in the directory, by the numbers in their names."""
    if path.is_file():
        return [path]
    files = [file for file in path.iterdir() if file.suffix in (".hdf5", ".h5")] if path.is_dir() else []
    return sorted(files, key=lambda file: [int(part) if part.isdecimal() else part for part in _PARTS.split(file.name)])


def holds_flat(path: Path) -> bool:
    """Whether the HDF5 file, or the first of a directory, has all steps in a row, with their types."""
    files = hdf5_files(path)
    if not files or files[0].suffix == ".npz":
        return False
    with open_file(files[0]) as file, reading(files[0]):
        return {"observation", "action", "reward", "step_type"} <= set(file)


def _columns(handle: FileHandle) -> dict[str, NDArray[Any]]:
    """The small arrays of one file, whole, each with a row for each frame."""
    path, file, frames = handle.path, handle.open(), handle.dataset("observation")
    if frames.dtype != np.uint8 or frames.ndim != 4 or 3 not in (frames.shape[1], frames.shape[3]):
        raise DataError(path, key="observation", expected="uint8 (N, 3, H, W)", found=f"{frames.dtype} {frames.shape}")
    count = len(frames)
    check_stored(path, frames, count, key="observation")
    optional = ("discount",) if has_member(path, file, "discount") else ()
    columns = {key: _column(handle, key, count) for key in ("action", "reward", "step_type", *optional)}
    if columns["action"].ndim != 2 or not count:
        raise DataError(path, key="action", expected="(N, A), at least one row", found=str(columns["action"].shape))
    return columns


def _column(handle: FileHandle, key: str, count: int) -> NDArray[Any]:
    dataset: h5py.Dataset = handle.dataset(key)
    if not dataset.ndim or dataset.dtype.kind not in "biuf" or len(dataset) != count:
        found = f"{dataset.dtype} {dataset.shape}"
        raise DataError(handle.path, key=key, expected=f"numbers of {count} rows", found=found)
    check_stored(handle.path, dataset, count, key=key)
    return read(handle.path, dataset, slice(0, count), key=key)


def _check_alike(handles: Sequence[FileHandle], tables: Sequence[Mapping[str, NDArray[Any]]]) -> None:
    """Raise DataError unless all shards have the arrays of the first, with rows of its shapes."""
    first = {key: array.shape[1:] for key, array in tables[0].items()}
    for handle, table in zip(handles, tables, strict=True):
        shapes = {key: array.shape[1:] for key, array in table.items()}
        if shapes != first:
            key = min(key for key in {*first, *shapes} if first.get(key) != shapes.get(key))
            expected = f"rows of shape {first[key]}, as in {handles[0].path.name}" if key in first else "none"
            found = str(shapes[key]) if key in shapes else "none"
            raise DataError(handle.path, key=key, expected=expected, found=found)
