"""EpisodeSource, the one interface of all readers, and `open_source`, which finds the reader for a path."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from aime.data.errors import DataError
from aime.data.spec import EpisodeSpec
from aime.data.window import Window


@runtime_checkable
class EpisodeSource(Protocol):
    """Random access to windows of stored episodes."""

    @property
    def spec(self) -> EpisodeSpec:
        """Shapes and provenance, shared by all episodes."""
        ...

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(E,) steps of each episode."""
        ...

    def window(self, episode: int, start: int, length: int) -> Window:
        """Steps ``start`` to ``start + length - 1`` of an episode; IndexError outside of it."""
        ...


def source_name(source: EpisodeSource) -> str:
    """The source's path where it has one, else its class: what error messages call it."""
    return str(getattr(source, "path", type(source).__name__))


def check_window(source: EpisodeSource, episode: int, start: int, length: int) -> None:
    """Raise IndexError unless the window lies inside the episode."""
    lengths = source.lengths
    if not 0 <= episode < len(lengths):
        raise IndexError(f"{source_name(source)}: expected an episode in 0..{len(lengths) - 1}, found {episode}")
    if length < 1 or start < 0 or start + length > lengths[episode]:
        raise IndexError(
            f"{source_name(source)}: episode {episode}: expected a window inside its {lengths[episode]} steps, "
            f"found start {start}, length {length}"
        )


def open_source(path: str | Path, *, body_masks: bool = True, physics: bool = True) -> EpisodeSource:
    """Open an episode file; its layout is detected.

    Args:
        path: an HDF5 file of `aime collect` (finished, or the ``.partial`` of an interrupted collection), or an HDF5
            file with groups ``episode_i`` {observations, actions, rewards, dones}.
        body_masks: read body masks where the file has them; False saves their cost.
        physics: read the physics state where the file has it.

    Raises:
        FileNotFoundError: no such file (near names are listed).
        DataError: not an episode file, truncated, or with contents of the wrong shape, type or value.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(_missing(path))
    import h5py

    from aime.data.group_hdf5 import GroupHDF5Source
    from aime.data.hdf5 import FORMAT, HDF5Source, open_file

    with open_file(path) as file:
        if file.attrs.get("format") == FORMAT:
            layout = "aime"
        elif any(name.startswith("episode_") and isinstance(file[name], h5py.Group) for name in file):
            layout = "groups"
        else:
            found = ", ".join(sorted(file)[:8]) or "an empty file"
            raise DataError(
                path, expected=f"attribute format = {FORMAT!r} or groups episode_0, episode_1, ...", found=found
            )
    if layout == "aime":
        return HDF5Source(path, body_masks=body_masks, physics=physics)
    return GroupHDF5Source(path)


def _missing(path: Path) -> str:
    partial = path.with_name(path.name + ".partial")
    if partial.is_file():
        return (
            f"{path}: no such file, but {partial} is there, of a collection that has not finished: open that to use it"
        )
    if path.is_dir():
        return f"{path}: expected an HDF5 file, found a directory"
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=3)
    return f"{path}: no such file" + (f"; near names there: {', '.join(near)}" if near else "")
