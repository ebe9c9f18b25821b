"""The replay: a growing store of whole episodes, in memory for training and on disk for good.

On disk it is what `aime collect` leaves while it collects: a directory ``NAME.h5.partial`` with a whole file of the
project's own format for each episode, so that `aime.data.open_source` (and with it `aime train`) reads it too.
State observations are stored as the bytes of their float32 numbers: an "image" of (1, O, 4).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aime.data import Window
from aime.data.durable import disk_errors, write_file
from aime.data.errors import DataError
from aime.data.hdf5 import HDF5Source
from aime.data.joining import file_image
from aime.data.layout import EPISODE_ROW, check_steps
from aime.data.segments import is_segment, segment_name
from aime.data.source import check_window
from aime.data.spec import EpisodeSpec
from aime.training.rehearsal import sent

FLOAT = 4  # bytes of a float32


@dataclass(frozen=True)
class Trajectory:
    """One whole episode of N steps; reward and continue of an index follow the action of that index.

    Attributes:
        observations: (N, C, H, W) uint8 frames, or (N, O) float32.
        actions: (N, A) float32.
        rewards, continues: (N,) float32.
        seed: of the environment that played it.
    """

    observations: NDArray[np.generic]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    continues: NDArray[np.float32]
    seed: int = 0

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(x.nbytes for x in (self.observations, self.actions, self.rewards, self.continues))


@dataclass(frozen=True)
class ReplayBatch:
    """B windows of T steps.

    Attributes:
        observations: (B, T, C, H, W) uint8 or (B, T, O) float32.
        actions: (B, T, A).
        rewards, continues: (B, T).
        episodes, starts: (B,) where they were cut.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    continues: Tensor
    episodes: Tensor
    starts: Tensor


def on_device(batch: ReplayBatch, device: torch.device) -> ReplayBatch:
    """A batch whose arrays are on a device, sent without waiting; where it was cut stays here."""
    if device.type == "cpu":
        return batch
    names = ("observations", "actions", "rewards", "continues")
    return replace(batch, **{name: sent(getattr(batch, name), device) for name in names})


def state_spec(size: int, action_size: int, **facts: object) -> EpisodeSpec:
    """The spec of episodes of observation vectors of ``size`` entries."""
    return EpisodeSpec(image_shape=(1, size, FLOAT), action_size=action_size, **facts)  # type: ignore[arg-type]


class Replay:
    """Whole episodes, bounded in bytes: past the bound the oldest are dropped, from memory and disk.

    An `aime.data.EpisodeSource`. Episodes keep their numbers for good; those that were dropped have length 0.

    Args:
        spec: of the episodes.
        directory: where they are kept, ending in ``.partial``; None keeps them in memory alone. What is there already
            is read.
        max_bytes: of the arrays in memory.
        states: observations are float32 vectors stored by `state_spec`.

    Raises:
        DataError: an episode on disk is damaged, or of another spec.
        DiskError: the directory cannot be made.
    """

    def __init__(
        self, spec: EpisodeSpec, directory: Path | None = None, *, max_bytes: int = 2 << 30, states: bool = False
    ) -> None:
        self.spec, self.path, self.max_bytes, self.states = spec, directory, max_bytes, states
        self.episodes: dict[int, Trajectory] = {}
        self.count = 0  # numbers given so far
        if directory is not None:
            with disk_errors(directory):
                directory.mkdir(parents=True, exist_ok=True)
            self._read(directory)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(E,) steps of each episode, 0 of those that were dropped."""
        held = self.episodes
        return np.array([len(held[i].actions) if i in held else 0 for i in range(self.count)], np.int64)

    @property
    def nbytes(self) -> int:
        """Memory that the episodes take."""
        return sum(episode.nbytes for episode in self.episodes.values())

    @property
    def steps(self) -> int:
        """Steps held."""
        return sum(len(episode.actions) for episode in self.episodes.values())

    def append(self, episode: Trajectory) -> int:
        """Store an episode, on disk first: when this returns, a kill cannot lose it. Returns its number.

        Raises:
            DataError: values that are not finite, out of bounds or of another shape; nothing has changed then.
            DiskError: no room on the disk, say. The episodes before it are kept.
        """
        self._check(episode)
        number = self.count
        if self.path is not None:
            file = self.path / segment_name(number)
            image = file_image(self.spec, body_masks=False, arrays=self._arrays(episode))
            with disk_errors(file, episode=number, safe=f"the {number} episodes before it are in {self.path}"):
                write_file(file, image)
        self.episodes[number], self.count = episode, number + 1
        while self.nbytes > self.max_bytes and len(self.episodes) > 1:
            self._drop(next(iter(self.episodes)))
        return number

    def truncate(self, count: int) -> None:
        """Forget the episodes from number ``count`` on: a resumed run plays them again, the same.

        Raises:
            DataError: fewer were stored than that.
        """
        if count > self.count:
            raise DataError(self.path or Path("replay"), expected=f"{count} episodes", found=f"{self.count}")
        for number in [n for n in self.episodes if n >= count]:
            self._drop(number)
        self.count = count

    def window(self, episode: int, start: int, length: int) -> Window:
        """Steps ``start`` to ``start + length - 1``; observations of states are the bytes that are stored."""
        check_window(self, episode, start, length)
        held, cut = self.episodes[episode], slice(start, start + length)
        frames = self._stored(held.observations[cut])
        return Window(frames, held.actions[cut], held.rewards[cut], held.continues[cut], episode=episode, start=start)

    def sample(
        self,
        batch: int,
        length: int,
        key: tuple[int, int],
        *,
        recent: int = 0,
        newest: int = 0,
        consecutive: int = 1,
    ) -> ReplayBatch:
        """Windows drawn evenly over all that fit; a pure function of the episodes held and of the arguments.

        Draws whose numbers are one after the other go on in the same episodes, as those of
        `aime.data.sampler.WindowSampler` do, ``consecutive`` of them while no episode comes or goes.

        Args:
            batch: B.
            length: T.
            key: seed and number of the draw.
            recent: how many of the windows, the first ones, are of the newest episodes alone.
            newest: how many these are.
            consecutive: draws in a row whose windows follow each other.

        Raises:
            ValueError: no episode is as long as ``length``.
        """
        numbers = [n for n, held in self.episodes.items() if len(held.actions) >= length]
        if not numbers:
            raise ValueError(f"replay: expected an episode of at least {length} steps, found none")
        block, part = divmod(key[1], consecutive)
        random = np.random.Generator(np.random.Philox(key=key[0], counter=[0, 0, 3, block]))
        lengths = np.array([len(self.episodes[n].actions) for n in numbers])
        windows = np.minimum(consecutive, lengths // length)  # that follow each other in an episode
        places = np.cumsum(lengths - length * windows + 1)
        drawn = random.integers(places[-1], size=batch)
        if recent and len(numbers) > newest:
            drawn[:recent] = random.integers(places[-newest - 1], places[-1], size=recent)
        rows = np.searchsorted(places, drawn, side="right")
        starts = drawn - np.where(rows > 0, places[rows - 1], 0) + length * (part % windows[rows])
        cuts = [(self.episodes[numbers[row]], slice(s, s + length)) for row, s in zip(rows, starts, strict=True)]

        def stack(name: str) -> Tensor:
            return torch.from_numpy(np.stack([getattr(held, name)[cut] for held, cut in cuts]))

        return ReplayBatch(
            observations=stack("observations"),
            actions=stack("actions"),
            rewards=stack("rewards"),
            continues=stack("continues"),
            episodes=torch.tensor([numbers[row] for row in rows]),
            starts=torch.from_numpy(starts),
        )

    def _check(self, episode: Trajectory) -> None:
        length, place = len(episode.actions), self.path or Path("replay")
        shape = (length, self.spec.image_shape[1]) if self.states else (length, *self.spec.image_shape)
        kinds = {
            "observations": (shape, "float32" if self.states else "uint8"),
            "actions": ((length, self.spec.action_size), "float32"),
            "rewards": ((length,), "float32"),
            "continues": ((length,), "float32"),
        }
        for name, (expected, dtype) in kinds.items():
            found = getattr(episode, name)
            if found.shape != expected or found.dtype != np.dtype(dtype) or not length:
                raise DataError(
                    place,
                    episode=self.count,
                    key=name,
                    expected=f"{dtype} {expected}, at least one step",
                    found=f"{found.dtype} {found.shape}",
                )
        check_steps(place, self.count, self.spec, {name: getattr(episode, name) for name in kinds})

    def _arrays(self, episode: Trajectory) -> dict[str, NDArray[np.generic]]:
        return {
            "observations": self._stored(episode.observations),
            "actions": episode.actions,
            "rewards": episode.rewards,
            "continues": episode.continues,
            "episodes": np.array([(0, len(episode.actions), episode.seed, 0)], EPISODE_ROW),
        }

    def _stored(self, observations: NDArray[np.generic]) -> NDArray[np.uint8]:
        """(N, C, H, W) uint8 as in the file."""
        if not self.states:
            return observations  # type: ignore[return-value]
        return np.ascontiguousarray(observations)[:, None, :, None].view(np.uint8)

    def _read(self, directory: Path) -> None:
        names = sorted(entry.name for entry in os.scandir(directory) if is_segment(entry.name))
        for name in names:
            with_file = HDF5Source(directory / name)
            try:
                if with_file.spec != self.spec:
                    raise DataError(directory / name, key="spec", expected="that of this run", found="another")
                cut = with_file.window(0, 0, int(with_file.lengths[0]))
                seed = int(with_file.rows["seed"][0])
            finally:
                with_file.close()
            observations: NDArray[np.generic] = cut.observations
            if self.states:
                observations = np.ascontiguousarray(cut.observations).view(np.float32)[:, 0, :, 0]
            number = int(name.removeprefix("episode_").removesuffix(".h5"))
            self.episodes[number] = Trajectory(observations, cut.actions, cut.rewards, cut.continues, seed)
            self.count = number + 1

    def _drop(self, number: int) -> None:
        del self.episodes[number]
        if self.path is not None:
            (self.path / segment_name(number)).unlink(missing_ok=True)
