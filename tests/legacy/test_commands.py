"""The commands of the original's documents: training, evaluation and pictures from one entry point, and the scripts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

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
    monkeypatch.setitem(PRESETS, "laptop", {**small, "image_size": 32})


@pytest.fixture(scope="module")
def run(place) -> Path:
    """A run of four steps as the documents start it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        small = {name: value for name, value in SMALL.items() if name not in ("image_size", "action_size")}
        patch.setitem(PRESETS, "laptop", {**small, "image_size": 32})
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
