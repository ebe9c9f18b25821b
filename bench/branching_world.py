"""A world that branches: a ball falls, and at one frame turns right or left by a coin that nothing shows beforehand.

    python -m bench.branching_world data/branching.h5 [--episodes 240] [--seed 0]

What a model can know of it is known exactly: before the fork everything, at the fork the coin's probabilities, after it
everything again. No environment is simulated, and the action, of which there has to be one, does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from aime.data import Episode, EpisodeSpec, EpisodeWriter, JointSpec

SIDE, LENGTH, RADIUS = 32, 24, 3.0
FORK = 12
"""The last frame at which the ball is where it would be on either branch."""
RIGHT = 0.7
"""Probability of the right branch."""
BACKGROUND, BALL = 40, 220
START = (13, 18)
"""First and last column in which the ball starts."""


def path(start: NDArray[np.int64], right: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Centres (N, LENGTH, 2) as (x, y) in pixels of balls that start in columns (N,) and turn right or left (N,)."""
    times = np.arange(LENGTH)
    turned = np.maximum(times - FORK, 0) * np.where(right, 1, -1)[:, None]  # (N, LENGTH)
    x = start[:, None] + turned
    return np.stack([x, np.broadcast_to(4 + times, x.shape)], -1).astype(np.float64)


def cover(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share (..., SIDE, SIDE) of each pixel that the ball covers; its edge is a pixel wide."""
    grid = np.arange(SIDE)
    distance = np.hypot(grid - centres[..., None, None, 0], grid[:, None] - centres[..., None, None, 1])
    covered: NDArray[np.float64] = np.clip(RADIUS + 0.5 - distance, 0.0, 1.0)
    return covered


def draw(covered: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Frames uint8 (..., 3, SIDE, SIDE) of what the ball covers."""
    grey = np.rint(BACKGROUND + (BALL - BACKGROUND) * covered).astype(np.uint8)
    return np.repeat(grey[..., None, :, :], 3, axis=-3)


def make_world(target: Path, episodes: int, seed: int) -> None:
    """Write an episode file; the same count and seed give the same episodes.

    The physics holds the column as ``qpos``; a branch can be read off it at the last frame.
    """
    random = np.random.default_rng(seed)
    start = random.integers(START[0], START[1] + 1, episodes)
    right = random.random(episodes) < RIGHT
    centres = path(start, right)
    covered = cover(centres)
    spec = EpisodeSpec(
        image_shape=(3, SIDE, SIDE),
        action_size=1,
        domain="branching",
        task="ball",
        joints=(JointSpec("column", "slide"),),
    )
    with EpisodeWriter(target, spec, body_masks=True, overwrite=True) as writer:
        for i in range(episodes):
            column = centres[i, :, 0]
            writer.append(
                Episode(
                    observations=draw(covered[i]),
                    actions=np.zeros((LENGTH, 1), np.float32),
                    rewards=np.zeros(LENGTH, np.float32),
                    continues=np.ones(LENGTH, np.float32),
                    physics=np.stack([column, np.gradient(column)], 1),
                    body_masks=covered[i] > 0.5,
                    seed=seed,
                    reset_index=i,
                )
            )


@dataclass
class World:
    """Write the branching world's episodes."""

    out: Annotated[Path, tyro.conf.Positional]
    """Episode file to write; one that is there is replaced."""
    episodes: int = 240
    """How many."""
    seed: int = 0
    """Of columns and coins."""

    def run(self) -> int:
        """Write them."""
        make_world(self.out, self.episodes, self.seed)
        print(f"{self.episodes} episodes of {LENGTH} frames in {self.out}")
        return 0


if __name__ == "__main__":
    raise SystemExit(tyro.cli(World).run())
