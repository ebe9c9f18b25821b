"""Reader of a collection that has not finished: the directory ``NAME.h5.partial`` with one whole file per episode."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import deque
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from aime.data.errors import DataError
from aime.data.hdf5 import HDF5Source
from aime.data.source import check_window
from aime.data.spec import EpisodeSpec
from aime.data.window import Window

SUFFIX = ".partial"
OPEN_FILES = 16  # segments kept open for reading
_SEGMENT = re.compile(r"episode_([0-9]{6,12})\.h5")


def segment_name(episode: int) -> str:
    """The name of an episode's file within the directory."""
    return f"episode_{episode:06d}.h5"


def is_segment(name: str) -> bool:
    """Whether a file of this name holds an episode."""
    return _SEGMENT.fullmatch(name) is not None


def segment_files(directory: Path) -> list[Path]:
    """The episodes' files in order.

    Raises:
        DataError: the directory cannot be read, there are none, or one is missing.
    """
    try:
        names = {entry.name for entry in os.scandir(directory) if is_segment(entry.name)}
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(
            directory, expected="a readable directory of episodes", found=error.strerror or str(error)
        ) from error
    files = [directory / segment_name(episode) for episode in range(len(names))]
    if not files:
        raise DataError(directory, expected="at least one whole episode", found="none")
    missing = next((file.name for file in files if file.name not in names), None)
    if missing is not None:
        raise DataError(directory, expected=f"{missing} among its {len(names)} episodes", found="none of that name")
    return files


class SegmentSource:
    """Episodes of a collection in progress or one that was killed: those that were whole when this was opened.

    When the collection finishes meanwhile, its finished file is read instead.

    Args:
        path: the directory.
        body_masks: read masks and ids of bodies where they are stored.
        physics: read the physics state where it is stored.

    Raises:
        DataError: naming the file, what was expected and what was found.
    """

    def __init__(self, path: str | Path, *, body_masks: bool = True, physics: bool = True) -> None:
        self.path = Path(path).absolute()
        self._body_masks, self._physics = body_masks, physics
        self._joined: HDF5Source | None = None
        self._open: deque[HDF5Source] = deque()
        self._segments = [self._segment(file) for file in segment_files(self.path)]
        first = self._segments[0]
        self.spec: EpisodeSpec = first.spec
        self.complete, self.splits = False, None
        self.has_body_masks, self.has_body_ids = first.has_body_masks, first.has_body_ids
        self.has_physics = first.has_physics
        for segment in self._segments[1:]:
            # on which displays frames are drawn is known only after the first
            if dataclasses.replace(segment.spec, renderer_details=self.spec.renderer_details) != self.spec:
                raise DataError(segment.path, key="spec", expected=f"that of {first.path.name}", found="another")
            if segment.has_body_masks != self.has_body_masks or segment.has_physics != self.has_physics:
                raise DataError(segment.path, expected=f"the arrays of {first.path.name}", found="others")
        self.rows: NDArray[np.void] = np.concatenate([segment.rows for segment in self._segments])
        self.lengths: NDArray[np.int64] = self.rows["length"].astype(np.int64)

    def window(self, episode: int, start: int, length: int) -> Window:
        """Steps ``start`` to ``start + length - 1`` of an episode."""
        check_window(self, episode, start, length)
        if self._joined is None:
            try:
                return dataclasses.replace(self._kept_open(episode).window(0, start, length), episode=episode)
            except FileNotFoundError:
                self._joined = self._finished(episode)
        return self._joined.window(episode, start, length)

    def physics(self, episode: int) -> NDArray[np.float64]:
        """(N, nq + nv) float64 physics states of a whole episode, as recorded: enough to replay it."""
        if self._joined is None:
            try:
                return self._kept_open(episode).physics(0)
            except FileNotFoundError:
                self._joined = self._finished(episode)
        return self._joined.physics(episode)

    def policy_parameters(self, episode: int) -> dict[str, float]:
        """The parameters with which the policy played an episode, by name."""
        return self._segments[episode].policy_parameters(0)

    def close(self) -> None:
        """Close all files; a later read opens them again."""
        for source in self._open if self._joined is None else (*self._open, self._joined):
            source.close()
        self._open.clear()

    def _segment(self, file: Path) -> HDF5Source:
        if file.is_symlink():
            raise DataError(file, expected="a file", found="a link")
        try:
            segment = HDF5Source(file, body_masks=self._body_masks, physics=self._physics)
        except FileNotFoundError:
            self._refuse_vanished(file)
        segment.close()
        if len(segment.rows) != 1 or not segment.complete:
            raise DataError(file, key="episodes", expected="one whole episode", found=f"{len(segment.rows)}")
        return segment

    def _refuse_vanished(self, file: Path) -> NoReturn:
        final = self.path.with_name(self.path.name.removesuffix(SUFFIX))
        found = f"it gone; the collection finished: open {final}" if final.is_file() else "it gone"
        raise DataError(file, expected="the file of an episode", found=found) from None

    def _kept_open(self, episode: int) -> HDF5Source:
        segment = self._segments[episode]
        if segment not in self._open:
            self._open.append(segment)
            if len(self._open) > OPEN_FILES:
                self._open.popleft().close()
        return segment

    def _finished(self, episode: int) -> HDF5Source:
        """The finished file of this same collection, where there is one."""
        final = self.path.with_name(self.path.name.removesuffix(SUFFIX))
        if not final.is_file() or final == self.path:
            self._refuse_vanished(self._segments[episode].path)
        joined = HDF5Source(final, body_masks=self._body_masks, physics=self._physics)
        names = ["length", "seed", "reset_index"]
        if not np.array_equal(joined.rows[: len(self.rows)][names], self.rows[names]):
            raise DataError(final, key="episodes", expected=f"the episodes of {self.path}", found="others")
        return joined
