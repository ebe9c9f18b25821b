"""Splits, samplers, the cache and the prefetching thread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from aime.data import (
    Batch,
    DataError,
    EpisodeSource,
    FrameCache,
    HDF5Source,
    PrefetchLoader,
    Window,
    WindowDataset,
    WindowSampler,
    cached,
    collate,
    epoch_batches,
    open_source,
    read_splits,
    split_episodes,
    splits_for,
    write_splits,
)
from tests.data.conftest import LENGTHS


@pytest.fixture
def source(episode_file: Path) -> EpisodeSource:
    return open_source(episode_file)


def _same(left: Batch, right: Batch) -> bool:
    assert left.episodes is not None
    assert right.episodes is not None
    assert left.starts is not None
    assert right.starts is not None
    return (
        torch.equal(left.observations, right.observations)
        and torch.equal(left.actions, right.actions)
        and torch.equal(left.episodes, right.episodes)
        and torch.equal(left.starts, right.starts)
    )


@pytest.mark.parametrize("n", [3, 4, 5, 10, 151])
def test_splits_are_disjoint_complete_and_seeded(n: int) -> None:
    splits = split_episodes(n, seed=5)
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(n))
    assert all(len(ids) for ids in splits.values())
    assert all(np.array_equal(ids, split_episodes(n, seed=5)[name]) for name, ids in splits.items())
    if n > 5:
        assert not np.array_equal(splits["train"], split_episodes(n, seed=6)["train"])


def test_split_fractions() -> None:
    splits = split_episodes(10, fractions=(0.5, 0.5, 0.0))
    assert [len(ids) for ids in splits.values()] == [5, 5, 0]
    assert [len(ids) for ids in split_episodes(7, fractions=(0.0, 0.3, 0.7)).values()] == [0, 2, 5]
    with pytest.raises(ValueError, match="sum to 1"):
        split_episodes(10, fractions=(0.5, 0.2, 0.2))
    with pytest.raises(ValueError, match="at least 3 episodes"):
        split_episodes(2)


def test_splits_are_stored_with_the_file_and_as_json(source: EpisodeSource, tmp_path: Path) -> None:
    stored = splits_for(source, seed=99)
    expected = split_episodes(len(LENGTHS), seed=3)  # the seed the file was written with, not the one asked for now
    assert all(np.array_equal(stored[name], expected[name]) for name in expected)
    write_splits(tmp_path / "splits.json", stored)
    again = read_splits(tmp_path / "splits.json")
    assert all(np.array_equal(again[name], stored[name]) for name in stored)
    (tmp_path / "splits.json").write_text('{"train": [0, 1], "validation": [1], "test": [2]}')
    with pytest.raises(DataError, match=r"episodes \[1\] twice"):
        read_splits(tmp_path / "splits.json")


def test_batches_hold_aligned_windows_of_the_given_episodes(source: EpisodeSource) -> None:
    batch = next(WindowSampler(source, 16, 6, episodes=[1, 3], seed=2))
    assert batch.observations.shape == (16, 6, 3, 12, 10)
    assert batch.observations.dtype == torch.uint8
    assert batch.body_masks is not None
    assert batch.body_masks.shape == (16, 6, 12, 10)
    assert batch.physics is not None
    assert batch.physics.shape == (16, 6, 17)
    assert batch.episodes is not None
    assert set(batch.episodes.tolist()) == {1, 3}
    assert torch.equal(batch.observations[:, :, 0, 0, 0].float(), batch.actions[:, :, 0])
    assert torch.equal(batch.actions[:, :, 1], batch.episodes[:, None].expand(16, 6).float())
    assert torch.equal(batch.rewards, batch.actions[:, :, 0] + 0.5)


def test_every_window_is_drawn_equally_often(source: EpisodeSource) -> None:
    sampler = WindowSampler(source, 200, 10)
    assert sampler.window_count == sum(length - 9 for length in LENGTHS)
    drawn = np.concatenate([sampler.indices(k) for k in range(100)])
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == sampler.window_count
    expected = 20_000 / sampler.window_count  # 208; a binomial count strays by its 14.4 * 5 once in a million draws
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_consecutive_batches_follow_each_other_in_their_episodes(source: EpisodeSource) -> None:
    sampler = WindowSampler(source, 300, 6, consecutive=3, seed=3)
    fits = np.minimum(3, np.asarray(LENGTHS) // 6)  # windows in a row of each episode
    first, second, third, other = (sampler.indices(k) for k in (6, 7, 8, 9))
    assert set(first[:, 0]) == set(range(len(LENGTHS)))
    for part, batch in ((1, second), (2, third)):
        np.testing.assert_array_equal(batch[:, 0], first[:, 0])
        np.testing.assert_array_equal(batch[:, 1], first[:, 1] + 6 * (part % fits[first[:, 0]]))
    assert (third[:, 1] + 6 <= np.asarray(LENGTHS)[third[:, 0]]).all()
    assert not np.array_equal(other, first)
    stretches = np.asarray(LENGTHS) - 6 * fits + 1
    drawn = np.concatenate([sampler.indices(3 * k) for k in range(50)])
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == stretches.sum()
    expected = 15_000 / stretches.sum()
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    with pytest.raises(ValueError, match="consecutive: expected at least 1 batch, found 0"):
        WindowSampler(source, 4, 6, consecutive=0)


def test_resuming_continues_exactly(source: EpisodeSource) -> None:
    sampler = WindowSampler(source, 4, 5, seed=7)
    for _ in range(3):
        next(sampler)
    state = sampler.state_dict()
    rest = [next(sampler) for _ in range(4)]
    resumed = WindowSampler(source, 4, 5, seed=0)
    resumed.load_state_dict(state)
    assert all(_same(batch, next(resumed)) for batch in rest)
    other = WindowSampler(source, 8, 5)
    with pytest.raises(ValueError, match="expected batch_size 4, found 8"):
        other.load_state_dict(state)


def test_ranks_share_one_global_batch(source: EpisodeSource) -> None:
    whole = WindowSampler(source, 6, 5, seed=1).indices(11)
    parts = [WindowSampler(source, 6, 5, seed=1, rank=rank, world_size=3).indices(11) for rank in range(3)]
    np.testing.assert_array_equal(np.stack(parts, 1).reshape(whole.shape), whole)  # rank r has rows r, r + 3, ...
    with pytest.raises(ValueError, match="multiple of world_size"):
        WindowSampler(source, 5, 5, world_size=2)


def test_episodes_shorter_than_the_window_are_named(source: EpisodeSource) -> None:
    with pytest.raises(DataError, match=r"scripted\.h5: episode 2, actions: expected at least 17 steps .* found 16"):
        WindowSampler(source, 4, 17)
    assert WindowSampler(source, 4, 17, episodes=[0, 1]).window_count == 4 + 17
    with pytest.raises(ValueError, match=r"episodes in 0\.\.4, found 0\.\.5"):
        WindowSampler(source, 4, 3, episodes=[0, 5])


def test_prefetching_changes_nothing_but_the_waiting(source: EpisodeSource) -> None:
    plain = WindowSampler(source, 4, 5, seed=7)
    with PrefetchLoader(WindowSampler(source, 4, 5, seed=7)) as loader:
        assert all(_same(next(plain), next(loader)) for _ in range(5))
        state = loader.state_dict()
        assert state == plain.state_dict()  # though the thread is ahead
        following = [next(loader) for _ in range(3)]
        loader.load_state_dict(state)
        assert all(_same(batch, next(loader)) for batch in following)
        assert loader.stall_seconds > 0


def test_an_error_in_the_prefetching_thread_reaches_the_consumer(source: EpisodeSource) -> None:
    class Broken(FrameCache):
        def window(self, episode: int, start: int, length: int) -> Window:
            raise DataError("broken.h5", episode=episode, expected="frames", found="none")

    with PrefetchLoader(WindowSampler(Broken(source), 2, 3)) as loader, pytest.raises(DataError, match=r"broken\.h5"):
        next(loader)


def test_the_cache_is_the_source(source: EpisodeSource) -> None:
    cache = FrameCache(source, episodes=[0, 1])
    direct, held = WindowSampler(source, 8, 6, seed=4), WindowSampler(cache, 8, 6, seed=4)
    assert all(_same(next(direct), next(held)) for _ in range(5))
    assert cache.spec == source.spec
    with pytest.raises(IndexError, match=r"scripted\.h5: episode 0: expected a window inside its 20 steps"):
        cache.window(0, 18, 3)
    assert isinstance(cached(source), FrameCache)
    assert isinstance(cached(source, limit_bytes=1000), HDF5Source)


def test_an_epoch_sees_every_window_once(source: EpisodeSource) -> None:
    batches = list(epoch_batches(source, 3, 8, episodes=[1, 2]))
    starts = [
        (int(e), int(s))
        for b in batches
        if b.episodes is not None and b.starts is not None
        for e, s in zip(b.episodes, b.starts, strict=True)
    ]
    assert starts == [(1, 0), (1, 8), (1, 16), (1, 24), (2, 0), (2, 8)]
    assert [len(batch) for batch in batches] == [3, 3]


def test_the_window_dataset_feeds_a_data_loader(source: EpisodeSource) -> None:
    dataset = WindowDataset(source, 10, stride=1)
    assert len(dataset) == sum(length - 9 for length in LENGTHS)
    assert (dataset[11].episode, dataset[11].start) == (1, 0)
    assert dataset[-1].start == 15
    with pytest.raises(IndexError, match="expected a window in 0"):
        dataset[len(dataset)]
    loader = torch.utils.data.DataLoader(dataset, batch_size=7, collate_fn=collate, num_workers=1)  # type: ignore[arg-type]
    assert sum(len(batch) for batch in loader) == len(dataset)


def test_collate_refuses_mixtures(source: EpisodeSource) -> None:
    with pytest.raises(ValueError, match=r"lengths \[3, 4\]"):
        collate([source.window(0, 0, 3), source.window(0, 0, 4)])
    bare = Window(
        *(getattr(source.window(0, 0, 3), name) for name in ("observations", "actions", "rewards", "continues"))
    )
    with pytest.raises(ValueError, match="missing in 1 of 2"):
        collate([source.window(0, 0, 3), bare])
