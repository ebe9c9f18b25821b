"""DMCVBDataset: its arguments and aliases, alignment, stacking, splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aime.data import Episode, EpisodeSpec, EpisodeWriter
from aime.training import DMCVBDataset
from aime.training.dataset import find_episodes


def write_episodes(path, lengths=(20, 33, 16, 47, 25, 18), domain="walker", task="walk") -> None:
    """Every frame of episode e at step t is t everywhere, with e in its first pixel; action t is t / 100."""
    spec = EpisodeSpec(image_shape=(3, 16, 12), action_size=2, domain=domain, task=task)
    with EpisodeWriter(path, spec, split_seed=3) as writer:
        for episode, length in enumerate(lengths):
            steps = np.arange(length)
            frames = np.broadcast_to(steps[:, None, None, None], (length, 3, 16, 12)).astype(np.uint8).copy()
            frames[:, :, 0, 0] = episode
            writer.append(
                Episode(
                    frames,
                    np.stack([steps / 100, np.full(length, episode)], 1).astype(np.float32),
                    (steps * 2).astype(np.float32),
                    (steps < length - 1).astype(np.float32),
                )
            )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("episodes")
    write_episodes(path / "walker_walk.h5")
    write_episodes(path / "walker-walk-medium.h5", (20, 20, 20))
    return path


def test_windows_are_aligned(directory) -> None:
    dataset = DMCVBDataset(directory, "walker", "walk", sequence_length=5, frame_stack=1, normalize_images=False)
    assert dataset.action_dim == 2 and dataset.min_episode_length >= 16
    for index in (0, len(dataset) // 2, len(dataset) - 1):
        item = dataset[index]
        start, steps = item["start"], torch.arange(5)
        assert item["observations"].shape == (5, 3, 16, 12) and item["observations"].dtype == torch.uint8
        assert torch.equal(item["observations"][:, 0, 5, 5].long(), start + steps)
        assert torch.allclose(item["actions"][:, 0], (start + steps) / 100)
        assert torch.allclose(item["rewards"], (start + steps) * 2.0)
        assert (item["observations"][:, 0, 0, 0] == item["episode"]).all()
        assert item["done"] is item["dones"]
    assert dataset[len(dataset) - 1]["done"].tolist() == [False] * 4 + [True]


def test_frames_are_stacked_newest_last(directory) -> None:
    dataset = DMCVBDataset(directory, "walker", "walk", sequence_length=4, frame_stack=3, normalize_images=False)
    item = dataset[0]
    assert item["start"] == 2 and item["observations"].shape == (4, 9, 16, 12)
    assert item["observations"][:, ::3, 5, 5].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]
    assert torch.allclose(item["actions"][:, 0], torch.tensor([2, 3, 4, 5]) / 100)


def test_normalised_and_resized(directory) -> None:
    item = DMCVBDataset(directory, "walker", "walk", img_height=8, img_width=8, frame_stack=1)[0]
    assert item["observations"].shape == (10, 3, 8, 8) and item["observations"].dtype == torch.float32
    assert item["observations"].min() >= -1
    assert torch.allclose(item["observations"][3, 0, 4, 4], torch.tensor(3 / 127.5 - 1))
    bigger = DMCVBDataset(directory, "walker", "walk", img_height=32, img_width=24, frame_stack=1)[0]
    assert bigger["observations"].shape == (10, 3, 32, 24)


def test_splits_are_disjoint_and_aliases_mean_the_same(directory) -> None:
    splits = {
        name: {DMCVBDataset(directory, "walker", "walk", split=name)[i]["episode"] for i in (0, -1)}
        for name in ("train", "validation", "test")
    }
    assert not splits["train"] & splits["validation"] and not splits["train"] & splits["test"]
    assert not splits["validation"] & splits["test"]
    left = DMCVBDataset(root=directory, domain="walker", task="walk", split="eval")
    right = DMCVBDataset(data_path=directory, environment="walker-walk", split="validation", video_length=10)
    assert len(left) == len(right) and torch.equal(left[0]["observations"], right[0]["observations"])


def test_transform_and_policy_level(directory) -> None:
    dataset = DMCVBDataset(directory, "walker", "walk", "medium", frame_stack=3, transform=lambda item: item["start"])
    assert dataset.path.name == "walker-walk-medium.h5" and dataset[0] == 2


def test_errors(directory) -> None:
    with pytest.raises(FileNotFoundError, match=r"walker_run\.h5|walker_run .*found walker"):
        find_episodes(directory, "walker", "run")
    with pytest.raises(FileNotFoundError, match="expected one HDF5 file, found walker"):
        find_episodes(directory)
    with pytest.raises(FileNotFoundError, match="found none"):
        find_episodes(directory / "nowhere")
    with pytest.raises(TypeError, match="did you mean frame_stack"):
        DMCVBDataset(directory, "walker", "walk", frame_stak=2)
    with pytest.raises(TypeError, match="expected data_dir"):
        DMCVBDataset()
    with pytest.raises(ValueError, match="split: expected one of train"):
        DMCVBDataset(directory, "walker", "walk", split="dev")
