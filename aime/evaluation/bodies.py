"""Where bodies are, in any picture: the rule by which a *prediction* has a mask, and the pixels that bodies reach.

A prediction comes without a segmentation. A pixel of it counts as body where it differs from the background by a
threshold or more, in the channel that differs most. Both are fitted to the stored masks of training frames: the
background is the mean over the frames in which no body covers the pixel (the mean image where one always does), the
threshold is the middle one of those at which the same rule, applied to true frames, agrees with their masks within 1 %
of the best (intersection over union).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aime.data import EpisodeSource
from aime.evaluation.protocol import spread

FITTED_FRAMES = 5_000
"""Training frames looked at, at most."""
NEARLY_BEST = 0.99
TRUSTED = 0.5
"""Agreement below which the rule says nothing: where something moves that the masks leave out, such as a target."""


@dataclass(frozen=True)
class BodyFinder:
    """A fitted rule; see :func:`fit_body_finder`."""

    background: Tensor
    """(C, H, W) on [0, 255]."""
    threshold: float
    """Grey levels on [0, 255]."""
    reach: Tensor
    """(H, W) bool: pixels that a body covers in some training frame."""
    agreement: float
    """Intersection over union of the rule and the stored masks, on the training frames."""

    @property
    def trusted(self) -> bool:
        """Whether the rule finds the bodies, so that a prediction's mask means something."""
        return self.agreement >= TRUSTED

    def find(self, frames: Tensor) -> Tensor:
        """Frames (..., C, H, W) on [0, 255] -> (..., H, W) bool, True where a body is drawn."""
        return (frames.float() - self.background).abs().amax(-3) >= self.threshold


def _episodes(source: EpisodeSource, episodes: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for episode in episodes:
        window = source.window(episode, 0, int(source.lengths[episode]))
        if window.body_masks is None:
            raise ValueError(f"episode {episode} has no body masks, which the others have")
        yield np.asarray(window.observations), np.asarray(window.body_masks) > 0


def fit_body_finder(source: EpisodeSource, episodes: Sequence[int]) -> BodyFinder | None:
    """Fit background, threshold and reach to the training frames and their masks; ``None`` where the data has no masks.

    Takes whole evenly spread episodes until about ``FITTED_FRAMES`` frames are in.

    Raises:
        ValueError: when only some episodes have masks.
    """
    if not episodes or source.window(int(episodes[0]), 0, 1).body_masks is None:
        return None
    frames_each = max(1, int(np.mean([source.lengths[episode] for episode in episodes])))
    chosen = spread(episodes, max(1, FITTED_FRAMES // frames_each))
    shape = source.spec.image_shape
    total, free, total_free = np.zeros(shape), np.zeros(shape[1:]), np.zeros(shape)
    count, reach = 0, np.zeros(shape[1:], dtype=bool)
    for frames, masks in _episodes(source, chosen):
        total += frames.sum(0, dtype=np.float64)
        total_free += (frames * ~masks[:, None]).sum(0, dtype=np.float64)
        free += (~masks).sum(0)
        count += len(frames)
        reach |= masks.any(0)
    background = np.where(free > 0, total_free / np.maximum(free, 1), total / count).astype(np.float32)
    histograms = np.zeros((2, 256))  # of the distance to the background, without and with a body
    for frames, masks in _episodes(source, chosen):
        distance = np.abs(frames - background).max(1).astype(np.uint8)
        for kind, pixels in enumerate((distance[~masks], distance[masks])):
            histograms[kind] += np.bincount(pixels, minlength=256)
    found = histograms[:, ::-1].cumsum(1)[:, ::-1]  # pixels at a distance of at least each threshold
    overlap = found[1] / np.maximum(histograms[1].sum() + found[0], 1)
    overlap[0] = 0.0  # at threshold 0 everything is a body
    # Without noise many thresholds agree alike; the middle of them is as far from fog as from a body's shaded side.
    good = np.flatnonzero(overlap >= NEARLY_BEST * overlap.max()) if overlap.any() else np.array([256])
    best = int(good[len(good) // 2])
    return BodyFinder(
        torch.from_numpy(background), float(best), torch.from_numpy(reach), float(overlap[min(best, 255)])
    )
