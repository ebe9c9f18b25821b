"""What is evaluated on: the settings, and the clips cut from held-out episodes.

A clip is ``context + max(horizons)`` consecutive frames of one episode. The first ``context`` frames are observed; the
rest are what an open-loop forecast has to hit. Frame index ``context - 1 + h`` of a clip is the target at horizon h, so
horizon 1 is the first frame that was not observed. Every forecaster sees the same clips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from aime.data import EpisodeSource, Window, collate
from aime.ranges import SEED, Range, check_ranges


@dataclass(frozen=True)
class EvaluationConfig:
    """How much is evaluated. The defaults keep the laptop run under a minute on two CPU cores."""

    horizons: tuple[Annotated[int, Range(1, 100_000)], ...] = (1, 5, 15, 45)
    """Open-loop horizons in frames; a horizon longer than the episodes allow is reported as null."""
    context: Annotated[int, Range(1, 100_000)] = 15
    """Observed frames before an open-loop forecast."""
    samples: Annotated[int, Range(1, 4096)] = 16
    """Sampled rollouts behind the predictive mean."""
    episodes: Annotated[int, Range(1, 10**9)] = 12
    """Held-out episodes at most."""
    starts: Annotated[int, Range(1, 100_000)] = 3
    """Clips per episode, evenly spaced from its first to its last possible start."""
    probe_episodes: Annotated[int, Range(1, 10**9)] = 480
    """Training episodes the probes are fitted on, at most. Of 480 and more one clip each, of fewer up to `starts`: with
    40 episodes what limits a readout of 208 numbers is the probe and not the model."""
    burn_in: Annotated[int, Range(0, 100_000)] = 4
    """First frames of a clip left out of filtering figures and probes, while the state settles."""
    one_step_stride: Annotated[int, Range(1, 100_000)] = 4
    """One-step prior predictions are made at every this-many-th frame."""
    mean_image_frames: Annotated[int, Range(1, 10**9)] = 20_000
    """Training frames behind the mean image, at most (evenly spread)."""
    rollouts_at_once: Annotated[int, Range(1, 10**6)] = 64
    """Rollouts in one batch; bounds memory."""
    clips_at_once: Annotated[int, Range(1, 10**6)] = 8
    """Clips filtered in one batch; bounds memory."""
    films: Annotated[int, Range(1, 1000)] = 3
    """Clips shown as film strips and animations in the report."""
    split: str = "test"
    """The split that is held out."""
    seed: Annotated[int, SEED] = 0
    """Seed of every random draw in the evaluation."""

    def __post_init__(self) -> None:
        check_ranges(self)


PROBE_CLIPS = 480
"""Clips that the probes are fitted on where every episode has only one start's worth."""
PROBE_CLIPS_AT_ONCE = 64
"""Of them, in memory."""
GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, less their whole part, spread evenly over [0, 1) however many there are."""


@dataclass(frozen=True)
class Clips:
    """N clips of equal length L; everything that carries time is (N, L, ...)."""

    observations: Tensor
    """(N, L, C, H, W) uint8."""
    actions: Tensor
    """(N, L, A) float32; ``actions[:, t]`` is taken after frame t."""
    rewards: Tensor
    """(N, L) float32, the reward of ``actions[:, t]``."""
    body_masks: Tensor | None
    """(N, L, H, W) bool, True on moving bodies; ``None`` where the data has no segmentation."""
    physics: Tensor | None
    """(N, L, nq + nv) float32, qpos then qvel; ``None`` where the data has none."""
    episodes: Tensor
    """(N,) int64: which of the evaluated episodes a clip is from, counted from 0."""
    labels: tuple[str, ...] = field(default=())
    """(N,) "episode 17, frames 40-99", for captions."""
    body_ids: Tensor | None = None
    """(N, L, H, W) uint8, which moving body is seen, 0 for none; ``None`` where the data does not tell them apart."""

    @property
    def length(self) -> int:
        """Frames in a clip."""
        return int(self.observations.shape[1])

    def __len__(self) -> int:
        return int(self.observations.shape[0])

    def select(self, index: slice) -> Clips:
        """The clips of a slice."""
        cut = {
            item.name: getattr(self, item.name)[index] for item in fields(self) if getattr(self, item.name) is not None
        }
        return replace(self, **cut)

    def batches(self, size: int) -> Iterator[tuple[slice, Clips]]:
        """Consecutive batches of at most ``size`` clips, each with the slice it covers."""
        for start in range(0, len(self), size):
            index = slice(start, min(start + size, len(self)))
            yield index, self.select(index)


def clip_length(source: EpisodeSource, episodes: Sequence[int], config: EvaluationConfig) -> int:
    """Frames per clip: the context and the longest horizon that every one of ``episodes`` can hold.

    Raises:
        ValueError: when an episode cannot even hold the context and the shortest horizon.
    """
    if len(episodes) == 0:
        raise ValueError(f"no episode in split {config.split!r}: nothing to evaluate on")
    shortest = min(int(source.lengths[episode]) for episode in episodes)
    fitting = [horizon for horizon in config.horizons if config.context + horizon <= shortest]
    if not fitting:
        raise ValueError(
            f"an evaluated episode has {shortest} frames; context {config.context} and horizon "
            f"{min(config.horizons)} need {config.context + min(config.horizons)}: lower --context"
        )
    return config.context + max(fitting)


def spread(available: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of ``available``, evenly spread and in order."""
    if len(available) <= count:
        return [int(item) for item in available]
    positions = np.linspace(0, len(available) - 1, count).round().astype(int)
    return [int(available[position]) for position in positions]


def cut_clips(source: EpisodeSource, episodes: Sequence[int], length: int, starts: int) -> Clips:
    """Cut ``starts`` evenly spaced clips of ``length`` frames from each of ``episodes``."""
    windows: list[tuple[int, Window]] = []
    for position, episode in enumerate(episodes):
        room = int(source.lengths[episode]) - length
        places = sorted({int(value) for value in np.linspace(0, room, starts).round()})
        windows += [(position, source.window(int(episode), start, length)) for start in places]
    return joined_clips(windows)


def joined_clips(windows: Sequence[tuple[int, Window]]) -> Clips:
    """Windows of one length as clips; each with the number of the episode that it is from."""
    batch = collate([window for _, window in windows])
    length = batch.observations.shape[1]
    return Clips(
        batch.observations,
        batch.actions,
        batch.rewards,
        batch.body_masks,
        batch.physics,
        episodes=torch.tensor([position for position, _ in windows]),
        labels=tuple(
            f"episode {window.episode}, frames {window.start}-{window.start + length - 1}" for _, window in windows
        ),
        body_ids=getattr(batch, "body_ids", None),
    )


def probe_clips(
    source: EpisodeSource, training: Sequence[int], length: int, config: EvaluationConfig
) -> Iterator[Clips]:
    """Clips (n, length, ...) of training episodes to fit probes on, some tens at a time.

    Their starts are spread over all that the episodes allow, one by one: clips that all begin where episodes begin
    would show the probe other states than it is scored on (on cartpole R^2 .74 instead of .89 from as many episodes).
    ``episodes`` counts on from piece to piece.
    """
    episodes = spread(training, config.probe_episodes)
    each = max(1, min(config.starts, PROBE_CLIPS // len(episodes)))
    windows: list[tuple[int, Window]] = []
    for position, episode in enumerate(episodes):
        room = int(source.lengths[episode]) - length
        fractions = [(each * position + k) * GOLDEN % 1.0 for k in range(each)]
        windows += [
            (position, source.window(episode, start, length)) for start in sorted({round(f * room) for f in fractions})
        ]
        if len(windows) >= PROBE_CLIPS_AT_ONCE or position + 1 == len(episodes):
            yield joined_clips(windows)
            windows = []


def cut_window(source: EpisodeSource, episode: int, start: int, length: int) -> Clips:
    """One clip, at a chosen place."""
    return joined_clips([(0, source.window(episode, start, length))])


@dataclass(frozen=True)
class PixelStatistics:
    """Of the training frames, on [0, 255]."""

    mean: Tensor
    """(C, H, W) float32, the mean image."""
    deviation: Tensor
    """(H, W) float32, standard deviation of each pixel (root of the variance averaged over the channels)."""


def training_statistics(source: EpisodeSource, episodes: Sequence[int], maximum_frames: int) -> PixelStatistics:
    """Mean and spread of each pixel over the training split.

    Takes whole evenly spread episodes until about ``maximum_frames`` frames are in.
    """
    if len(episodes) == 0:
        raise ValueError("the training split has no episode: no mean image")
    frames_each = max(1, int(np.mean([source.lengths[episode] for episode in episodes])))
    chosen = spread(episodes, max(1, maximum_frames // frames_each))
    total, squares = np.zeros(source.spec.image_shape), np.zeros(source.spec.image_shape)
    count = 0
    for episode in chosen:
        frames = np.asarray(source.window(episode, 0, int(source.lengths[episode])).observations)
        total += frames.sum(0, dtype=np.float64)
        squares += np.square(frames, dtype=np.float32).sum(0, dtype=np.float64)
        count += len(frames)
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0.0).mean(0)
    return PixelStatistics(
        torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(np.sqrt(variance).astype(np.float32))
    )


def training_mean_image(source: EpisodeSource, episodes: Sequence[int], maximum_frames: int) -> Tensor:
    """Mean frame of the training split: (C, H, W) float32 in [0, 255]; see :func:`training_statistics`."""
    return training_statistics(source, episodes, maximum_frames).mean
