"""Checkpoint directories: retention, the best, and refusing to run code."""

from __future__ import annotations

import os
import pickle

import pytest
import torch

from aime.training import Checkpoint, CheckpointDirectory


def state(value: float) -> Checkpoint:
    tensors = {
        "model/weight": torch.full((2, 3, 4, 4), value).contiguous(memory_format=torch.channels_last),
        "model/half": torch.full((3,), value, dtype=torch.bfloat16),
        "scalar": torch.tensor(int(value)),
        "empty": torch.zeros(0),
    }
    return Checkpoint(tensors, {"value": value})


def test_round_trip(tmp_path) -> None:
    directory = CheckpointDirectory(tmp_path / "checkpoints")
    with pytest.raises(FileNotFoundError, match="found none"):
        directory.load()
    directory.save(3, state(7.0))
    loaded = directory.load()
    for name, tensor in state(7.0).tensors.items():
        assert torch.equal(loaded.tensors[name], tensor) and loaded.tensors[name].dtype == tensor.dtype
    assert loaded.values == {"value": 7.0}
    with pytest.raises(FileNotFoundError, match="expected a checkpoint of step 4, found 3"):
        directory.load(4)


def test_the_last_and_the_best_are_kept(tmp_path) -> None:
    directory = CheckpointDirectory(tmp_path, keep=2)
    for step in range(1, 7):
        directory.save(step, state(step), best=step in (1, 2))
    assert directory.steps() == [2, 5, 6]
    assert directory.best() == 2 and directory.latest() == 6
    assert directory.load(2).values == {"value": 2}
    directory.save(6, state(0.0), best=True)  # already there: only marked
    assert directory.best() == 6 and directory.load().values == {"value": 6}


def test_what_a_killed_save_left_is_ignored_and_removed(tmp_path) -> None:
    directory = CheckpointDirectory(tmp_path)
    directory.save(1, state(1.0))
    (tmp_path / ".writing_00000002_123").mkdir()
    assert directory.latest() == 1
    directory.save(3, state(3.0))
    assert not (tmp_path / ".writing_00000002_123").exists()


def test_an_index_that_runs_code_is_refused(tmp_path) -> None:
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "hacked"),)

    directory = CheckpointDirectory(tmp_path / "checkpoints")
    directory.save(1, state(1.0))
    (directory.directory(1) / ".metadata").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.mkdir"):
        directory.load()
    assert not (tmp_path / "hacked").exists()
