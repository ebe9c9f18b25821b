"""Latent rehearsal in training: what is remembered of the episodes, and which parts of it are gone through again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aime.data import Batch
from aime.encoder_decoder import Posterior
from aime.ranks import Ranks
from aime.sharding import is_divided
from aime.threads import threads
from aime.training.config import TrainConfig
from aime.world_model import RememberedSequences

SHORTEST = 4
"""Frames of the shortest window that is worth a rehearsal."""
SEQUENCES_A_THREAD = 128
"""Sequences whose products keep a thread of a CPU busy."""


class Rehearser(Protocol):
    """What takes a whole rehearsal."""

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


@runtime_checkable
class RehearsingModel(Rehearser, Protocol):
    """A model that can be trained on remembered posteriors; see `aime.world_model.rehearsal`."""

    def rehearsal_gradient(
        self,
        sequences: RememberedSequences,
        seen: int,
        rolled: int | None = None,
        *,
        autocast: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The first half of `rehearse`: it reads the parameters and changes nothing, so it may run beside a step."""
        ...

    def rehearsal_update(self, found: Any, ranks: Ranks | None = None) -> dict[str, Tensor]:
        """The second half: one optimizer step along what `rehearsal_gradient` found."""
        ...


class PosteriorMemory:
    """The posterior of every training frame, as the encoder saw it last, and the action after it.

    Windows of any length can be drawn from it, not only those of the batches: with its (2 D + A) numbers a frame, all
    episodes of a run are remembered at a hundredth of what their pixels take. But the encoder moves on, and a window
    that is put together of what it said at different times shows a motion that never was: with an ``age``, only those
    windows are drawn whose frames were all seen in the last so many batches.

    Args:
        episodes: (E,) numbers of the training episodes.
        lengths: (E,) their frames.
        latent_size: D.
        action_size: A.
        device: where the tables are.
        seed: of the draws; draw k is a pure function of (seed, k), so that a resumed run draws the same.
        age: batches after which a posterior is not drawn any more; 0: never.
    """

    def __init__(
        self,
        episodes: NDArray[np.int64],
        lengths: NDArray[np.int64],
        latent_size: int,
        action_size: int,
        device: torch.device,
        seed: int,
        age: int = 0,
    ) -> None:
        self.row_of = {int(episode): row for row, episode in enumerate(episodes)}
        self.device, self.seed, self.age = device, seed, age
        shape = (len(episodes), int(lengths.max()))
        self.posteriors = torch.zeros(*shape, 2 * latent_size, device=device)
        self.actions = torch.zeros(*shape, action_size, device=device)
        self.stored = torch.zeros(shape, dtype=torch.int64)
        """(E, L) number of the batch, from 1 on, that a frame was last seen in; 0: never."""

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
        self.stored[rows, times] = self.stored.max() + 1
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
        length = min(length, self.stored.shape[1])
        newest = int(self.stored.max())
        fresh = self.stored > (max(newest - self.age, 0) if self.age else 0)  # (E, L)
        runs = torch.nn.functional.pad(fresh.int().cumsum(1), (1, 0))  # (E, L + 1)
        while length >= SHORTEST:
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
        return {"posteriors": self.posteriors, "actions": self.actions, "stored": self.stored}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`."""
        for name, kept in self.tensors().items():
            kept.copy_(tensors[name])


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of the host's tensor on the device, for which the host does not wait: from page-locked memory."""
    if device.type == "cpu":
        return tensor
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)  # an expanded one cannot be pinned


@dataclass(frozen=True)
class Drawn:
    """A rehearsal that is about to be taken: the arguments of `RehearsingModel.rehearse`."""

    sequences: RememberedSequences
    seen: int
    rolled: int
    generator: torch.Generator


class Rehearsals:
    """The rehearsals that go with each step, on a CPU the first of them beside it.

    On a CPU the gradient of a step's first rehearsal is taken at the parameters that the step begins with, and stepped
    along when the step is done. Where there is a thread to spare it is found on that thread while the images take the
    others: a rollout is a chain of hundreds of small products, and threads that share them wait for each other longer
    than they work (two took 1.5 to 5 times the CPU seconds of one, and beside other jobs four times its wall clock
    too). What is computed does not depend on it. Further rehearsals, and all of them on a GPU, follow one by one.

    Args:
        model: whose recurrence and prior are trained.
        memory: what is rehearsed.
        config: how much.
        autocast: dtype of mixed precision; none when absent.
        ranks: of a distributed run, in which all processes take the same rehearsals.
        generator: for rehearsals that all follow the step, their source of randomness. Without it the first is beside
            the step, and each draws as a function of the memory's seed and its own number.
    """

    def __init__(
        self,
        model: RehearsingModel,
        memory: PosteriorMemory,
        config: TrainConfig,
        autocast: torch.dtype | None = None,
        ranks: Ranks | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.model, self.memory, self.config = model, memory, config
        self.autocast, self.ranks, self.generator = autocast, ranks, generator
        self.threads = max(1, config.rehearsal_batch // SEQUENCES_A_THREAD)
        """Threads of a CPU that keep busy with it."""
        self._worker: ThreadPoolExecutor | None = None
        self.divided = any(is_divided(parameter) for parameter in getattr(model, "trainable", []))
        """Whether the model's parameters are gathered for a rehearsal, by all processes in the order of one thread."""

    @contextmanager
    def beside(self, step: int) -> Iterator[Callable[[], Any]]:
        """While step number ``step`` runs: a function that waits for its first rehearsal's gradient and gives it.

        It is None where too little is remembered, or nothing is rehearsed beside the step. No parameter may move before
        the function has returned.
        """
        index, left = step * self.config.rehearsals, torch.get_num_threads() - self.threads
        if self.generator is not None or not self.config.rehearsals:
            yield lambda: None
        elif left < 1 or self.divided:
            found = self._gradient(index)
            yield lambda: found
        else:
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, "rehearsal", torch.set_num_threads, (self.threads,))
            future = self._worker.submit(self._gradient, index)
            try:
                with threads(left):
                    yield future.result
            finally:
                wait([future])

    def take(self, step: int, found: Any, model: Rehearser | None = None) -> dict[str, Tensor]:
        """Step along the first rehearsal's gradient, if there is one, then take the others with the model.

        Returns:
            metrics of the last, none where too little is remembered.
        """
        together = {} if self.ranks is None else {"ranks": self.ranks}
        with threads(self.threads):  # which is enough for the optimizer too
            metrics = {} if found is None else self.model.rehearsal_update(found, self.ranks)
            for k in range(0 if self.generator is not None else 1, self.config.rehearsals):
                drawn = self._draw(step * self.config.rehearsals + k)
                if drawn is None:
                    break
                metrics = (model or self.model).rehearse(
                    drawn.sequences,
                    drawn.seen,
                    drawn.rolled,
                    autocast=self.autocast,
                    generator=drawn.generator,
                    **together,
                )
        return metrics

    def _gradient(self, index: int) -> Any:
        """Gradient of rehearsal ``index``, a function of it, of what is remembered and of the parameters alone."""
        drawn = self._draw(index)
        if drawn is None:
            return None
        return self.model.rehearsal_gradient(
            drawn.sequences, drawn.seen, drawn.rolled, autocast=self.autocast, generator=drawn.generator
        )

    def _draw(self, index: int) -> Drawn | None:
        config = self.config
        sequences = self.memory.draw(config.rehearsal_batch, config.rehearsal_length, index)
        if sequences is None:
            return None
        length = sequences.actions.shape[1]
        random = np.random.Generator(np.random.Philox(key=self.memory.seed, counter=[0, 0, 2, index]))
        seen = int(random.integers(min(config.rehearsal_seen, length - 1), length))
        rolled = round(config.rehearsal_rolled * len(sequences.actions))
        generator = self.generator
        if generator is None:
            generator = torch.Generator(self.memory.device).manual_seed(int(random.integers(1 << 62)))
        return Drawn(sequences, seen, rolled, generator)
