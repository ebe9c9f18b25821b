"""The formats of episodes that can be read: which one a path holds, and the reader that opens it."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aime.data.checked_hdf5 import attribute, open_file, reading
from aime.data.dmc_vb import DMCVBSource, tfrecord_files
from aime.data.errors import DataError
from aime.data.exorl import ExORLSource, holds_states
from aime.data.group_hdf5 import GroupHDF5Source, is_episode_name
from aime.data.hdf5 import HDF5Source
from aime.data.layout import FORMAT
from aime.data.lerobot import LeRobotSource, is_lerobot
from aime.data.nested_hdf5 import NestedHDF5Source, is_robomimic, minari_file
from aime.data.segments import SUFFIX, SegmentSource, is_segment
from aime.data.source import EpisodeSource
from aime.data.splits import splits_for, splits_from_json
from aime.data.v_d4rl import FRAME_KEYS, VD4RLHDF5Source, VD4RLNpzSource, holds_flat, npz_files, npz_names
from aime.data.video import is_video
from aime.data.video_folder import VideoFolderSource, video_files
from aime.terminal import printable

MOST_LOOKED_AT = 300  # files and directories, for a message


@dataclass(frozen=True)
class Format:
    """One format of episodes on disk."""

    label: str
    """In a word or two, for lists."""
    name: str
    """In words, for messages."""
    holds: Callable[[Path], bool]
    """Whether the path, which exists, is of this format; looks at names and headers alone."""
    open: Callable[[Path, bool, bool], EpisodeSource]
    """Opens it; the switches are body_masks and physics of `open_source`."""
    requires: tuple[str, ...] = ()
    """Packages without which it cannot be opened."""
    extra: str = ""
    """The extra that brings them, where a plain installation does not."""


def _holds_attribute(path: Path) -> bool:
    if not path.is_file():
        return False
    with open_file(path) as file, reading(path, key="format"):
        return "format" in file.attrs and attribute(path, file, "format", str) == FORMAT


def _holds_groups(path: Path) -> bool:
    if not path.is_file():
        return False
    with open_file(path) as file, reading(path):
        return any(is_episode_name(name) for name in file)


def _holds_frames(path: Path) -> bool:
    files = npz_files(path)
    return bool(files) and bool(npz_names(files[0]) & set(FRAME_KEYS)) and not holds_states(path)


def _holds_hdf5(check: Callable[[Path], bool]) -> Callable[[Path], bool]:
    """The check, of files that are not npz alone: what is not HDF5 is refused when it is opened as such."""
    return lambda path: path.is_file() and path.suffix != ".npz" and check(path)


#: in the order in which they are tried; those told by names come before those whose file is opened
FORMATS: tuple[Format, ...] = (
    Format(
        "an unfinished collection",
        f"a directory NAME{SUFFIX} of a collection that has not finished",
        lambda path: path.is_dir() and (path.name.endswith(SUFFIX) or any(is_segment(p.name) for p in path.iterdir())),
        lambda path, body_masks, physics: SegmentSource(path, body_masks=body_masks, physics=physics),
        ("h5py",),
    ),
    Format(
        "DMC-VB and other RLDS TFRecords",
        "TFRecord files of DMC-VB or another RLDS data set",
        lambda path: bool(tfrecord_files(path)),
        lambda path, _body_masks, _physics: DMCVBSource(path),
        ("PIL",),
    ),
    Format(
        "V-D4RL npz",
        "V-D4RL's npz episodes {image, action, reward}",
        _holds_frames,
        lambda path, _body_masks, _physics: VD4RLNpzSource(path),
    ),
    Format(
        "ExORL npz",
        "ExORL's npz episodes {action, reward, physics}",
        holds_states,
        lambda path, body_masks, physics: ExORLSource(path, body_masks=body_masks, physics=physics),
        ("mujoco", "dm_control"),
    ),
    Format(
        "LeRobot",
        "a LeRobot data set with meta/info.json",
        is_lerobot,
        lambda path, _body_masks, _physics: LeRobotSource(path),
        ("pyarrow", "av"),
        "lerobot",
    ),
    Format(
        "videos with CSV tables",
        "a folder of videos with tables of actions (actions.csv, or NAME.csv beside NAME.mp4)",
        lambda path: bool(video_files(path)),
        lambda path, _body_masks, _physics: VideoFolderSource(path),
        ("av",),
        "video",
    ),
    Format(
        "Minari",
        "a Minari data set with data/main_data.hdf5",
        lambda path: minari_file(path) is not None,
        lambda path, _body_masks, _physics: NestedHDF5Source(minari_file(path) or path),
        ("h5py",),
    ),
    Format(
        "AIME's own HDF5",
        f"attribute format = {FORMAT!r}",
        _holds_hdf5(_holds_attribute),
        lambda path, body_masks, physics: HDF5Source(path, body_masks=body_masks, physics=physics),
        ("h5py",),
    ),
    Format(
        "groups episode_0, episode_1, ... of HDF5",
        "groups episode_0, episode_1, ...",
        _holds_hdf5(_holds_groups),
        lambda path, _body_masks, _physics: GroupHDF5Source(path),
        ("h5py",),
    ),
    Format(
        "robomimic HDF5",
        "robomimic's groups data/demo_0, data/demo_1, ...",
        _holds_hdf5(is_robomimic),
        lambda path, _body_masks, _physics: NestedHDF5Source(path),
        ("h5py",),
    ),
    Format(
        "V-D4RL HDF5",
        "V-D4RL's datasets observation, action, reward, step_type, in one file or shards",
        holds_flat,
        lambda path, _body_masks, _physics: VD4RLHDF5Source(path),
        ("h5py",),
    ),
)


def detect_format(path: Path) -> Format:
    """The format of what lies at a path.

    Raises:
        FileNotFoundError: nothing lies there (near names are listed).
        DataError: it is of no known format.
        ImportError: of one whose package is not installed; the message names it.
    """
    try:
        there = path.exists() and not (path.is_dir() and not any(known.holds(path) for known in FORMATS))
        missing = "" if there else printable(_missing(path))
    except OSError as error:
        raise DataError(path, expected="a readable path", found=error.strerror or str(error)) from error
    if missing:
        raise FileNotFoundError(missing)
    for candidate in FORMATS:
        if candidate.holds(path):
            absent = [name for name in candidate.requires if importlib.util.find_spec(name) is None]
            if absent:
                remedy = f": pip install 'aime[{candidate.extra}]'" if candidate.extra else ""
                needs = f"reading it needs {', '.join(absent)}, found not installed{remedy}"
                raise ImportError(printable(f"{path}: {candidate.name}: {needs}"))
            return candidate
    # a directory was one of episodes, or is refused above
    raise DataError(path, expected=f"a file of {_known(FORMATS[1:])}", found=_contents(path))


def open_source(path: str | Path, *, body_masks: bool = True, physics: bool = True) -> EpisodeSource:
    """Open episodes; their format is detected.

    Args:
        path: an HDF5 file of `aime collect`, the directory ``NAME.h5.partial`` of a collection that goes on or was
            interrupted, an HDF5 file with groups ``episode_i`` {observations, actions, rewards, dones}, or what others
            have: DMC-VB, V-D4RL, ExORL, Minari, robomimic, LeRobot, videos (`FORMATS`).
        body_masks: read masks and ids of bodies where they are stored; False saves their cost.
        physics: read the physics state where it is stored.

    Raises:
        FileNotFoundError: no such file (near names are listed).
        DataError: not episodes, truncated, or with contents of the wrong shape, type or value.
    """
    path = Path(path)
    return detect_format(path).open(path, body_masks, physics)


def read_splits(place: str | Path | EpisodeSource) -> dict[str, NDArray[np.int64]]:
    """The splits of an open source (`splits_for`), of an episode file, or of JSON that `write_splits` wrote.

    Raises:
        FileNotFoundError: no such file.
        DataError: the splits are incomplete or overlap.
    """
    if isinstance(place, EpisodeSource):
        return splits_for(place)
    path = Path(place)
    if path.suffix == ".json":
        return splits_from_json(path)
    return splits_for(open_source(path, body_masks=False, physics=False))


def _contents(path: Path) -> str:
    if path.suffix == ".npz":
        return ", ".join(sorted(npz_names(path))[:8]) or "an empty file"
    with open_file(path) as file, reading(path):
        return ", ".join(sorted(file)[:8]) or "an empty file"


def _known(formats: Sequence[Format]) -> str:
    return "; ".join(known.label for known in formats)


def _no_episodes(path: Path) -> str:
    """What a directory that is of no format holds instead, and where below it episodes are."""
    names = sorted(entry.name for entry in path.iterdir())
    found = f"a directory of {', '.join(names[:8])}" if names else "an empty directory"
    found += f" and {len(names) - 8} more" if len(names) > 8 else ""
    if below := _below(path):
        return f"expected episodes, found {found}; there are some below it, name one of: {', '.join(below)}"
    if (path / "data" / "metadata.json").is_file():
        return "expected data/main_data.hdf5, as Minari writes it with data_format='hdf5', found a data set without it"
    videos = [name for name in names if is_video(path / name)]
    if videos:
        return (
            f"expected a table of actions beside the videos, {Path(videos[0]).stem}.csv or actions.csv, found {found}"
        )
    return f"expected episodes, found {found}; what is known: {_known(FORMATS)}"


def _below(path: Path, depth: int = 5) -> list[str]:
    """The first three files or directories below a path that are of a known format, of hundreds that are looked at."""
    found: list[str] = []
    places, left = [path], MOST_LOOKED_AT
    for _ in range(depth):
        places = [entry for place in places if place.is_dir() for entry in sorted(place.iterdir())][:left]
        left -= len(places)
        for place in places:
            try:
                known = next((known for known in FORMATS if known.holds(place)), None)
            except (DataError, OSError):
                continue
            if known is not None and len(found) < 3:
                found.append(f"{place.relative_to(path)} ({known.label})")
        if found:
            return found
    return found


def _missing(path: Path) -> str:
    partial = path.with_name(path.name + SUFFIX) if path.name else path
    if partial != path and partial.exists() and not path.exists():
        return (
            f"{path}: no such file, but {partial} is there, of a collection that has not finished: open that to use it"
        )
    final = path.with_name(path.name.removesuffix(SUFFIX)) if path.name.endswith(SUFFIX) else path
    if final != path and final.is_file():
        return f"{path}: no such directory; the collection has finished: open {final}"
    if path.is_dir():
        return f"{path}: {_no_episodes(path)}"
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=3)
    return f"{path}: no such file" + (f"; near names there: {', '.join(near)}" if near else "")
