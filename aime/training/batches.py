"""The batches of a run: random training windows ahead of time, fixed held-out windows, frames to initialise from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aime.data import Batch, EpisodeSource, PrefetchLoader, WindowSampler, cached, splits_for
from aime.data.augmentation import batch_generator
from aime.ranges import OptionError
from aime.ranks import Ranks
from aime.training.config import TrainConfig


@dataclass(frozen=True)
class TrainingData:
    """Batches of one run, from episodes of the training split and of the validation split."""

    source: EpisodeSource
    train_episodes: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    loader: PrefetchLoader
    validation: list[Batch]
    train_frames: int

    @classmethod
    def open(
        cls, source: EpisodeSource, config: TrainConfig, device: torch.device, ranks: Ranks | None = None
    ) -> TrainingData:
        """Split the source's episodes, hold the training frames in memory if they fit, and set the samplers up.

        In a distributed run each process reads its own rows of every batch.

        Raises:
            aime.data.DataError: an episode is shorter than the window.
            OptionError: a shift of the augmentation that could take a frame out of itself.
        """
        side = min(source.spec.image_shape[-2:])
        if config.augment_shift >= side:
            raise OptionError(
                f"augment_shift: expected fewer pixels than a frame's side of {side}, found {config.augment_shift}"
            )
        train = splits_for(source, config.seed)["train"]
        limit = int(config.cache_gigabytes * 2**30)
        frames = cached(source, train, limit_bytes=limit)
        rank, size = (0, 1) if ranks is None else (ranks.rank, ranks.size)
        sampler = WindowSampler(
            frames,
            config.batch_size,
            config.sequence_length,
            episodes=train,
            seed=config.seed,
            consecutive=config.consecutive,
            rank=rank,
            world_size=size,
        )
        loader = PrefetchLoader(sampler, device, depth=config.prefetch)
        validation = validation_batches(source, config, device, ranks)
        return cls(frames, train, loader, validation, int(source.lengths[train].sum()))

    def augmented(self, batch: Batch, config: TrainConfig, ranks: Ranks | None) -> Batch:
        """The batch that the loader just gave, changed as the configuration says.

        What is done follows from the seed and the batch's number, as its windows do: nothing has to be saved for a run
        to resume exactly, and each process does to its rows what one process would do to them.
        """
        augmentation = config.augmentation()
        if not augmentation.active:
            return batch
        rank, size = (0, 1) if ranks is None else (ranks.rank, ranks.size)
        generator = batch_generator(config.seed, self.loader.sampler.position - 1)
        return augmentation.apply(batch, augmentation.draw(config.batch_size, generator).rows(rank, size))

    def steps_per_epoch(self, config: TrainConfig) -> int:
        """Steps in which as many frames are seen as the training split has."""
        return max(1, self.train_frames // (config.batch_size * config.sequence_length))

    def initial_frames(self, count: int, seed: int) -> Tensor:
        """(N, C, H, W) uint8: up to `count` frames of the training split, drawn evenly and without repeats."""
        lengths = self.source.lengths[self.train_episodes]
        edges = np.cumsum(lengths)
        chosen = np.random.default_rng(seed).permutation(self.train_frames)[:count]
        which = np.searchsorted(edges, np.sort(chosen), side="right")
        starts = np.sort(chosen) - np.where(which > 0, edges[which - 1], 0)
        frames = [
            self.source.window(int(self.train_episodes[episode]), int(start), 1).observations[0]
            for episode, start in zip(which, starts, strict=True)
        ]
        return torch.from_numpy(np.stack(frames))


def validation_batches(
    source: EpisodeSource, config: TrainConfig, device: torch.device, ranks: Ranks | None = None
) -> list[Batch]:
    """Held-out batches, the same ones for the same data and configuration; of each, the rows of this process."""
    episodes = splits_for(source, config.seed)["validation"]
    rank, size = (0, 1) if ranks is None else (ranks.rank, ranks.size)
    sampler = WindowSampler(
        source, config.batch_size, config.sequence_length, episodes=episodes, seed=0, rank=rank, world_size=size
    )
    return [sampler.batch(index).to(device) for index in range(config.validation_batches)]
