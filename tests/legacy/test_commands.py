"""The commands of the original's documents: training, evaluation and pictures from one entry point, and the scripts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro

from aime import cli
from aime.training.step_weights import find_step, load_model
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, evaluate, train
from aime.world_model.config import PRESETS
from tests.training.test_documented_trainer import write_walk
from tests.world_model.conftest import SMALL

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with episodes of humanoid walk."""
    path = tmp_path_factory.mktemp("project")
    (path / "data").mkdir()
    write_walk(path / "data" / "humanoid_walk.h5", actions=3, length=24, episodes=8)
    return path


@pytest.fixture(autouse=True)
def _in_place(place, monkeypatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.delenv("AIME_DATA_PATH", raising=False)
    small = {name: value for name, value in SMALL.items() if name not in ("image_size", "action_size")}
    monkeypatch.setitem(PRESETS, "pillars", {**small, "image_size": 32})


@pytest.fixture(scope="module")
def run(place) -> Path:
    """A run of four steps as the documents start it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        small = {name: value for name, value in SMALL.items() if name not in ("image_size", "action_size")}
        patch.setitem(PRESETS, "pillars", {**small, "image_size": 32})
        line = "--env humanoid-walk --batch-size 4 --sequence-length 8 --max-steps 4 --device cpu"
        sizes = "--latent-dim 7 --max-components 5 --learning-rate 1e-4"
        assert train.main(f"{line} {sizes} --visualize-attention --save-visualizations".split()) == 0
    return place / "runs" / "humanoid-walk-seed-1"


def test_the_documented_flags_train_as_they_say(run) -> None:
    model = load_model(run)
    assert (model.config.latent_dim, model.config.max_components, model.config.action_size) == (7, 5, 3)
    step = find_step(run / "checkpoints")
    assert step is not None and step.step == 4
    from aime.files import read_json

    trained = read_json(run / "config.json")["train"]
    assert (trained["batch_size"], trained["sequence_length"], trained["learning_rate"]) == (4, 8, 1e-4)


def test_pictures_are_written(run) -> None:
    from PIL import Image

    attention = np.asarray(Image.open(run / "visualizations" / "attention.png"))
    assert attention.shape[0] == (2 + SMALL["num_slots"]) * 72 and attention.shape[1] == 8 * 72
    assert (run / "visualizations" / "results.png").is_file()


def test_domain_task_and_seed(capsys) -> None:
    assert train.main(["--domain", "walker", "--task", "walk", "--seed", "1"]) == 1
    assert "aime collect --domain walker --task walk" in capsys.readouterr().err
    assert train.main(["--env", "humanoid"]) == 2
    assert "expected DOMAIN-TASK, such as humanoid-walk" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["step", "run", "export", "state_dict"])
def test_a_checkpoint_is_evaluated(what, run, tmp_path, capsys) -> None:
    paths = {"step": run / "checkpoints" / "step_00000004", "run": run, "export": run / "weights"}
    if what == "state_dict":
        paths[what] = tmp_path / "model.pt"
        torch.save({"model_state_dict": load_model(run).state_dict(), "epoch": 3}, paths[what])
    line = "--env humanoid-walk --batch-size 4 --sequence-length 8 --device cpu --latent-dim 7 --max-components 5"
    weights = {file: file.read_bytes() for file in (run / "weights").iterdir()}
    assert train.main([*line.split(), "--load-checkpoint", str(paths[what]), "--eval-only"]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert np.isfinite(float(printed["total_loss"])) and np.isfinite(float(printed["psnr"]))
    assert {file: file.read_bytes() for file in (run / "weights").iterdir()} == weights


def test_training_goes_on_from_a_checkpoint(run, tmp_path) -> None:
    line = "--env humanoid-walk --batch-size 4 --sequence-length 8 --max-steps 1 --learning-rate 1e-8 --device cpu"
    step = str(run / "checkpoints" / "step_00000004")
    assert train.main([*line.split(), "--load-checkpoint", step, "--save-dir", str(tmp_path / "more")]) == 0
    before, after = load_model(step).state_dict(), load_model(tmp_path / "more").state_dict()
    torch.testing.assert_close(after["mean_image"], before["mean_image"], rtol=0, atol=0)
    torch.testing.assert_close(
        after["prior.component_net.network.0.weight"], before["prior.component_net.network.0.weight"]
    )


def test_a_step_is_exported_and_evaluated_by_itself(run, capsys) -> None:
    checkpoint = run / "checkpoints" / "step_00000004"
    options = "--no-report --protocol.context 3 --protocol.horizons 1 2 --protocol.samples 2 --device cpu"
    assert evaluate.main([str(checkpoint), "--data", "data/humanoid_walk.h5", *options.split()]) == 0
    root = run / "exports" / "step_00000004"
    assert (root / "metrics.json").is_file()
    exported = DPGMMVariationalRecurrentAutoencoder.from_pretrained(root / "weights")
    for name, value in load_model(checkpoint).state_dict().items():
        torch.testing.assert_close(exported.state_dict()[name], value, rtol=0, atol=0)


def test_wrong_checkpoints_are_named(run, tmp_path, capsys) -> None:
    line = "--env humanoid-walk --device cpu --eval-only --load-checkpoint"
    assert train.main([*line.split(), str(tmp_path)]) == 1
    assert "expected exported weights, a run with checkpoints" in capsys.readouterr().err
    torch.save({"model_state_dict": {"w": torch.zeros(1)}}, tmp_path / "other.pt")
    assert train.main([*line.split(), str(tmp_path / "other.pt")]) == 1
    assert "expected the weights of this preset" in capsys.readouterr().err
    (tmp_path / "text.pt").write_text("no tensors")
    assert train.main([*line.split(), str(tmp_path / "text.pt")]) == 1
    assert "expected tensors that torch.save wrote" in capsys.readouterr().err
    assert train.main([*line.split(), str(run), "--latent-dim", "9"]) == 2
    assert "expected no other sizes than the checkpoint's (latent_dim 7)" in capsys.readouterr().err


def test_the_tests_that_the_documents_name_are_where_the_page_says() -> None:
    page = (ROOT / "docs" / "migration.md").read_text()
    _, _, table = page.partition("| documents | here |")
    rows = [line for line in table.split("\n\n")[0].splitlines() if "tests/" in line]
    assert len(rows) == 8
    for row in rows:
        for name in row.split("|")[2].split(","):
            assert (ROOT / name.strip().strip("`")).exists(), name


# ---------------------------------------------------------------------- scripts

SCRIPTS = ROOT / "scripts"
STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*"
[ "$1" = collect ] || exit 0
while [ $# -gt 1 ]; do
    [ "$1" != --out ] || { mkdir -p "$(dirname "$2")"; : > "$2"; }
    shift
done
"""


@pytest.fixture(scope="module")
def venv(tmp_path_factory) -> Path:
    """An environment whose programs say how they were called."""
    path = tmp_path_factory.mktemp("venv")
    (path / "bin").mkdir()
    for name in ("aime", "python"):
        (path / "bin" / name).write_text(STAND_IN)
        (path / "bin" / name).chmod(0o755)
    return path


def said(script: str, *arguments: str, cwd: Path, **variables: str) -> list[str]:
    """What the programs that a script starts were called with."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIME_", "SLURM_"))}
    command = [str(SCRIPTS / script), *arguments]
    found = subprocess.run(command, cwd=cwd, env=kept | variables, check=True, capture_output=True, text=True)
    return found.stdout.splitlines()


@pytest.mark.parametrize(
    ("tier", "name", "task"),
    [
        (1, "tier1_ultrafast_debug", "cartpole-swingup"),
        (2, "tier2_medium_validation", "reacher-easy"),
        (3, "tier3_full_benchmark", "humanoid-walk"),
    ],
)
def test_tiers_run_in_the_environment_of_make(tier: int, name: str, task: str, venv, tmp_path) -> None:
    lines = said(f"{name}.sh", "--steps", "2", cwd=tmp_path, AIME_VENV=str(venv), AIME_SEED="7")
    data, run = f"data/tier{tier}_{task.replace('-', '_')}.h5", f"runs/tier{tier}-{task}-seed7"
    assert lines[0].startswith("aime collect ") and f"--out {data}" in lines[0]
    assert lines[1] == f"aime train --preset tier{tier} --data {data} --out {run} --seed 7 --steps 2"
    assert lines[2] == f"aime evaluate {run} --data {data} --out {run}"
    assert lines[3] == f"checkpoints  {run}/checkpoints"


def test_older_flags_of_the_tier_scripts(venv, tmp_path) -> None:
    flags = [
        "--batch_size",
        "16",
        "--gradient_accumulation_steps",
        "2",
        "--use_3d_conv",
        "--temporal_downsample",
        "--steps",
        "2",
    ]
    known = {"AIME_VENV": str(venv), "WANDB_PROJECT": "a project"}
    lines = said("tier2_medium_validation.sh", *flags, cwd=tmp_path, **known)
    assert lines[1].endswith("--seed 1 --train.wandb-project a project --train.batch-size 16 --steps 2")
    train_line = lines[1].replace("a project", "project").split()
    tyro.cli(cli.load("train"), args=train_line[2:])  # exits where an option is none of `aime train`
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIME_", "SLURM_"))}
    run = subprocess.run(
        [SCRIPTS / "tier1_ultrafast_debug.sh", *flags],
        cwd=tmp_path,
        env=kept | {"AIME_VENV": str(venv)},
        check=True,
        capture_output=True,
        text=True,
    )
    told = [line.partition(" has no effect: ")[0] for line in run.stderr.splitlines()]
    assert told == ["--gradient_accumulation_steps", "--use_3d_conv", "--temporal_downsample"]


def test_one_evaluates_a_checkpoint(venv, tmp_path) -> None:
    known = {"AIME_VENV": str(venv), "AIME_NUM_EPISODES": "9"}
    checkpoint = "runs/x/checkpoints/step_00000500"
    called = "python -m aime.world_model.evaluate"
    assert said("evaluate_model.sh", checkpoint, cwd=tmp_path, **known) == [f"{called} {checkpoint} --num_episodes 9"]
    (line,) = said("evaluate_model.sh", "--rssm", cwd=tmp_path, AIME_DATA_PATH="d.h5", **known)
    assert line == f"{called} runs/walker-walk-tier2-seed1 --num_episodes 9 --data d.h5 --rssm"
    (line,) = said("evaluate_model.sh", checkpoint, cwd=tmp_path, AIME_SAVE_VIDEOS="true", **known)
    assert "--save_videos true --video_dir videos/eval-step_00000500" in line


def test_the_submitted_script_trains_the_named_task(venv, tmp_path) -> None:
    (tmp_path / "scripts").symlink_to(SCRIPTS)
    (tmp_path / "home" / "envs").mkdir(parents=True)
    (tmp_path / "home" / "envs" / "my_env").symlink_to(venv)
    known = {"AIME_ENV_NAME": "my_env", "HOME": str(tmp_path / "home"), "SLURM_SUBMIT_DIR": str(tmp_path)}
    task = {"AIME_DOMAIN": "walker", "AIME_TASK": "walk", "AIME_SEED": "42"}
    lines = said("train_world_model.sh", cwd=tmp_path, **known, **task)
    run = "runs/walker-walk-tier2-seed42"
    assert lines[-1] == f"aime train --preset tier2 --data data/walker_walk.h5 --out {run} --seed 42"


def test_a_missing_environment_is_named(tmp_path) -> None:
    run = subprocess.run(
        [str(SCRIPTS / "collect_tier1_data.sh")],
        env={"PATH": "/usr/bin:/bin", "AIME_VENV": str(tmp_path / "none")},
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and "AIME_VENV: expected a virtual environment" in run.stderr


def script(name: str) -> Any:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_synthetic_check_runs(monkeypatch, capsys) -> None:
    check = script("test_training_synthetic")
    monkeypatch.setattr(check, "SIDE", 32)
    assert check.main() == 0, capsys.readouterr().out
    assert capsys.readouterr().out.count("ok ") == 6


def test_the_perceiver_check_runs(capsys) -> None:
    assert script("test_perceiver_fix").main() == 0, capsys.readouterr().out
