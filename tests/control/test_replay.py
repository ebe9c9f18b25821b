"""The replay: what is stored, in which bounds, and what survives."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from aime.control import replay as module
from aime.control.replay import Replay, Trajectory, state_spec
from aime.data import EpisodeSource, open_source
from aime.data.errors import DataError, DiskError
from aime.data.spec import EpisodeSpec

BOUNDS = {"action_minimum": (-1.0,), "action_maximum": (1.0,)}
PIXELS = EpisodeSpec(image_shape=(3, 8, 8), action_size=1, **BOUNDS)  # type: ignore[arg-type]


def episode(number: int, length: int = 12, size: int | None = None) -> Trajectory:
    """A random episode; of states where ``size`` is given."""
    random = np.random.default_rng(number)
    observations = (
        random.integers(0, 256, (length, 3, 8, 8), dtype=np.uint8)
        if size is None
        else random.normal(size=(length, size)).astype(np.float32)
    )
    actions = random.uniform(-1, 1, (length, 1)).astype(np.float32)
    rewards = random.uniform(0, 2, length).astype(np.float32)
    return Trajectory(observations, actions, rewards, np.ones(length, np.float32), seed=number)


def test_states_come_back_from_disk_bit_for_bit(tmp_path: Path) -> None:
    spec, path = state_spec(5, 1, **BOUNDS), tmp_path / "replay.h5.partial"
    first = Replay(spec, path, states=True)
    for number in range(3):
        first.append(episode(number, size=5))
    again = Replay(spec, path, states=True)
    assert again.count == 3
    for number in range(3):
        assert np.array_equal(again.episodes[number].observations, first.episodes[number].observations)
    one, other = first.sample(4, 6, (7, 3)), again.sample(4, 6, (7, 3))
    assert torch.equal(one.observations, other.observations)
    assert one.observations.shape == (4, 6, 5)


def test_other_readers_open_the_directory(tmp_path: Path) -> None:
    replay = Replay(PIXELS, tmp_path / "replay.h5.partial")
    replay.append(episode(0))
    replay.append(episode(1))
    assert isinstance(replay, EpisodeSource)
    other = open_source(tmp_path / "replay.h5.partial")
    assert np.array_equal(other.window(1, 2, 5).observations, replay.window(1, 2, 5).observations)


def test_windows_lie_in_episodes_and_every_place_is_drawn(tmp_path: Path) -> None:
    replay = Replay(PIXELS)
    for number, length in enumerate((5, 8, 3)):
        replay.append(episode(number, length))
    batch = replay.sample(400, 4, (0, 0))
    places = {(int(e), int(s)) for e, s in zip(batch.episodes, batch.starts, strict=True)}
    assert places == {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)}
    for row in range(5):
        held = replay.episodes[int(batch.episodes[row])]
        start = int(batch.starts[row])
        assert np.array_equal(batch.rewards[row].numpy(), held.rewards[start : start + 4])


def test_consecutive_draws_go_on_in_the_same_episodes() -> None:
    replay = Replay(PIXELS)
    for number, length in enumerate((13, 8, 5)):  # three windows of 4 in a row fit, two, and one
        replay.append(episode(number, length))
    first, second, third = (replay.sample(100, 4, (0, k), consecutive=3) for k in (3, 4, 5))
    assert set(first.episodes.tolist()) == {0, 1, 2}
    moved = torch.tensor([[0, 4, 8], [0, 4, 0], [0, 0, 0]])[first.episodes]
    for part, batch in enumerate((first, second, third)):
        assert torch.equal(batch.episodes, first.episodes)
        assert torch.equal(batch.starts, first.starts + moved[:, part])
    assert not torch.equal(replay.sample(100, 4, (0, 6), consecutive=3).episodes, first.episodes)


def test_recent_windows_are_of_the_newest_episodes() -> None:
    replay = Replay(PIXELS)
    for number in range(4):
        replay.append(episode(number))
    batch = replay.sample(300, 4, (0, 0), recent=200, newest=2)
    assert set(batch.episodes[:200].tolist()) == {2, 3}
    assert set(batch.episodes[200:].tolist()) == {0, 1, 2, 3}
    few = replay.sample(300, 4, (0, 0), recent=200, newest=9)
    assert set(few.episodes[:200].tolist()) == {0, 1, 2, 3}


def test_the_oldest_are_dropped_beyond_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "replay.h5.partial"
    replay = Replay(PIXELS, path, max_bytes=3 * episode(0).nbytes)
    for number in range(5):
        replay.append(episode(number))
    assert sorted(replay.episodes) == [2, 3, 4]
    assert replay.lengths.tolist() == [0, 0, 12, 12, 12]
    again = Replay(PIXELS, path)
    assert sorted(again.episodes) == [2, 3, 4]
    assert again.count == 5


def test_rewards_that_are_nan_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "replay.h5.partial"
    replay = Replay(PIXELS, path)
    replay.append(episode(0))
    bad = episode(1)
    bad.rewards[3] = np.nan
    with pytest.raises(DataError, match=r"rewards.*finite values.*step 3"):
        replay.append(bad)
    assert replay.count == Replay(PIXELS, path).count == 1


def test_a_full_disk_is_one_error_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "replay.h5.partial"
    replay = Replay(PIXELS, path)
    replay.append(episode(0))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_file", full)
        with pytest.raises(DiskError, match="the 1 episodes before it are in"):
            replay.append(episode(1))
    assert replay.append(episode(1)) == 1
    assert Replay(PIXELS, path).count == 2


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "replay.h5.partial"
    replay = Replay(PIXELS, path)
    for number in range(3):
        replay.append(episode(number))
    replay.truncate(1)
    assert Replay(PIXELS, path).count == 1
    with pytest.raises(DataError, match="expected 2 episodes"):
        replay.truncate(2)


def test_episodes_of_another_task_are_refused(tmp_path: Path) -> None:
    Replay(PIXELS, tmp_path / "replay.h5.partial").append(episode(0))
    other = EpisodeSpec(image_shape=(3, 8, 8), action_size=1, domain="walker", **BOUNDS)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="expected that of this run"):
        Replay(other, tmp_path / "replay.h5.partial")
