"""Reader of HDF5 files with a group for each episode and frames below it: Minari's and robomimic's.

Minari (main_data.hdf5): ``episode_i`` {observations (T + 1, H, W, 3) or a group of them, actions, rewards,
terminations, truncations}. Frames of 32 x 32 and more are JPEG pictures there, as Minari 0.5.4 writes them: rows of
bytes, each of its own length or all of one. robomimic: ``data/demo_i`` {obs/NAME_image, actions, rewards, dones},
whose dones mark success as well as the end, so that they are taken for time limits.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from aime.data.checked_hdf5 import FileHandle, check_stored, has_member, member, open_file, read, reading
from aime.data.decoded import DecodedSource, channels_first, checked_steps, named_in, spec_of
from aime.data.errors import DataError
from aime.data.picture import picture

JPEG = b"\xff\xd8\xff"  # how one begins
_MINARI, _ROBOMIMIC = re.compile(r"episode_([0-9]{1,12})"), re.compile(r"demo_([0-9]{1,12})")


def minari_file(path: Path) -> Path | None:
    """The HDF5 file of a Minari data set: of its directory, of the data directory in it, or itself."""
    places = [path] if path.is_file() else [path / "data" / "main_data.hdf5", path / "main_data.hdf5"]
    return next((place for place in places if place.is_file() and place.name == "main_data.hdf5"), None)


def is_robomimic(path: Path) -> bool:
    """Whether a file has groups data/demo_0, data/demo_1, ..."""
    if not path.is_file():
        return False
    with open_file(path) as file, reading(path):
        return isinstance(file.get("data", getlink=True), h5py.HardLink) and any(
            map(_ROBOMIMIC.fullmatch, file["data"])
        )


class NestedHDF5Source(DecodedSource):
    """Episodes of a Minari or robomimic file.

    Args:
        path: the file.
        frames: name below the episode's group where the frames lie; by default the first (by name) of their shape.

    Raises:
        DataError: naming the file, the episode and the key.
    """

    def __init__(self, path: Path, *, frames: str | None = None) -> None:
        self._handle = FileHandle(path)
        file = self._handle.open()
        minari = not has_member(path, file, "data")
        parent = file if minari else member(path, file, "data", h5py.Group, expected="a group of episodes")
        pattern = _MINARI if minari else _ROBOMIMIC
        with reading(path):
            numbered = {int(match[1]): name for name in parent if (match := pattern.fullmatch(name))}
        if not numbered:
            raise DataError(path, expected="groups episode_0, ... or data/demo_0, ...", found="none")
        self._names = [("" if minari else "data/") + numbered[number] for number in sorted(numbered)]
        groups = [
            member(path, parent, numbered[number], h5py.Group, expected="a group of one episode")
            for number in sorted(numbered)
        ]
        self._key = frames or self._find_frames(groups[0], "observations" if minari else "obs")
        actions = self._numbers(groups[0], 0, "actions")
        if actions.ndim != 2:
            raise DataError(path, episode=0, key="actions", expected="(T, A)", found=str(actions.shape))
        known = named_in(path.absolute())
        spec = spec_of(path, self._pictures(0, 1), actions.shape[1], **known)
        steps = []
        for episode, group in enumerate(groups):
            actions, rewards = (self._numbers(group, episode, key) for key in ("actions", "rewards"))
            ends = has_member(path, group, "terminations")
            continues = 1.0 - self._numbers(group, episode, "terminations") if ends else np.ones(len(actions))
            values = {"actions": actions, "rewards": rewards, "continues": continues}
            steps.append(checked_steps(path, episode, spec, values))
            dataset = self._dataset(episode)
            check_stored(path, dataset, len(actions), episode=episode, key=self._key)
        super().__init__(path, spec, steps)

    def _decode(self, episode: int) -> NDArray[np.uint8]:
        return self._pictures(episode, int(self.lengths[episode]))

    def _pictures(self, episode: int, count: int) -> NDArray[np.uint8]:
        path, dataset = self._handle.path, self._dataset(episode)
        check_stored(path, dataset, count, episode=episode, key=self._key)
        rows = read(path, dataset, slice(0, count), episode=episode, key=self._key)
        if not _holds_pictures(dataset):
            return channels_first(path, rows, episode=episode)
        pictures = [picture(path, episode, step, bytes(row)) for step, row in enumerate(rows)]  # (3, H, W) each
        if sizes := {shown.shape for shown in pictures} - {pictures[0].shape}:
            expected = f"pictures of {pictures[0].shape}, as the first"
            raise DataError(path, episode=episode, key=self._key, expected=expected, found=str(min(sizes)))
        return np.stack(pictures)

    def _dataset(self, episode: int) -> h5py.Dataset:
        return self._handle.dataset(f"{self._names[episode]}/{self._key}", episode=episode)

    def _find_frames(self, group: h5py.Group, name: str) -> str:
        """The name of the first dataset at or below ``name`` whose shape is that of frames."""
        path = self._handle.path
        with reading(path, episode=0, key=name):
            item = group.get(name)
            candidates = {name: item}
            if isinstance(item, h5py.Group):
                candidates = {f"{name}/{key}": item[key] for key in sorted(item)}
            for key, dataset in candidates.items():
                if isinstance(dataset, h5py.Dataset) and (
                    (dataset.dtype == np.uint8 and dataset.ndim == 4) or _holds_pictures(dataset)
                ):
                    return key
            found = ", ".join(candidates)
        raise DataError(
            path,
            episode=0,
            key=name,
            expected="frames, uint8 (T, H, W, 3), (T, 3, H, W) or JPEG",
            found=f"none in {found}",
        )

    def _numbers(self, group: h5py.Group, episode: int, key: str) -> NDArray[Any]:
        path = self._handle.path
        dataset = member(path, group, key, h5py.Dataset, expected="a dataset", episode=episode)
        if not dataset.ndim or dataset.dtype.kind not in "biuf":
            raise DataError(
                path, episode=episode, key=key, expected="numbers (T, ...)", found=f"{dataset.dtype} {dataset.shape}"
            )
        check_stored(path, dataset, len(dataset), episode=episode, key=key)
        return read(path, dataset, slice(0, len(dataset)), episode=episode, key=key)


def _holds_pictures(dataset: h5py.Dataset) -> bool:
    """Whether each row of a dataset is a JPEG picture."""
    of_bytes = (dataset.ndim == 1 and h5py.check_vlen_dtype(dataset.dtype) == np.uint8) or (
        dataset.ndim == 2 and dataset.dtype == np.uint8
    )
    return bool(of_bytes and len(dataset) and bytes(dataset[0][:3]) == JPEG)
