"""Run directories: one trainer at a time, names that stay inside, links that are not followed, a log that survives."""

from __future__ import annotations

import json
import os

import pytest

from aime.locking import LockedError
from aime.training import TrainConfig, train
from aime.training.metric_log import JSONLines
from aime.training.run_directory import RunDirectory, default_path
from tests.training.toy import ToySource, make_model

QUIET = {"tensorboard": False, "show_progress": False}
SHORT = {"batch_size": 2, "sequence_length": 4, "steps": 1, "validation_batches": 1, "initial_frames": 4}


def test_a_second_trainer_is_refused_and_told_of_the_first(tmp_path) -> None:
    with (
        RunDirectory(tmp_path / "run").locked(),
        pytest.raises(LockedError, match=rf"run.*in use by process {os.getpid()}.*training"),
    ):
        train(make_model(), ToySource(), TrainConfig(**SHORT), tmp_path / "run", **QUIET)
    assert train(make_model(), ToySource(), TrainConfig(**SHORT), tmp_path / "run", **QUIET).finished
    assert not (tmp_path / "run" / ".trainer.lock").exists()


def test_a_run_directory_that_cannot_be_made_is_said_before_training(tmp_path) -> None:
    (tmp_path / "file").touch()
    model = make_model()
    with pytest.raises(OSError, match="file"):
        train(model, ToySource(), TrainConfig(**SHORT), tmp_path / "file" / "run", **QUIET)
    assert model.calls == 0


@pytest.mark.parametrize("name", ["../../x", "/etc", "..", "", "a/b", "a\0b", "\x1b[31m", "a" * 200, "-rf"])
def test_names_from_a_data_file_cannot_lead_elsewhere(name) -> None:
    for domain, task in ((name, "walk"), ("walker", name)):
        with pytest.raises(ValueError, match="say where to write") as refused:
            default_path(domain, task)
        assert "\x1b" not in str(refused.value)
    assert default_path("ball_in_cup", "catch-2.0", "-seed1").as_posix() == "runs/ball_in_cup-catch-2.0-seed1"


def test_overwrite_removes_links_and_not_what_they_lead_to(tmp_path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    run = tmp_path / "run"
    run.mkdir()
    (run / "weights").symlink_to(precious)
    (run / "checkpoints").symlink_to(precious)
    (run / "data.h5").touch()
    with pytest.raises(ValueError, match="found an earlier run"):
        train(make_model(), ToySource(), TrainConfig(**SHORT), run, **QUIET)
    train(make_model(), ToySource(), TrainConfig(**SHORT), run, overwrite=True, **QUIET)
    assert (precious / "file").exists() and list(precious.iterdir()) == [precious / "file"]
    assert not (run / "weights").is_symlink() and (run / "data.h5").exists()


def test_a_mistake_does_not_cost_the_run_that_was_to_be_overwritten(tmp_path) -> None:
    train(make_model(), ToySource(), TrainConfig(**SHORT), tmp_path, **QUIET)
    wrong = TrainConfig(**SHORT, best_metric="loss")
    with pytest.raises(ValueError, match="best_metric"):
        train(make_model(), ToySource(), wrong, tmp_path, overwrite=True, **QUIET)
    assert (tmp_path / "weights").is_dir() and (tmp_path / "checkpoints").is_dir()


def test_a_log_with_garbage_in_it_keeps_its_good_lines(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\x1b[31mgarbage\n[]\n{"step": 2}\n{"step": 9}\n{"step": 3, "cut')
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: line (2|3)"):
        log = JSONLines(path, resume_step=4)
    log.write(5, {"loss": 1.0})
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 5]
