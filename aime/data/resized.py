"""Frames of any source at another size: the largest square in their middle, made smaller or larger."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aime.data.source import EpisodeSource, source_name
from aime.data.spec import EpisodeSpec
from aime.data.window import Window


class ResizedSource:
    """The episodes of a source with square frames of another size.

    Of each frame the largest square in its middle is kept. Frames are resampled by Pillow's BILINEAR filter, whose
    support grows with the reduction, so that nothing aliases; ids and masks take the nearest pixel.

    Args:
        source: where the episodes come from.
        size: height and width of the frames.
    """

    def __init__(self, source: EpisodeSource, size: int) -> None:
        self.source, self.size, self.path = source, size, source_name(source)
        channels = source.spec.image_shape[0]
        self.spec: EpisodeSpec = dataclasses.replace(source.spec, image_shape=(channels, size, size))
        self.has_body_masks = bool(getattr(source, "has_body_masks", False))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(E,) steps of each episode."""
        return self.source.lengths

    def window(self, episode: int, start: int, length: int) -> Window:
        """Steps ``start`` to ``start + length - 1`` of an episode; IndexError outside of it."""
        window = self.source.window(episode, start, length)
        masks, ids = window.body_masks, window.body_ids
        return dataclasses.replace(
            window,
            observations=self._resized(window.observations, Image.Resampling.BILINEAR),
            body_masks=None if masks is None else self._nearest(masks.view(np.uint8)).view(np.bool_),
            body_ids=None if ids is None else self._nearest(ids),
        )

    def _nearest(self, planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(T, size, size) of (T, H, W)."""
        return self._resized(planes[:, None], Image.Resampling.NEAREST)[:, 0]

    def _resized(self, frames: NDArray[np.uint8], resampling: Image.Resampling) -> NDArray[np.uint8]:
        """(T, C, size, size) of (T, C, H, W)."""
        height, width = frames.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = np.ascontiguousarray(frames[:, :, top : top + side, left : left + side])
        out = np.empty((*frames.shape[:2], self.size, self.size), np.uint8)
        for step in range(len(frames)):
            for channel in range(frames.shape[1]):
                plane = Image.fromarray(square[step, channel])
                out[step, channel] = np.asarray(plane.resize((self.size, self.size), resampling))
        return out
