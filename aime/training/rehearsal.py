"""Latent rehearsal in training: what is remembered of the episodes, and which parts of it are gone through again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aime.data import Batch
from aime.encoder_decoder import Posterior
from aime.ranks import Ranks
from aime.training.config import TrainConfig
from aime.world_model import RememberedSequences

SHORTEST = 4
"""Frames of the shortest window that is worth a rehearsal."""
SEQUENCES_A_THREAD = 128
"""Sequences whose products keep a thread of a CPU busy."""


@runtime_checkable
class RehearsingModel(Protocol):
    """A model that can be trained on remembered posteriors; see `aime.world_model.rehearsal`."""

    def rehearse(
        self,
        sequences: RememberedSequences,
        seen: int,
        rolled: int | None = None,
        *,
        autocast: torch.dtype | None = None,
        generator: torch.Generator | None = None,
        ranks: Ranks | None = None,
    ) -> dict[str, Tensor]:
        """One optimizer step on them, the first ``rolled`` of them (all when None) rolled out from frame ``seen``."""
        ...


class PosteriorMemory:
    """The posterior of every training frame, as the encoder saw it last, and the action after it.

    Windows of any length can be drawn from it, not only those of the batches: with its (2 D + A) numbers a frame, all
    episodes of a run are remembered at a hundredth of what their pixels take.

    Args:
        episodes: (E,) numbers of the training episodes.
        lengths: (E,) their frames.
        latent_size: D.
        action_size: A.
        device: where the tables are.
        seed: of the draws; draw k is a pure function of (seed, k), so that a resumed run draws the same.
    """

    def __init__(
        self,
        episodes: NDArray[np.int64],
        lengths: NDArray[np.int64],
        latent_size: int,
        action_size: int,
        device: torch.device,
        seed: int,
    ) -> None:
        self.row_of = {int(episode): row for row, episode in enumerate(episodes)}
        self.device, self.seed = device, seed
        shape = (len(episodes), int(lengths.max()))
        self.posteriors = torch.zeros(*shape, 2 * latent_size, device=device)
        self.actions = torch.zeros(*shape, action_size, device=device)
        self.filled = torch.zeros(shape, dtype=torch.bool)

    def store(self, batch: Batch, posterior: Posterior, ranks: Ranks | None = None) -> None:
        """Remember the posteriors (B, T, D) of a batch; those that are not finite are left out.

        Every rank of a distributed run remembers those of all, so that all draw alike.
        """
        assert batch.episodes is not None
        assert batch.starts is not None
        mean, log_scale = posterior.mean.detach().float(), posterior.log_scale.detach().float()
        actions, episodes, starts = batch.actions.float(), batch.episodes, batch.starts
        if ranks is not None:
            sizes = [mean.shape[-1], mean.shape[-1], actions.shape[-1]]
            mean, log_scale, actions = ranks.gather(torch.cat([mean, log_scale, actions], -1)).split(sizes, -1)
            episodes, starts = ranks.gather(torch.stack([episodes, starts], 1)).unbind(1)
        rows = torch.tensor([self.row_of[int(episode)] for episode in episodes])[:, None]  # (B, 1)
        times = starts[:, None] + torch.arange(mean.shape[1])  # (B, T)
        rows = rows.expand_as(times)
        self.filled[rows, times] = True
        rows, times = sent(rows, self.device), sent(times, self.device)
        found = torch.cat([mean, log_scale], -1)  # (B, T, 2 D)
        known = torch.isfinite(found).all(-1, keepdim=True)
        self.posteriors[rows, times] = torch.where(known, found, self.posteriors[rows, times])
        self.actions[rows, times] = actions

    def draw(self, count: int, length: int, index: int) -> RememberedSequences | None:
        """Draw ``index``: ``count`` windows of ``length`` frames, of half as many where too few are remembered yet.

        Too few are fewer than an eighth of ``count``. None where not even windows of 4 frames are remembered.
        """
        random = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 1, index]))
        length = min(length, self.filled.shape[1])
        while length >= SHORTEST:
            runs = torch.nn.functional.pad(self.filled.int().cumsum(1), (1, 0))  # (E, L + 1)
            places = ((runs[:, length:] - runs[:, :-length]) == length).nonzero()  # (N, 2)
            if len(places) >= max(count // 8, 1):
                chosen = places[torch.from_numpy(random.integers(len(places), size=count))]
                rows = sent(chosen[:, :1].expand(-1, length), self.device)  # (B, T)
                times = sent(chosen[:, 1:] + torch.arange(length), self.device)  # (B, T)
                mean, log_scale = self.posteriors[rows, times].chunk(2, -1)  # (B, T, D) each
                return RememberedSequences(mean, log_scale, self.actions[rows, times])
            length //= 2
        return None

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint."""
        return {"posteriors": self.posteriors, "actions": self.actions, "filled": self.filled}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`."""
        for name, kept in self.tensors().items():
            kept.copy_(tensors[name])


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of the host's tensor on the device, for which the host does not wait: from page-locked memory."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def rehearse(
    model: RehearsingModel,
    memory: PosteriorMemory,
    config: TrainConfig,
    step: int,
    generator: torch.Generator,
    autocast: torch.dtype | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Tensor]:
    """The rehearsals that follow step number ``step``: metrics of the last, none before there is enough to rehearse."""
    metrics: dict[str, Tensor] = {}
    together = {} if ranks is None else {"ranks": ranks}
    with threads_for(config.rehearsal_batch, memory.device):
        for k in range(config.rehearsals):
            index = step * config.rehearsals + k
            sequences = memory.draw(config.rehearsal_batch, config.rehearsal_length, index)
            if sequences is None:
                break
            length = sequences.actions.shape[1]
            random = np.random.Generator(np.random.Philox(key=memory.seed, counter=[0, 0, 2, index]))
            seen = int(random.integers(min(config.rehearsal_seen, length - 1), length))
            rolled = round(config.rehearsal_rolled * len(sequences.actions))
            metrics = model.rehearse(sequences, seen, rolled, autocast=autocast, generator=generator, **together)
    return metrics


@contextmanager
def threads_for(sequences: int, device: torch.device) -> Iterator[None]:
    """At most one thread for every SEQUENCES_A_THREAD sequences, on a CPU.

    A rollout is a chain of hundreds of small products. Threads that share them wait for each other longer than they
    work: two took 1.5 to 5 times the CPU seconds of one, and beside other jobs four times its wall clock too.
    """
    before = torch.get_num_threads()
    wanted = min(before, max(1, sequences // SEQUENCES_A_THREAD))
    if device.type != "cpu" or wanted == before:
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
