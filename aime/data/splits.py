"""Train, validation and test episodes: seeded, disjoint, by whole episode, stored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aime.data.durable import disk_errors, write_file
from aime.data.errors import DataError
from aime.data.source import EpisodeSource

SPLITS = ("train", "validation", "test")
DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)


def split_episodes(
    n: int, seed: int = 0, fractions: Sequence[float] = DEFAULT_FRACTIONS
) -> dict[str, NDArray[np.int64]]:
    """Divide episodes 0..n-1 into disjoint train, validation and test sets.

    Every split with a positive fraction gets at least one episode; the training split takes the rest.

    Args:
        n: number of episodes.
        seed: the same n, seed and fractions give the same splits.
        fractions: of train, validation and test; they sum to 1.

    Returns:
        {"train", "validation", "test"}: sorted episode numbers.

    >>> {name: len(ids) for name, ids in split_episodes(50, seed=1).items()}
    {'train': 40, 'validation': 5, 'test': 5}
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions: expected three numbers >= 0 that sum to 1, found {tuple(fractions)}")
    wanted = sum(fraction > 0 for fraction in fractions)
    if n < wanted:
        raise ValueError(f"expected at least {wanted} episodes to split into {wanted} parts, found {n}")
    sizes = [max(1, round(n * fraction)) if fraction > 0 else 0 for fraction in fractions[1:]]
    while n - sum(sizes) < (1 if fractions[0] > 0 else 0):  # tiny n: rounding up must not eat the training split
        sizes[int(np.argmax(sizes))] -= 1
    if fractions[0] == 0:
        sizes[1] = n - sizes[0]
    order = np.random.default_rng(seed).permutation(n).astype(np.int64)
    edges = np.cumsum([n - sum(sizes), *sizes])[:-1]
    return {name: np.sort(part) for name, part in zip(SPLITS, np.split(order, edges), strict=True)}


def splits_for(
    source: EpisodeSource, seed: int = 0, fractions: Sequence[float] = DEFAULT_FRACTIONS
) -> dict[str, NDArray[np.int64]]:
    """The splits stored with the source, or, where it has none, `split_episodes` of its episodes."""
    stored: dict[str, NDArray[np.int64]] | None = getattr(source, "splits", None)
    return stored or split_episodes(len(source.lengths), seed, fractions)


def write_splits(path: str | Path, splits: Mapping[str, NDArray[np.int64]]) -> None:
    """Store splits as JSON, atomically (a reader sees the old file or the new one).

    Raises:
        DiskError: the file cannot be written.
    """
    path = Path(path)
    text = json.dumps({name: [int(i) for i in ids] for name, ids in splits.items()}) + "\n"
    with disk_errors(path):
        write_file(path, text.encode())


def splits_from_json(path: Path) -> dict[str, NDArray[np.int64]]:
    """What `write_splits` stored.

    Raises:
        FileNotFoundError: no such file.
        DataError: it cannot be read, or the splits are incomplete or overlap.
    """
    try:
        values = json.loads(path.read_bytes())
        splits = {name: np.asarray(values[name], np.int64).reshape(-1) for name in SPLITS}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(path, expected=f"JSON with episode lists {', '.join(SPLITS)}", found=repr(error)) from error
    check_disjoint(path, splits)
    return splits


def check_disjoint(path: str | Path, splits: Mapping[str, NDArray[np.int64]]) -> None:
    """Raise DataError where an episode appears twice."""
    ids, counts = np.unique(np.concatenate(list(splits.values())), return_counts=True)
    if (counts > 1).any():
        raise DataError(
            path,
            key="splits",
            expected="every episode in one split only",
            found=f"episodes {ids[counts > 1].tolist()} twice",
        )
