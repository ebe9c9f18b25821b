"""`aime convert` and `aime data info`: other people's episodes into our file, and what a file holds."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from aime.data.durable import disk_errors, write_file
from aime.data.errors import DataError
from aime.data.exorl import DEFAULT_SIZE, ExORLSource
from aime.data.formats import detect_format, open_source
from aime.data.hdf5_writer import Episode, EpisodeWriter
from aime.data.resized import ResizedSource
from aime.data.segments import SegmentSource
from aime.data.source import EpisodeSource, source_name
from aime.data.splits import splits_for
from aime.data.window import Window
from aime.ranges import SEED, OptionError, Range, check_ranges
from aime.terminal import printable

LARGEST_SIZE = 4096  # pixels


def convert(
    source: EpisodeSource, out: Path, *, split_seed: int = 0, overwrite: bool = False, resume: bool = False
) -> int:
    """Write the episodes of a source, one at a time, to a file of our format; returns the number of steps.

    One episode is held in memory. A conversion that is killed leaves what it wrote in ``OUT.partial``, and no OUT.
    Seeds of environments and policy parameters are not carried over.

    Args:
        source: what is read.
        out: the file that is written.
        split_seed: seed of the splits.
        overwrite: replace the file, and begin anew.
        resume: keep the episodes that a conversion of the same source left in ``OUT.partial``, and write the others.

    Raises:
        DataError: of the source or of the disk; what is to be continued is of another source.
        FileExistsError: out, or an unfinished conversion to it, exists and is not to be overwritten.
    """
    masks = bool(getattr(source, "has_body_masks", False))
    spec = dataclasses.replace(source.spec, policy_parameters=())
    with EpisodeWriter(
        out, spec, body_masks=masks, split_seed=split_seed, overwrite=overwrite, resume=resume
    ) as writer:
        if len(writer):
            _check_kept(source, writer)
        for number, length in list(enumerate(source.lengths.tolist()))[len(writer) :]:
            window = source.window(number, 0, length)
            writer.append(
                Episode(
                    observations=window.observations,
                    actions=window.actions,
                    rewards=window.rewards,
                    continues=window.continues,
                    physics=_physics(source, number, window),
                    body_masks=window.body_masks,
                    body_ids=window.body_ids,
                )
            )
    return int(source.lengths.sum())


def _physics(source: EpisodeSource, episode: int, window: Window) -> NDArray[np.float64] | None:
    """(N, nq + nv) as recorded where the source tells: windows round to float32, from which no episode replays."""
    exact = getattr(source, "physics", None)
    if window.physics is None:
        return None
    states: NDArray[np.float64] = window.physics.astype(np.float64) if exact is None else exact(episode)
    return states


def _check_kept(source: EpisodeSource, writer: EpisodeWriter) -> None:
    """Raise DataError unless what was written before is of this source: all lengths, every value of the last one."""
    kept = SegmentSource(writer.partial)
    try:
        count, last = len(kept.lengths), len(kept.lengths) - 1
        if count > len(source.lengths) or not np.array_equal(kept.lengths, source.lengths[:count]):
            raise DataError(
                writer.partial, key="episodes", expected=f"the first of {source_name(source)}", found="others"
            )
        length = int(kept.lengths[last])
        before, now = kept.window(last, 0, length), source.window(last, 0, length)
        for key in ("observations", "actions", "rewards", "continues"):
            if not np.array_equal(getattr(before, key), getattr(now, key)):
                expected = f"what {source_name(source)} holds"
                raise DataError(writer.partial, episode=last, key=key, expected=expected, found="other values")
    finally:
        kept.close()


def contact_sheet(source: EpisodeSource, *, rows: int = 6, columns: int = 10) -> NDArray[np.uint8]:
    """(R * H, columns * W, 3): a row for each of some episodes, both spread evenly."""
    channels, height, width = source.spec.image_shape
    count = len(source.lengths)
    episodes = np.unique(np.linspace(0, count - 1, min(rows, count)).round().astype(int)).tolist()
    sheet = np.zeros((len(episodes) * height, columns * width, 3), np.uint8)
    for row, episode in enumerate(episodes):
        steps = np.linspace(0, int(source.lengths[episode]) - 1, columns).round().astype(int).tolist()
        for column, step in enumerate(steps):
            frame = source.window(episode, step, 1).observations[0]  # (C, H, W)
            picture = np.broadcast_to(frame[: 3 if channels >= 3 else 1], (3, height, width)).transpose(1, 2, 0)
            place = (slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))
            sheet[place] = picture  # (H, W, 3)
    return sheet


def describe(path: Path, source: EpisodeSource) -> str:
    """Contents and provenance, a line each."""
    spec, lengths = source.spec, source.lengths
    channels, height, width = spec.image_shape
    splits = ", ".join(f"{len(ids)} {name}" for name, ids in splits_for(source).items()) if len(lengths) >= 3 else ""
    stored = "stored in it" if getattr(source, "splits", None) else "drawn when it is read"
    lines = [
        ("file", str(path)),
        ("format", detect_format(path).name),
        ("task", f"{spec.domain or 'not told'} {spec.task}".strip()),
        ("episodes", f"{len(lengths)} of {lengths.min()} to {lengths.max()} steps, {lengths.sum()} in all"),
        ("frames", f"{channels} x {height} x {width}" + (f", {spec.drawn_by}" if spec.drawn_by else "")),
        ("actions", f"{spec.action_size}, action repeat {spec.action_repeat}"),
        ("physics", f"{spec.physics_size} values" if spec.joints else "not stored"),
        ("policy", spec.policy or "not told"),
        ("versions", ", ".join(f"{name} {version}" for name, version in spec.versions.items()) or "not told"),
        ("splits", f"{splits}, {stored}" if splits else "too few episodes"),
    ]
    return "\n".join(f"{name:<9} {printable(value)}" for name, value in lines)


@dataclass
class Convert:
    """Turn episodes of any known format into our file, one episode at a time.

    A conversion that is killed leaves no OUT; the episodes it wrote stay readable in OUT.partial, and the same command
    with --resume keeps them and writes the others.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """File or directory of episodes; its format is detected."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The file to write."""
    split_seed: Annotated[int, SEED] = 0
    """Seed of the division into train, validation and test episodes, which is stored in the file."""
    size: Annotated[int, Range(1, LARGEST_SIZE)] | None = None
    """Height and width of the frames. Of states (ExORL) they are drawn so, 64 by default; others are resized, the
    largest square in the middle of each, and stay as they are by default."""
    camera: Annotated[int, Range(-1, 1000)] | None = None
    """Of states (ExORL): camera of the model; the first by default."""
    overwrite: bool = False
    """Replace OUT where it exists, and begin anew where a conversion to it was killed."""
    resume: bool = False
    """Continue a conversion that was killed."""

    def run(self) -> int:
        """Convert."""
        check_ranges(self)
        if self.overwrite and self.resume:
            raise OptionError("overwrite: expected it without --resume, found both")
        source = self._opened()
        steps = convert(source, self.out, split_seed=self.split_seed, overwrite=self.overwrite, resume=self.resume)
        print(f"{printable(self.out)}: {len(source.lengths)} episodes, {steps} steps")
        return 0

    def _opened(self) -> EpisodeSource:
        source = open_source(self.source)
        if isinstance(source, ExORLSource):
            given = (self.size, self.camera) != (None, None)
            return source.drawn(size=self.size or DEFAULT_SIZE, camera=self.camera or 0) if given else source
        if self.camera is not None:
            raise OptionError(f"camera: expected it with episodes of states alone, found frames in {self.source}")
        return source if self.size is None else ResizedSource(source, self.size)


@dataclass
class Info:
    """Show what an episode file holds and where it is from; with --sheet, draw a contact sheet of its frames, too."""

    action: Annotated[Literal["info"], tyro.conf.Positional]
    """info."""
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """File or directory of episodes; its format is detected."""
    sheet: Path | None = None
    """Draw a contact sheet of the frames into this file (PNG)."""
    rows: Annotated[int, Range(1, 64)] = 6
    """Episodes in the contact sheet."""
    columns: Annotated[int, Range(1, 64)] = 10
    """Frames of each."""

    def run(self) -> int:
        """Print, and draw the sheet that is asked for."""
        check_ranges(self)
        source = open_source(self.file)
        print(describe(self.file, source))
        if self.sheet is not None:
            import imageio.v3 as imageio

            image = io.BytesIO()
            imageio.imwrite(image, contact_sheet(source, rows=self.rows, columns=self.columns), extension=".png")
            with disk_errors(self.sheet):
                write_file(self.sheet, image.getvalue())
            print(f"{'sheet':<9} {printable(self.sheet)}")
        return 0
