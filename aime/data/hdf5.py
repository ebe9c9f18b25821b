"""Reader of the project's own episode file; `aime.data.hdf5_writer` documents the layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from aime.data.errors import DataError
from aime.data.source import check_window
from aime.data.spec import EpisodeSpec
from aime.data.splits import SPLITS, check_disjoint
from aime.data.window import Window

FORMAT = "aime-episodes"
SCHEMA_VERSION = 1
EPISODE_ROW = np.dtype([("offset", "i8"), ("length", "i8"), ("seed", "i8"), ("reset_index", "i8")])


def open_file(path: str | Path) -> h5py.File:
    """Open an HDF5 file for reading, also one that its writer has not closed (still writing, or killed).

    Raises:
        DataError: not an HDF5 file, or truncated.
    """
    try:
        if _has_open_writer(path):
            return h5py.File(path, "r", libver="latest", swmr=True)
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(path, expected="a readable HDF5 file", found=str(error)) from error


def _has_open_writer(path: str | Path) -> bool:
    """Whether the superblock (HDF5 file format, section II.A, version 3) carries a writer's mark.

    Such a file opens in single-writer-multiple-reader mode only. The mode must not be tried on other files, nor on a
    truncated one: there the library waits, with doubling pauses, for a writer to complete what is missing.
    """
    with Path(path).open("rb") as file:
        head = file.read(36)
    if len(head) < 36 or head[:8] != b"\x89HDF\r\n\x1a\n" or head[8] < 3 or not head[11] & 1:
        return False
    size, end = Path(path).stat().st_size, int.from_bytes(head[28:36], "little")
    if size < end:
        raise DataError(path, expected=f"an HDF5 file of {end} bytes, as its header says", found=f"{size}: truncated")
    return True


class HDF5Source:
    """Episodes of one file, finished or ``.partial``.

    Actions, rewards and continues are held in memory (they are small), frames, masks and physics are read per window.
    Pickles by path, and reopens its file in a forked process.

    Args:
        path: the file.
        body_masks: read masks where the file has them.
        physics: read the physics state where the file has it.

    Raises:
        DataError: naming the file, the episode, the key, what was expected and what was found.
    """

    def __init__(self, path: str | Path, *, body_masks: bool = True, physics: bool = True) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._owner = 0
        file = self._open()
        if file.attrs.get("format") != FORMAT:
            raise DataError(self.path, key="format", expected=repr(FORMAT), found=repr(file.attrs.get("format")))
        version = int(file.attrs["schema_version"])
        if version != SCHEMA_VERSION:
            raise DataError(self.path, key="schema_version", expected=str(SCHEMA_VERSION), found=str(version))
        self.spec = EpisodeSpec.from_json(file.attrs["spec"])
        self.complete = bool(file.attrs["complete"])
        self.has_body_masks = body_masks and "body_masks" in file
        self.has_physics = physics and "physics" in file
        self._check_datasets(file)
        self.rows: NDArray[np.void] = self._complete_rows(file["episodes"][:])
        self.lengths: NDArray[np.int64] = self.rows["length"].astype(np.int64)
        self._actions: NDArray[np.float32] = file["actions"][:]
        self._rewards: NDArray[np.float32] = file["rewards"][:]
        self._continues: NDArray[np.float32] = file["continues"][:]
        self._check_values()
        self.splits = self._read_splits(file)

    def window(self, episode: int, start: int, length: int) -> Window:
        """Steps ``start`` to ``start + length - 1`` of an episode."""
        check_window(self, episode, start, length)
        file = self._open()
        begin = int(self.rows["offset"][episode]) + start
        steps = slice(begin, begin + length)
        masks = None
        try:
            observations = file["observations"][steps]
            if self.has_body_masks:
                packed = file["body_masks"][steps]  # (T, H, ceil(W / 8))
                masks = np.unpackbits(packed, axis=-1, count=self.spec.image_shape[2]).astype(np.bool_)
            physics = file["physics"][steps].astype(np.float32) if self.has_physics else None
        except OSError as error:
            raise DataError(
                self.path, episode=episode, key="observations", expected="readable frames", found=str(error)
            ) from error
        return Window(
            observations=observations,
            actions=self._actions[steps],
            rewards=self._rewards[steps],
            continues=self._continues[steps],
            body_masks=masks,
            physics=physics,
            episode=episode,
            start=start,
        )

    def physics(self, episode: int) -> NDArray[np.float64]:
        """(N, nq + nv) float64 physics states of a whole episode, as recorded: enough to replay it."""
        if "physics" not in self._open():
            raise DataError(self.path, episode=episode, key="physics", expected="a stored physics state", found="none")
        row = self.rows[episode]
        states: NDArray[np.float64] = self._open()["physics"][int(row["offset"]) : int(row["offset"] + row["length"])]
        return states

    def policy_parameters(self, episode: int) -> dict[str, float]:
        """The parameters with which the policy played an episode, by name."""
        if not self.spec.policy_parameters:
            return {}
        values = self._open()["policy_parameters"][episode]
        return {name: float(value) for name, value in zip(self.spec.policy_parameters, values, strict=True)}

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

    def _check_datasets(self, file: h5py.File) -> None:
        spec = self.spec
        channels, height, width = spec.image_shape
        wanted = {
            "observations": ((channels, height, width), "uint8"),
            "actions": ((spec.action_size,), "float32"),
            "rewards": ((), "float32"),
            "continues": ((), "float32"),
        }
        if self.has_body_masks:
            wanted["body_masks"] = ((height, -(-width // 8)), "uint8")
        if self.has_physics:
            wanted["physics"] = ((spec.physics_size,), "float64")
        for key, (shape, dtype) in wanted.items():
            expected = f"{dtype} (N, {', '.join(map(str, shape))})" if shape else f"{dtype} (N,)"
            if key not in file:
                raise DataError(self.path, key=key, expected=expected, found="nothing")
            dataset = file[key]
            if dataset.shape[1:] != shape or dataset.dtype != np.dtype(dtype):
                raise DataError(self.path, key=key, expected=expected, found=f"{dataset.dtype} {dataset.shape}")
        if "episodes" not in file:
            raise DataError(self.path, key="episodes", expected="a table of episodes", found="nothing")

    def _complete_rows(self, rows: NDArray[np.void]) -> NDArray[np.void]:
        """Rows of whole episodes; in a partial file the last may be missing its steps, in a complete one never."""
        file = self._open()
        steps = min(len(file[key]) for key in ("observations", "actions", "rewards", "continues"))
        whole = (rows["length"] > 0) & (rows["offset"] + rows["length"] <= steps)
        if self.complete and not whole.all():
            bad = int(np.argmin(whole))
            row = rows[bad]
            raise DataError(
                self.path,
                episode=bad,
                key="episodes",
                expected=f"steps {row['offset']} to {row['offset'] + row['length']}",
                found=f"arrays of {steps} steps",
            )
        rows = rows[: len(rows) if whole.all() else int(np.argmin(whole))]
        if not len(rows):
            raise DataError(self.path, key="episodes", expected="at least one whole episode", found="none")
        return rows

    def _check_values(self) -> None:
        for key, array in (("actions", self._actions), ("rewards", self._rewards), ("continues", self._continues)):
            if np.isfinite(array).all():
                continue
            for episode, row in enumerate(self.rows):
                values = array[int(row["offset"]) : int(row["offset"] + row["length"])]
                if not np.isfinite(values).all():
                    step = int(np.argwhere(~np.isfinite(values))[0, 0])
                    raise DataError(
                        self.path,
                        episode=episode,
                        key=key,
                        expected="finite values",
                        found=f"{values[step]} at step {step}",
                    )

    def _read_splits(self, file: h5py.File) -> dict[str, NDArray[np.int64]] | None:
        if "splits" not in file:
            return None
        splits = {name: np.asarray(file[f"splits/{name}"][:], np.int64) for name in SPLITS}
        check_disjoint(self.path, splits)
        return splits
