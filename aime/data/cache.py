"""Episodes held in memory: on a laptop the uint8 frames of a whole collection fit, and reading becomes a copy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aime.data.source import EpisodeSource, check_window, source_name
from aime.data.spec import EpisodeSpec
from aime.data.window import Window

DEFAULT_LIMIT = 2 << 30  # bytes


class FrameCache:
    """The chosen episodes of a source, read once into memory; windows are views of it.

    Args:
        source: where the episodes come from.
        episodes: episode numbers to hold; all by default. The others stay readable, from the source.
    """

    def __init__(self, source: EpisodeSource, episodes: ArrayLike | None = None) -> None:
        self.source = source
        self.path = source_name(source)
        chosen = range(len(source.lengths)) if episodes is None else np.asarray(episodes, np.int64).reshape(-1).tolist()
        self._held = {int(episode): source.window(int(episode), 0, int(source.lengths[episode])) for episode in chosen}

    @property
    def spec(self) -> EpisodeSpec:
        """The source's spec."""
        return self.source.spec

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(E,) steps of each episode."""
        return self.source.lengths

    @property
    def splits(self) -> dict[str, NDArray[np.int64]] | None:
        """The splits stored with the source, if any."""
        splits: dict[str, NDArray[np.int64]] | None = getattr(self.source, "splits", None)
        return splits

    def window(self, episode: int, start: int, length: int) -> Window:
        """Steps ``start`` to ``start + length - 1`` of an episode, as views (do not write to them)."""
        held = self._held.get(episode)
        if held is None:
            return self.source.window(episode, start, length)
        check_window(self, episode, start, length)
        steps = slice(start, start + length)
        return Window(
            observations=held.observations[steps],
            actions=held.actions[steps],
            rewards=held.rewards[steps],
            continues=held.continues[steps],
            body_masks=None if held.body_masks is None else held.body_masks[steps],
            physics=None if held.physics is None else held.physics[steps],
            episode=episode,
            start=start,
            body_ids=None if held.body_ids is None else held.body_ids[steps],
        )


def cached(
    source: EpisodeSource, episodes: ArrayLike | None = None, *, limit_bytes: int = DEFAULT_LIMIT
) -> EpisodeSource:
    """The source held in memory where the frames (and masks) of the episodes fit ``limit_bytes``, else as it is."""
    chosen = slice(None) if episodes is None else np.asarray(episodes, np.int64).reshape(-1)
    channels, height, width = source.spec.image_shape
    # a mask and an id take a byte per pixel each
    bytes_per_pixel = channels + sum(bool(getattr(source, f"has_{name}", False)) for name in ("body_masks", "body_ids"))
    frame = height * width * bytes_per_pixel
    return FrameCache(source, episodes) if int(source.lengths[chosen].sum()) * frame <= limit_bytes else source
