"""EpisodeSource, the one interface of all readers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

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
