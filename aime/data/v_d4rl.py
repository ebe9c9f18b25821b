"""Reader of V-D4RL (Lu et al. 2023): npz episodes at 64 x 64, or HDF5 with all steps in a row at 84 x 84.

Row t of an episode holds the frame and the action, reward and discount that led to it; those of row 0 mean nothing. So
an episode of T rows has T - 1 steps: action and reward t are those of row t + 1.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from aime.data.checked_hdf5 import FileHandle, check_stored, has_member, read
from aime.data.decoded import DecodedSource, Steps, channels_first, checked_steps, named_in, spec_of
from aime.data.errors import DataError

NPZ_ERRORS = (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)
LARGEST_ARRAY = 1 << 32  # bytes
FRAME_KEYS = ("image", "observation")


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

    def _decode(self, episode: int) -> NDArray[np.uint8]:
        file = self._files[episode]
        return channels_first(file, read_array(file, self._key, episode=episode), episode=episode)


class VD4RLHDF5Source(DecodedSource):
    """One HDF5 file {observation (N, 3, H, W), action, reward, discount, step_type} of episodes in a row.

    Raises:
        DataError: naming the file and the dataset.
    """

    def __init__(self, path: Path) -> None:
        self._handle = FileHandle(path)
        file = self._handle.open()
        frames = self._handle.dataset("observation")
        if frames.dtype != np.uint8 or frames.ndim != 4 or 3 not in (frames.shape[1], frames.shape[3]):
            raise DataError(
                path, key="observation", expected="uint8 (N, 3, H, W)", found=f"{frames.dtype} {frames.shape}"
            )
        count = len(frames)
        check_stored(path, frames, count, key="observation")
        columns = {key: self._column(key, count) for key in ("action", "reward", "step_type")}
        if has_member(path, file, "discount"):
            columns["discount"] = self._column("discount", count)
        starts = np.flatnonzero(columns.pop("step_type").reshape(-1) == 0)
        if not len(starts) or starts[0] != 0:
            raise DataError(path, key="step_type", expected="0 at the first row of each episode", found="none at row 0")
        self._rows = list(zip(starts.tolist(), [*starts[1:].tolist(), count], strict=True))
        if columns["action"].ndim != 2:
            raise DataError(path, key="action", expected="(N, A)", found=str(columns["action"].shape))
        first = channels_first(path, read(path, frames, slice(0, 1), key="observation"), episode=0)
        spec = spec_of(path, first, columns["action"].shape[1], **named_in(path.absolute()))
        steps: list[Steps] = []
        for episode, (start, end) in enumerate(self._rows):
            values = shifted_steps(path, episode, {key: array[start:end] for key, array in columns.items()})
            steps.append(checked_steps(path, episode, spec, values))
        super().__init__(path, spec, steps)

    def _column(self, key: str, count: int) -> NDArray[Any]:
        dataset: h5py.Dataset = self._handle.dataset(key)
        if not dataset.ndim or dataset.dtype.kind not in "biuf" or len(dataset) != count:
            raise DataError(
                self._handle.path,
                key=key,
                expected=f"numbers of {count} rows",
                found=f"{dataset.dtype} {dataset.shape}",
            )
        check_stored(self._handle.path, dataset, count, key=key)
        return read(self._handle.path, dataset, slice(0, count), key=key)

    def _decode(self, episode: int) -> NDArray[np.uint8]:
        rows = slice(*self._rows[episode])
        frames = read(self._handle.path, self._handle.dataset("observation"), rows, episode=episode, key="observation")
        return channels_first(self._handle.path, frames, episode=episode)
