"""Checkpoint directories: retention, the best, and refusing to run code."""

from __future__ import annotations

import errno
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch

import aime
from aime.files import DamagedFileError
from aime.training import Checkpoint, CheckpointDirectory
from aime.training.checkpoint import CheckpointSchemaError


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


class Payload:
    """Unpickled, it makes a directory."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["checkpoint.json", "tensors_00000_of_00001.safetensors", ".metadata"])
def test_no_file_of_a_checkpoint_is_ever_unpickled(tmp_path, name) -> None:
    mark = tmp_path / "hacked"
    directory = CheckpointDirectory(tmp_path / "checkpoints")
    directory.save(1, state(1.0))
    if name == ".metadata":  # as in a checkpoint of schema 1
        (directory.directory(1) / "checkpoint.json").unlink()
    (directory.directory(1) / name).write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(ValueError, match="step_00000001"):
        directory.load()
    assert not mark.exists()


def test_nothing_that_reads_files_unpickles() -> None:
    """Neither pickle nor torch.load, which uses it, is named where a run is read (envs pickles for its workers)."""
    package = Path(aime.__file__).parent
    rooms = [package / room for room in ("training", "evaluation", "data", "multi_task_learning")]
    files = [*package.glob("*.py"), *(file for room in rooms for file in room.rglob("*.py"))]
    assert len(files) > 50
    assert [file for file in files if re.search(r"\bpickle\.|import pickle|torch\.load\(", file.read_text())] == []


def test_a_checkpoint_of_the_former_schema_is_named_as_such(tmp_path) -> None:
    former = tmp_path / "step_00000004"
    former.mkdir()
    (former / "state.json").write_text('{"schema": 1}')
    with pytest.raises(CheckpointSchemaError, match="expected a checkpoint of schema 2, found schema 1"):
        CheckpointDirectory(tmp_path).load()


def damage(directory: CheckpointDirectory, step: int, how: str) -> None:
    index = directory.directory(step) / "checkpoint.json"
    tensors = directory.directory(step) / "tensors_00000_of_00001.safetensors"
    content = bytearray(tensors.read_bytes())
    if how == "bit":
        content[-1] ^= 4
        tensors.write_bytes(content)
    elif how == "cut":
        tensors.write_bytes(content[: len(content) // 2])
    elif how == "longer":
        tensors.write_bytes(content + b"\0")
    elif how == "no tensors":
        tensors.unlink()
    elif how == "a directory":
        tensors.unlink()
        tensors.mkdir()
    elif how == "a pipe":
        tensors.unlink()
        os.mkfifo(tensors)
    elif how == "empty":
        shutil.rmtree(directory.directory(step))
        directory.directory(step).mkdir()
    elif how == "index digit":
        index.write_text(re.sub(r'"value": [0-9.]+', '"value": 77.0', index.read_text()))
    elif how == "index cut":
        index.write_text(index.read_text()[:100])
    elif how == "index garbage":
        index.write_bytes(b"\xff\xfe[[[[")
    elif how == "index deep":
        index.write_text("[" * 100_000)
    elif how == "index nan":
        index.write_text(re.sub(r'"value": [0-9.]+', '"value": NaN', index.read_text()))
    elif how == "another step":
        shutil.rmtree(directory.directory(step))
        shutil.copytree(directory.directory(directory.steps()[0]), directory.directory(step))
    else:
        raise AssertionError(how)


DAMAGES = (
    *("bit", "cut", "longer", "no tensors", "a directory", "a pipe", "empty", "another step"),
    *("index digit", "index cut", "index garbage", "index deep", "index nan"),
)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_newest_checkpoint_is_skipped_and_named(tmp_path, how) -> None:
    directory = CheckpointDirectory(tmp_path)
    directory.save(3, state(3.0))
    directory.save(5, state(5.0))
    damage(directory, 5, how)
    with pytest.warns(UserWarning, match=r"skipped a damaged checkpoint, going on from step 3: .*step_00000005"):
        loaded = directory.load()
    assert loaded.values == {"value": 3.0}
    with pytest.raises(DamagedFileError, match="step_00000005"):
        directory.load(5)


def test_without_a_whole_checkpoint_one_error_names_them_all(tmp_path) -> None:
    directory = CheckpointDirectory(tmp_path)
    directory.save(3, state(3.0))
    directory.save(5, state(5.0))
    damage(directory, 3, "bit")
    damage(directory, 5, "index cut")
    with pytest.raises(DamagedFileError, match=r"one whole checkpoint at least.*step_00000005.*step_00000003"):
        directory.load()


def test_damaged_checkpoints_are_set_aside_so_that_their_steps_are_saved_again(tmp_path) -> None:
    directory = CheckpointDirectory(tmp_path)
    directory.save(3, state(3.0))
    for _ in range(2):
        directory.save(5, state(5.0))
        damage(directory, 5, "empty")
        directory.set_aside_after(3)
        assert directory.steps() == [3]
    directory.save(5, state(6.0))
    assert directory.load().values == {"value": 6.0}
    assert len(list(tmp_path.glob("damaged_*_step_00000005"))) == 2  # whoever wants them has them


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("where", ["tensors", "index"])
def test_a_save_that_fails_names_the_file_and_leaves_nothing(tmp_path, monkeypatch, number, where) -> None:
    directory = CheckpointDirectory(tmp_path)
    directory.save(1, state(1.0))

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("safetensors.torch.save_file" if where == "tensors" else "json.JSONEncoder.encode", fail)
    if where == "index":
        monkeypatch.setattr("json.dumps", fail)
    with pytest.raises(OSError, match=os.strerror(number)) as error:
        directory.save(2, state(2.0))
    assert "step_00000002" in str(error.value) or ".writing_00000002" in str(error.value)
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_00000001"]
    assert directory.load().values == {"value": 1.0}


def test_tensors_that_share_memory_come_back_as_they_were(tmp_path) -> None:
    whole = torch.arange(6.0)
    tensors = {"whole": whole, "part": whole[2:4], "tied": whole, "transposed": whole.view(2, 3).T}
    directory = CheckpointDirectory(tmp_path)
    directory.save(1, Checkpoint(tensors, {}))
    for name, tensor in directory.load().tensors.items():
        assert torch.equal(tensor, tensors[name]), name


def test_links_are_not_followed_when_old_checkpoints_go(tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    directory = CheckpointDirectory(tmp_path / "checkpoints", keep=1)
    directory.path.mkdir()
    (directory.path / "step_00000000").symlink_to(elsewhere)
    directory.save(1, state(1.0))
    assert directory.steps() == [1] and (elsewhere / "precious").exists()
