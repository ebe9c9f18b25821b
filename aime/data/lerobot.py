"""Reader of LeRobot data sets of version 3.0: Parquet tables of many episodes, and videos or pictures beside them.

    meta/info.json                                     version, frames a second, features
    meta/episodes/chunk-000/file-000.parquet           a row an episode: its length, its files, its time in the videos
    meta/tasks.parquet                                 tasks in words
    data/chunk-000/file-000.parquet                    a row a frame: action, next.reward, timestamp, episode_index, ...
    videos/KEY/chunk-000/file-000.mp4                  frames of several episodes, one after the other

Row t holds frame t, the action taken after it and, as ``next.reward``, what followed. ``next.done`` marks the end of an
episode, be it success or the time limit, so that ends are taken for time limits. pyarrow reads the tables and PyAV the
videos; both come with the extra ``lerobot``, LeRobot itself is not needed.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aime.data.decoded import DecodedSource, checked_steps, named_in, spec_of
from aime.data.errors import DataError
from aime.data.picture import picture
from aime.data.video import read_times

INFO = "meta/info.json"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
LARGEST_INFO = 1 << 24  # bytes
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def is_lerobot(path: Path) -> bool:
    """Whether a directory holds meta/info.json with a version of LeRobot's code base."""
    file = path / INFO
    return file.is_file() and b'"codebase_version"' in file.read_bytes()[:LARGEST_INFO]


class LeRobotSource(DecodedSource):
    """Episodes of a LeRobot data set of version 3.0.

    Args:
        path: its directory.
        frames: the feature of pictures in colour to read; by default the first by name. Depth maps are none.

    Raises:
        DataError: naming the file, the episode and the column.
        ImportError: pyarrow or PyAV is not installed.
    """

    def __init__(self, path: Path, *, frames: str | None = None) -> None:
        self._root = path
        features, self._fps = _read_info(path / INFO)
        kinds = {name: feature.get("dtype") for name, feature in features.items() if isinstance(feature, dict)}
        pictures = sorted(
            name for name, kind in kinds.items() if kind in ("video", "image") and not _is_depth(features[name])
        )
        self._key = frames or (pictures[0] if pictures else "")
        if self._key not in pictures or not _KEY.fullmatch(self._key):
            wanted = f"a feature of pictures, {frames}" if frames else "a feature of dtype video or image"
            expected = f"{wanted}, no depth map"
            raise DataError(path / INFO, key="features", expected=expected, found=", ".join(pictures) or "none")
        self._in_videos = kinds[self._key] == "video"
        self._episodes = self._read_episodes()
        self._tables: dict[Path, dict[str, NDArray[Any]]] = {}
        spec, steps = None, []
        for episode in range(len(self._episodes)):
            values, file = self._values(episode)
            if spec is None:
                if values["actions"].ndim != 2:
                    raise DataError(file, key="action", expected="(N, A)", found=str(values["actions"].shape))
                first = self._pictures(0, 1)
                spec = spec_of(path, first, values["actions"].shape[1], **named_in(path.absolute()))
            steps.append(checked_steps(file, episode, spec, values))
        assert spec is not None
        super().__init__(path, spec, steps)

    def _decode(self, episode: int) -> NDArray[np.uint8]:
        return self._pictures(episode, int(self.lengths[episode]))

    def _read_episodes(self) -> list[dict[str, Any]]:
        """A row an episode, in the order of their numbers."""
        files = sorted((self._root / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
        columns: dict[str, type[int | float]] = {
            "episode_index": int,
            "length": int,
            "data/chunk_index": int,
            "data/file_index": int,
        }
        if self._in_videos:
            columns |= {f"videos/{self._key}/{name}": int for name in ("chunk_index", "file_index")}
            columns[f"videos/{self._key}/from_timestamp"] = float
        rows: list[dict[str, Any]] = []
        for file in files:
            table = read_table(file, list(columns))
            rows.extend(
                {name: kind(value) for (name, kind), value in zip(columns.items(), row, strict=True)}
                for row in zip(*(table[name].tolist() for name in columns), strict=True)
            )
        rows.sort(key=lambda row: row["episode_index"])
        if not rows or [row["episode_index"] for row in rows] != list(range(len(rows))):
            raise DataError(
                self._root / "meta" / "episodes",
                key="episode_index",
                expected="Parquet files of the episodes 0, 1, ...",
                found=", ".join(str(row["episode_index"]) for row in rows[:8]) or "none",
            )
        for episode, row in enumerate(rows):
            bad = next((name for name, kind in columns.items() if kind is int and row[name] < 0), None)
            if bad is not None or row["length"] < 1:
                name = bad or "length"
                raise DataError(
                    files[0],
                    episode=episode,
                    key=name,
                    expected="a number of at least 0, a length of at least 1",
                    found=str(row[name]),
                )
        return rows

    def _values(self, episode: int) -> tuple[dict[str, NDArray[Any]], Path]:
        """Actions, rewards and continues of an episode, and the file that holds them."""
        row = self._episodes[episode]
        file = self._root / DATA_PATH.format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        if file not in self._tables:  # episodes follow each other in a file: the last one is enough
            self._tables = {file: read_table(file, ["action", "episode_index", "timestamp"], ["next.reward"])}
        table = self._tables[file]
        mine = np.flatnonzero(table["episode_index"] == episode)
        if len(mine) != row["length"]:
            expected = f"{row['length']} rows, as meta/episodes says"
            raise DataError(file, episode=episode, key="episode_index", expected=expected, found=str(len(mine)))
        times = table["timestamp"][mine].astype(np.float64)
        if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
            raise DataError(file, episode=episode, key="timestamp", expected="rising seconds", found="others")
        row["times"], row["rows"] = times, mine
        actions, rewards = table["action"][mine], table.get("next.reward")
        values = {
            "actions": actions[:, None] if actions.ndim == 1 else actions,
            "rewards": np.zeros(len(mine)) if rewards is None else rewards[mine].reshape(len(mine)),
            "continues": np.ones(len(mine)),
        }
        return values, file

    def _pictures(self, episode: int, count: int) -> NDArray[np.uint8]:
        """(count, 3, H, W)."""
        row = self._episodes[episode]
        if self._in_videos:
            place = {name: row[f"videos/{self._key}/{name}"] for name in ("chunk_index", "file_index")}
            file = self._root / VIDEO_PATH.format(video_key=self._key, **place)
            times = row["times"][:count] + row[f"videos/{self._key}/from_timestamp"]
            return read_times(file, times, tolerance=0.5 / self._fps, episode=episode)
        file = self._root / DATA_PATH.format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        column = read_column(file, self._key, lambda column: column.take(row["rows"][:count]).to_pylist())
        return np.stack([picture(file, episode, step, value) for step, value in enumerate(column)])


def _is_depth(feature: Mapping[str, Any]) -> bool:
    """Whether a feature of pictures holds distances, by either name that LeRobot has given to the mark."""
    notes = [feature.get(name) for name in ("info", "video_info")]
    marks = ("is_depth_map", "video.is_depth_map")
    return any(bool(note.get(mark)) for note in notes if isinstance(note, dict) for mark in marks)


def _read_info(file: Path) -> tuple[Mapping[str, Any], float]:
    """Features and frames a second of a data set.

    Raises:
        DataError: not the JSON of a data set, or of another version or layout.
    """
    try:
        info = json.loads(file.read_bytes()[:LARGEST_INFO])
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(file, expected="the JSON of a LeRobot data set", found=str(error)) from error
    info = info if isinstance(info, dict) else {}
    version = info.get("codebase_version")
    if not isinstance(version, str) or not re.fullmatch(r"v3\.[0-9]+", version):
        expected = "v3.0 (LeRobot converts older data sets to it)"
        raise DataError(file, key="codebase_version", expected=expected, found=repr(version))
    for key, wanted in (("data_path", DATA_PATH), ("video_path", VIDEO_PATH)):
        if info.get(key, wanted) not in (wanted, None):
            raise DataError(file, key=key, expected=repr(wanted), found=repr(info[key]))
    fps, features = info.get("fps"), info.get("features")
    if not isinstance(fps, (int, float)) or not 0 < fps <= 1e6:
        raise DataError(file, key="fps", expected="a positive number", found=repr(fps))
    if not isinstance(features, dict):
        raise DataError(file, key="features", expected="an object", found=type(features).__name__)
    return features, float(fps)


def read_column(file: Path, name: str, take: Callable[[Any], Any], *, optional: bool = False) -> Any:
    """What `take` makes of one column of a Parquet file (a ChunkedArray); None where one that is optional is missing.

    Raises:
        DataError: the file or the column is missing or damaged.
    """
    parquet, arrow = importlib.import_module("pyarrow.parquet"), importlib.import_module("pyarrow")
    if not file.is_file():
        raise DataError(file, expected="a Parquet file", found="none")
    try:
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if name in names:
                return take(table.read(columns=[name]).column(name))
    except (arrow.ArrowException, OSError, ValueError, TypeError, LookupError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(file, key=name, expected="a readable column", found=reason) from error
    if not optional:
        raise DataError(file, key=name, expected="a column", found=f"only {', '.join(names)}")
    return None


def read_table(file: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Columns of numbers of a Parquet file, (N,) or (N, A), by name; those that are optional only where they are there.

    Raises:
        DataError: the file or a column is missing, damaged, or holds something else than numbers.
    """
    columns = {}
    for name in [*names, *optional]:
        array = read_column(file, name, _numbers, optional=name in optional)
        if array is None:
            continue
        if array.dtype.kind not in "biuf":
            raise DataError(file, key=name, expected="numbers in every row", found=str(array.dtype))
        columns[name] = array
    return columns


def _numbers(column: Any) -> NDArray[Any]:
    """(N,), or (N, A) of a column of lists; ValueError where they differ in length or entries are missing."""
    if column.null_count:
        raise ValueError(f"{column.null_count} entries are missing")
    array: NDArray[Any]
    types = importlib.import_module("pyarrow.types")
    kind = column.type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
        width = len(column[0]) if len(column) else 0
        lengths = importlib.import_module("pyarrow.compute").list_value_length(column).to_numpy()
        if len(flat) and (not width or (lengths != width).any()):
            raise ValueError(f"lists of different lengths, {lengths.min()} to {lengths.max()}")
        array = flat.reshape(len(column), width)
    else:
        array = column.to_numpy()
    return array
