"""Where metrics go: a JSON line per logged step always, TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from aime.files import naming, write_text
from aime.training.pictures import Pictures, encode_gif

Record = Mapping[str, float]


class MetricSink(Protocol):
    """A destination of metrics: one class with these two methods."""

    def write(self, step: int, record: Record) -> None:
        """Take one step's metrics."""
        ...

    def close(self) -> None:
        """Flush and release."""
        ...


@runtime_checkable
class FilmSink(Protocol):
    """A destination that shows films, too."""

    def show(self, step: int, pictures: Pictures) -> None:
        """Take what validation drew."""
        ...


class JSONLines:
    """One JSON object per logged step. NaN and infinity, which JSON has not, are written as null.

    Args:
        path: the file, appended to.
        resume_step: on a resumed run, lines after this step are dropped first: they will be written again.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        if resume_step is not None and path.is_file():
            write_text(path, "".join(line for line, step in _steps(path) if step <= resume_step))
        self._path = path
        self._file = path.open("a" if resume_step is not None else "w")

    def write(self, step: int, record: Record) -> None:
        """Append a line, flushed so that a reader follows along."""
        clean = {name: value if math.isfinite(value) else None for name, value in record.items()}
        with naming(self._path):
            self._file.write(json.dumps({"step": step, **clean}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _steps(path: Path) -> list[tuple[str, int]]:
    """Lines that were written whole, with their steps; a kill may have cut the last one.

    A line that is no record of a step is dropped with a warning that names it: the log is there to be looked at, and
    must not keep a run from going on.
    """
    lines: list[tuple[str, int]] = []
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            continue
        try:
            lines.append((line, int(json.loads(line)["step"])))
        except (ValueError, TypeError, KeyError, RecursionError):
            warnings.warn(
                f"{path}: line {number}: expected a JSON object with a step, found none: dropped", stacklevel=4
            )
    return lines


class TensorBoard:
    """Scalars for TensorBoard: training losses under train/, validation losses under validation/.

    Args:
        directory: of the event files.
        resume_step: on a resumed run, events after this step are hidden.
    """

    def __init__(self, directory: Path, resume_step: int | None = None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of protobuf and numpy, inside tensorboard
            from torch.utils.tensorboard import SummaryWriter

        purge = None if resume_step is None else resume_step + 1
        self._writer: Any = SummaryWriter(str(directory), purge_step=purge)

    def write(self, step: int, record: Record) -> None:
        """Add scalars."""
        for name, value in record.items():
            self._writer.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def show(self, step: int, pictures: Pictures) -> None:
        """Add films, as the animated images that TensorBoard plays: validation/<name>/<window>."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for name, films in pictures.films.items():
            for index, film in enumerate(films):
                _, channels, height, width = film.shape
                image = Summary.Image(
                    height=height, width=width, colorspace=channels, encoded_image_string=encode_gif(film)
                )
                value = Summary.Value(tag=f"validation/{name}/{index}", image=image)
                self._writer._get_file_writer().add_summary(Summary(value=[value]), step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


def open_sinks(run: Path, *, tensorboard: bool, resume_step: int | None) -> list[MetricSink]:
    """metrics.jsonl and, where asked for and installed, TensorBoard; its absence is said once."""
    sinks: list[MetricSink] = [JSONLines(run / "metrics.jsonl", resume_step)]
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        print("tensorboard is not installed: curves go to metrics.jsonl only")
    elif tensorboard:
        sinks.append(TensorBoard(run / "tensorboard", resume_step))
    return sinks
