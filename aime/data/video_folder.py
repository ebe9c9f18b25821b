"""Reader of a folder of videos with tables of actions.

A table is CSV with a header: columns whose names begin with ``action`` are the entries of an action, in their order,
``reward`` is optional (0 where there is none), and ``terminated`` is 1 in the row after which the episode was over for
good; other columns are left alone. Row t is what followed frame t of the video, which has as many frames as the table
has rows, or one more. There is a table beside each video (``one.mp4``, ``one.csv``), or one for all, ``actions.csv``,
with a column ``video`` of their names.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aime.data.decoded import DecodedSource, checked_steps, named_in, spec_of
from aime.data.errors import DataError
from aime.data.video import is_video, read_all

ONE_TABLE = "actions.csv"
LARGEST_TABLE = 1 << 30  # bytes


def video_files(path: Path) -> list[Path]:
    """The videos in a directory that holds tables too, by name; [] where there are none."""
    if not path.is_dir():
        return []
    files = sorted(entry for entry in path.iterdir() if is_video(entry))
    return files if _tables_in(path) else []


def _tables_in(path: Path) -> list[str]:
    """Names of the tables in a directory, whatever they are called: those that belong to no video are told as such."""
    return sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() == ".csv")


class VideoFolderSource(DecodedSource):
    """A directory of videos, one an episode, with the actions taken in them.

    Raises:
        DataError: naming the file and its line or frame.
        ImportError: PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._files, steps = video_files(path), []
        tables = _tables(path, self._files)
        spec = None
        for episode, file in enumerate(self._files):
            table, columns, actions = tables[file.name]
            if spec is None:
                frame = read_all(file, episode=episode, most=1)
                spec = spec_of(path, frame, actions, **named_in(path.absolute()))
            values = {
                "actions": columns[:, :actions],
                "rewards": columns[:, actions],
                "continues": 1.0 - columns[:, actions + 1],
            }
            steps.append(checked_steps(table, episode, spec, values))
        assert spec is not None
        super().__init__(path, spec, steps)

    def _place(self, episode: int) -> Path:
        return self._files[episode]

    def _decode(self, episode: int) -> NDArray[np.uint8]:
        file, length = self._files[episode], int(self.lengths[episode])
        frames = read_all(file, episode=episode, most=length + 2)
        if len(frames) not in (length, length + 1):
            expected = f"{length} or {length + 1} frames, as its table has {length} rows"
            found = str(len(frames)) if len(frames) < length else f"at least {len(frames)}"
            raise DataError(file, episode=episode, key="video", expected=expected, found=found)
        return frames


#: file of the table, columns (N, A + 2) of actions, reward and terminated, and A
Table = tuple[Path, NDArray[np.float64], int]


def _tables(path: Path, files: Sequence[Path]) -> dict[str, Table]:
    """The table of each video by the video's name."""
    single = path / ONE_TABLE
    if single.is_file():
        names = {name: file.name for file in files for name in (file.stem, file.name)}
        rows: dict[str, list[list[float]]] = {file.name: [] for file in files}
        width = 0
        for line, name, values in _rows(single, named=True):
            if name not in names:
                raise DataError(
                    single, key=f"line {line}, column video", expected="the name of a video beside it", found=repr(name)
                )
            rows[names[name]].append(values)
            width = len(values)
        for name, found in rows.items():
            if not found:
                raise DataError(single, expected=f"rows of {name}", found="none")
        return {name: (single, np.array(found), width - 2) for name, found in rows.items()}
    tables: dict[str, Table] = {}
    for episode, file in enumerate(files):
        table = file.with_suffix(".csv")
        if not table.is_file():
            expected = f"a table {table.name} or {ONE_TABLE} beside it"
            raise DataError(file, episode=episode, expected=expected, found=", ".join(_tables_in(path)[:8]) or "none")
        listed = [row for _, _, row in _rows(table, named=False)]
        if not listed:
            raise DataError(table, episode=episode, expected="at least one row below the header", found="none")
        tables[file.name] = (table, np.array(listed), len(listed[0]) - 2)
    return tables


def _rows(table: Path, *, named: bool) -> Iterator[tuple[int, str, list[float]]]:
    """Line, name of the video and values (actions, reward, terminated) of each row."""
    try:
        if table.stat().st_size > LARGEST_TABLE:
            raise DataError(table, expected=f"a table of at most {LARGEST_TABLE} bytes", found="a larger one")
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            places = _places(table, header, named=named)
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    expected = f"{len(header)} entries, as in the header"
                    raise DataError(table, key=f"line {reader.line_num}", expected=expected, found=str(len(row)))
                values = [_number(table, reader.line_num, header, row, place) for place in places]
                yield reader.line_num, row[header.index("video")].strip() if named else "", values
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(table, expected="a readable CSV table", found=str(error)) from error


def _places(table: Path, header: Sequence[str], *, named: bool) -> list[int | None]:
    """Where actions, reward and terminated stand in a row; None for one that is 0."""
    actions = [place for place, name in enumerate(header) if name.startswith("action")]
    missing = [] if actions else ["columns whose names begin with action (action_0, action_1, ...)"]
    missing += ["a column video"] if named and "video" not in header else []
    if missing or len(set(header)) != len(header):
        expected = " and ".join(missing) or "different names"
        raise DataError(table, key="line 1", expected=expected, found=", ".join(header) or "no header")
    optional = [header.index(name) if name in header else None for name in ("reward", "terminated")]
    return [*actions, *optional]


def _number(table: Path, line: int, header: Sequence[str], row: Sequence[str], place: int | None) -> float:
    if place is None:
        return 0.0
    try:
        return float(row[place])
    except ValueError as error:
        key = f"line {line}, column {header[place]}"
        raise DataError(table, key=key, expected="a number", found=repr(row[place])) from error
