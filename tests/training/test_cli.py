"""`aime train` and `python -m aime.world_model.train` on a few frames, with the real model made small."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

pytest.importorskip("tyro")

from aime.cli import main as aime
from aime.data import Episode, EpisodeSpec, EpisodeWriter
from aime.training import loop
from aime.world_model import DPGMMVariationalRecurrentAutoencoder
from aime.world_model.train import main as train_by_task

SMALL = ["--model.hidden-dim", "16", "--model.latent-dim", "4", "--model.encoder-channels", "8", "8", "8"]
SHORT = ["--train.batch-size", "2", "--train.sequence-length", "4", "--train.validation-batches", "1"]
QUIET = ["--no-progress", "--no-tensorboard", "--device", "cpu"]


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    path = tmp_path_factory.mktemp("episodes") / "cartpole_swingup.h5"
    rng = np.random.default_rng(0)
    spec = EpisodeSpec(image_shape=(3, 32, 32), action_size=1, domain="cartpole", task="swingup")
    with EpisodeWriter(path, spec) as writer:
        for _ in range(6):
            frames = rng.integers(0, 255, (12, 3, 32, 32), dtype=np.uint8)
            actions = rng.uniform(-1, 1, (12, 1)).astype(np.float32)
            writer.append(Episode(frames, actions, np.ones(12, np.float32), np.ones(12, np.float32)))
    return path


def test_train_overrides_resume_and_export(tmp_path, episodes, capsys) -> None:
    out = tmp_path / "run"
    common = ["train", "--data", str(episodes), "--out", str(out), *SMALL, *SHORT, *QUIET]
    options = ["--train.balancer-options", "alpha_steps", "2", "rescale", "unit", "--train.lambda-gram", "0.3"]
    assert aime([*common, "--steps", "2", *options]) == 0
    assert "trained 2 steps" in capsys.readouterr().out
    written = json.loads((out / "config.json").read_text())
    assert written["model"]["hidden_dim"] == 16 and written["model"]["encoder_channels"] == [8, 8, 8]
    assert written["model"]["action_size"] == 1 and written["model"]["image_size"] == 32
    assert written["train"]["balancer_options"] == {"alpha_steps": 2, "rescale": "unit"}
    assert written["train"]["lambda_gram"] == 0.3 and written["train"]["steps"] == 2
    assert written["train"]["seconds"] is None  # the flag replaces the preset's end
    provenance = json.loads((out / "run.json").read_text())
    assert (provenance["preset"], provenance["seed"], provenance["task"]) == ("laptop", 1, "cartpole-swingup")
    assert DPGMMVariationalRecurrentAutoencoder.from_pretrained(out / "weights").config.hidden_dim == 16
    assert aime([*common, "--steps", "2"]) == 1
    assert "--resume" in capsys.readouterr().err
    capsys.readouterr()
    assert aime([*common, "--steps", "3", "--resume"]) == 0
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [2, 3]
    assert aime([*common, "--steps", "1", "--overwrite"]) == 0
    assert json.loads((out / "timing.json").read_text())["frames_trained"] == 8


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, episodes, capsys, monkeypatch) -> None:
    out = tmp_path / "run"
    common = ["train", "--data", str(episodes), "--out", str(out), *SMALL, *SHORT, *QUIET, "--steps", "3"]
    step = loop.step_once

    def interrupted(session, batch) -> None:
        step(session, batch)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # impatience changes nothing

    monkeypatch.setattr(loop, "step_once", interrupted)
    assert aime(common) == 130
    assert "stopped by SIGINT after 1 steps" in (said := capsys.readouterr().out)
    assert "continue with the same command and --resume" in said and not (out / "weights").exists()
    monkeypatch.undo()
    assert aime([*common, "--resume"]) == 0
    assert "trained 3 steps" in capsys.readouterr().out
    (out / "weights" / "config.json").write_text("{")
    assert aime(["evaluate", str(out), "--data", str(episodes), "--out", str(tmp_path / "figures")]) == 1
    assert "weights/config.json: expected" in capsys.readouterr().err
    assert not list((tmp_path / "figures").iterdir())


def test_a_resumed_run_tells_what_is_set_otherwise(tmp_path, episodes, capsys) -> None:
    out = tmp_path / "run"
    common = ["train", "--data", str(episodes), "--out", str(out), *SMALL, *SHORT, *QUIET]
    assert aime([*common, "--steps", "1"]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    for changes, status, told in (
        (["--preset", "tier1"], 2, "--preset 'laptop' (now 'tier1')"),
        (["--model.hidden-dim", "24"], 2, "--model.hidden-dim 16 (now 24)"),
        (["--train.batch-size", "3", "--seed", "2"], 2, "--train.batch-size 2 (now 3), --seed 1 (now 2)"),
        (["--train.weight-average", "0"], 2, "--train.weight-average 0.99 (now 0.0)"),
        ([], 0, "finished before, after 1 steps: nothing was trained or written"),
    ):
        assert aime([*common, "--steps", "1", *changes, "--resume"]) == status
        printed = capsys.readouterr()
        assert told in (printed.err if status else printed.out) and "other settings" not in printed.out
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert aime([*common, "--steps", "2", "--train.learning-rate", "1e-3", "--resume"]) == 0
    said = capsys.readouterr().out
    assert (
        "resumed with other settings: steps 1 -> 2, learning_rate 0.002 -> 0.001\n" in said
        and "trained 2 steps" in said
    )


def test_what_is_refused_leaves_no_directory(tmp_path, episodes, capsys) -> None:
    common = ["train", "--data", str(episodes), "--out", str(tmp_path / "runs" / "run"), *SMALL, *SHORT, *QUIET]
    for options in (["--train.cuda-graph", "on"], ["--train.best-metric", "none"], ["--train.shard", "True"]):
        assert aime([*common, "--steps", "1", *options]) == 2
        assert options[0].removeprefix("--train.").replace("-", "_") in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_line(tmp_path, episodes, capsys) -> None:
    common = ["train", "--data", str(episodes), "--out", str(tmp_path / "run"), *QUIET]
    assert aime([*common, "--seconds", "3", "--minutes", "1"]) == 2
    assert "one of --seconds and --minutes" in capsys.readouterr().err
    assert aime([*common, "--steps", "1", "--model.action-size", "6"]) == 1
    assert "action_size: the model expects 6, found 1 in the data" in capsys.readouterr().err


def test_train_by_task(tmp_path, episodes, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train_by_task(["--domain", "reacher", "--task", "easy", "--data", str(episodes.parent)]) == 1
    error = capsys.readouterr().err
    assert "reacher_easy" in error and "aime collect --domain reacher --task easy" in error
    arguments = ["--domain", "cartpole", "--task", "swingup", "--data", str(episodes.parent), "--device", "cpu"]
    assert train_by_task([*arguments, "--batch_size", "8", "--num_epochs", "0.1", "--seed", "3"]) == 1
    assert "at least 16 steps" in capsys.readouterr().err  # the preset's window is longer than these episodes
