"""Which windows a training run sees, and in which order.

Batch k is a pure function of (seed, k): Philox, a counter-based generator, is keyed with both. So the state of a
sampler is one number, resuming is exact, a prefetching thread may run ahead without spoiling the state, and every rank
of a distributed run can draw the same global batch and take its own part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aime.data.errors import DataError
from aime.data.source import EpisodeSource, source_name
from aime.data.window import Batch, Window, collate


class WindowSampler:
    """Infinite seeded batches of random windows, every window of every episode equally likely.

    With ``consecutive`` = C > 1, C batches in a row hold windows that follow each other, and every stretch of C T steps
    is equally likely to begin with: what is remembered of the batches then makes up whole stretches of one age. An
    episode of fewer steps has as many windows in a row as fit into it, over and over.

    Args:
        source: where the windows come from.
        batch_size: B, windows in a (global) batch.
        length: T, steps in a window.
        episodes: episode numbers to draw from (a split); all by default.
        seed: of the order.
        consecutive: C, batches in a row whose windows follow each other.
        rank, world_size: of this process, which yields windows rank, rank + world_size, ... of the global batch. That
            batch is the same for any number of processes.

    Raises:
        DataError: an episode is shorter than the window.

    The state counts batches that were handed out, so ``load_state_dict`` continues with exactly the next one.
    """

    def __init__(
        self,
        source: EpisodeSource,
        batch_size: int,
        length: int,
        *,
        episodes: ArrayLike | None = None,
        seed: int = 0,
        consecutive: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if consecutive < 1:
            raise ValueError(f"consecutive: expected at least 1 batch, found {consecutive}")
        if batch_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
            raise ValueError(
                f"expected batch_size >= 1, a multiple of world_size, and 0 <= rank < world_size, "
                f"found batch_size {batch_size}, rank {rank}, world_size {world_size}"
            )
        self.source, self.batch_size, self.length, self.seed = source, batch_size, length, seed
        self.rank, self.world_size = rank, world_size
        self.episodes = _checked_episodes(source, episodes, length)
        self.consecutive = consecutive
        lengths = source.lengths[self.episodes]
        self._windows = np.minimum(consecutive, lengths // length)  # (E,) that follow each other in an episode
        # Stretch w belongs to the first episode with edge > w.
        self._edges: NDArray[np.int64] = np.cumsum(lengths - length * self._windows + 1)
        self._window_count = int((lengths - length + 1).sum())
        self.position = 0

    @property
    def window_count(self) -> int:
        """Distinct windows there are to draw."""
        return self._window_count

    def indices(self, k: int) -> NDArray[np.int64]:
        """(B / world_size, 2): episode and start of each window of batch k."""
        block, part = divmod(k, self.consecutive)
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, block]))
        stretches = generator.integers(int(self._edges[-1]), size=self.batch_size)
        stretches = stretches[self.rank :: self.world_size]
        which = np.searchsorted(self._edges, stretches, side="right")
        starts = stretches - np.where(which > 0, self._edges[which - 1], 0)
        return np.stack([self.episodes[which], starts + self.length * (part % self._windows[which])], axis=1)

    def batch(self, k: int) -> Batch:
        """Batch k; does not move the position."""
        return collate([self.source.window(int(e), int(s), self.length) for e, s in self.indices(k)])

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self.batch(self.position)
        self.position += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        """What `load_state_dict` needs to continue with the same batches."""
        return {
            "seed": self.seed,
            "position": self.position,
            "window_count": self.window_count,
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where the state was taken; ValueError where it belongs to other data or another batch size."""
        for name in ("window_count", "batch_size"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"{source_name(self.source)}: cannot resume the sampler: "
                    f"expected {name} {state[name]}, found {getattr(self, name)}"
                )
        self.seed, self.position = state["seed"], state["position"]


def epoch_batches(
    source: EpisodeSource, batch_size: int, length: int, *, episodes: ArrayLike | None = None, stride: int | None = None
) -> Iterator[Batch]:
    """Every window once, in order, for evaluation; the last batch may be smaller.

    Args:
        source: where the windows come from.
        batch_size: windows in a batch.
        length: T, steps in a window.
        episodes: episode numbers (a split); all by default.
        stride: steps between two starts; ``length`` (no overlap) by default.
    """
    windows = WindowDataset(source, length, episodes=episodes, stride=stride or length)
    for first in range(0, len(windows), batch_size):
        yield collate([windows[i] for i in range(first, min(first + batch_size, len(windows)))])


class WindowDataset:
    """Map-style view: every window of the given episodes, by number. Fits torch.utils.data.DataLoader with `collate`.

    Episodes keep their own lengths (none is truncated to the shortest).
    """

    def __init__(
        self, source: EpisodeSource, length: int, *, episodes: ArrayLike | None = None, stride: int = 1
    ) -> None:
        if stride < 1:
            raise ValueError(f"stride: expected at least 1, found {stride}")
        self.source, self.length, self.stride = source, length, stride
        self.episodes = _checked_episodes(source, episodes, length)
        self._edges: NDArray[np.int64] = np.cumsum((source.lengths[self.episodes] - length) // stride + 1)

    def __len__(self) -> int:
        return int(self._edges[-1])

    def __getitem__(self, index: int) -> Window:
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected a window in 0..{len(self) - 1}, found {index}")
        index %= len(self)
        which = int(np.searchsorted(self._edges, index, side="right"))
        within = index - (int(self._edges[which - 1]) if which else 0)
        return self.source.window(int(self.episodes[which]), within * self.stride, self.length)


def _checked_episodes(
    source: EpisodeSource, episodes: ArrayLike | Sequence[int] | None, length: int
) -> NDArray[np.int64]:
    """Episode numbers as an array, each known and at least ``length`` long."""
    if length < 1:
        raise ValueError(f"length: expected a window of at least 1 step, found {length}")
    count = len(source.lengths)
    chosen = np.arange(count, dtype=np.int64) if episodes is None else np.asarray(episodes, np.int64).reshape(-1)
    if not len(chosen):
        raise ValueError(f"{source_name(source)}: expected at least one episode to draw windows from, found none")
    if chosen.min() < 0 or chosen.max() >= count:
        raise ValueError(
            f"{source_name(source)}: expected episodes in 0..{count - 1}, found {chosen.min()}..{chosen.max()}"
        )
    short = chosen[source.lengths[chosen] < length]
    if len(short):
        raise DataError(
            source_name(source),
            episode=int(short[0]),
            key="actions",
            expected=f"at least {length} steps (the window)",
            found=f"{source.lengths[short[0]]}",
        )
    return chosen
