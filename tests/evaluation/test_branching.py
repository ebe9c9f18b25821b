"""The branching world says nothing before its fork, and its scores know a calibrated ensemble from a certain one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from aime.data import open_source
from bench.branching import CONTEXT, HORIZONS, SAMPLES, Scene, branches, fair_energy, knowing, score_rollouts
from bench.branching_world import FORK, LENGTH, RIGHT, SIDE, cover, draw, make_world, path


def scene(count: int) -> Scene:
    random = np.random.default_rng(1)
    start, right = random.integers(13, 19, count), random.random(count) < RIGHT
    covered = cover(path(start, right))
    return Scene(torch.from_numpy(draw(covered)), torch.from_numpy(covered > 0.5), start, right)


def test_the_file_follows_from_its_seed_and_shows_nothing_before_the_fork(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_world(tmp_path / f"{name}.h5", 40, seed=3)
    first, second = (open_source(tmp_path / f"{name}.h5") for name in ("a", "b"))
    columns: dict[int, dict[bool, np.ndarray]] = {}
    for episode in range(40):
        window, again = first.window(episode, 0, LENGTH), second.window(episode, 0, LENGTH)
        assert np.array_equal(window.observations, again.observations)
        assert window.physics is not None
        column = window.physics[:, 0]
        columns.setdefault(int(column[0]), {})[bool(column[-1] > column[0])] = window.observations
    pairs = [found for found in columns.values() if len(found) == 2]
    assert pairs
    for found in pairs:
        assert np.array_equal(found[True][: FORK + 1], found[False][: FORK + 1])
        assert not np.array_equal(found[True][FORK + 1], found[False][FORK + 1])


def test_who_knows_the_coin_is_calibrated_and_ahead_of_who_is_sure_or_blurs() -> None:
    world = scene(200)
    known = knowing(world)
    left, right = (
        torch.from_numpy(draw(cover(path(world.start, np.full(200, side))))[:, CONTEXT:, 0]).float()[:, None]
        for side in (False, True)
    )
    certain = right.expand(-1, SAMPLES, -1, -1, -1)
    blurred = ((left + right) / 2).expand(-1, SAMPLES, -1, -1, -1)
    scores = {name: score_rollouts(x, world) for name, x in (("known", known), ("blurred", blurred), ("sure", certain))}
    last = HORIZONS[-1]
    assert scores["known"][1]["energy"] == 0.0
    for other in ("blurred", "sure"):
        for figure in ("crps", "energy"):
            assert scores["known"][last][figure] < scores[other][last][figure]  # type: ignore[operator]
    assert scores["known"][last]["spread_ratio"] == pytest.approx(1.0, abs=0.1)
    assert scores["sure"][last]["spread_ratio"] == pytest.approx(0.0, abs=1e-6)
    assert scores["known"][last]["right"] == pytest.approx(RIGHT, abs=0.03)
    assert scores["known"][last]["neither"] == pytest.approx(0.0, abs=1e-6)
    assert scores["sure"][last]["left"] == pytest.approx(0.0, abs=1e-6)
    assert scores["blurred"][last]["neither"] == pytest.approx(1.0)


def test_an_empty_picture_is_on_no_branch() -> None:
    empty = torch.full((2, 3, SIDE, SIDE), 40.0)
    assert branches(empty, np.array([15, 16]), 25.0) == {"right": 0.0, "left": 0.0, "neither": 1.0}


def test_energy_of_one_value_is_the_distance_less_half_the_mean_pair() -> None:
    samples = torch.tensor([1.0, 3.0, 8.0]).reshape(1, 3, 1, 1)
    target, mask = torch.tensor([[[2.0]]]), torch.ones(1, 1, 1, dtype=torch.bool)
    expected = (1 + 1 + 6) / 3 - 0.5 * (2 + 7 + 5) / 3
    assert float(fair_energy(samples, target, mask)) == pytest.approx(expected)
