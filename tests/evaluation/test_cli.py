"""The commands on a real, untrained world model and a real episode file; clear errors for what does not fit."""

import json
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import tyro

from aime.data import Episode, EpisodeWriter, splits_for
from aime.evaluation.cli import Evaluate, Imagine
from aime.evaluation.protocol import EvaluationConfig
from aime.evaluation.run_directory import RunDirectory
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig
from aime.world_model.evaluate import main
from tests.evaluation.ring_world import RingWorld

PROTOCOL = EvaluationConfig(
    horizons=(1, 5), context=4, samples=2, starts=1, episodes=2, films=1, probe_episodes=3, rollouts_at_once=8
)
SMALL = {
    "image_size": 32,
    "action_size": 1,
    "latent_dim": 6,
    "hidden_dim": 24,
    "context_dim": 12,
    "max_components": 4,
    "prior_hidden_dim": 16,
    "num_latents": 4,
    "latent_channels": 16,
    "perceiver_layers": 1,
    "perceiver_heads": 2,
    "context_window": 3,
    "num_codes": 16,
    "code_dim": 8,
    "downsample": 8,
    "tokenizer_channels": 8,
    "encoder_channels": (8, 16, 16),
    "cells_per_level": 1,
    "mlp_hidden_dim": 16,
    "squeeze_excitation": False,
    "likelihood": "gaussian",
    "num_slots": 3,
    "attention_resolution": 8,
    "attention_channels": 16,
    "attention_prior_channels": 8,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory as the trainer leaves it, with an untrained model and episodes of the ring world."""
    root = tmp_path_factory.mktemp("runs") / "ring"
    torch.manual_seed(0)
    model = DPGMMVariationalRecurrentAutoencoder(WorldModelConfig.from_names(**SMALL))
    model.save_pretrained(root / "weights")
    (root / "run.json").write_text(json.dumps({"preset": "laptop", "seed": 7, "commit": "abc"}))
    (root / "timing.json").write_text(
        json.dumps({"collect": 3.0, "train": 9.5, "train_cpu": 1.5, "frames_trained": 640})
    )
    rows = [json.dumps({"step": step, "total_loss": 10.0 - step, "flag": True, "bad": None}) for step in range(3)]
    (root / "metrics.jsonl").write_text("\n".join(rows) + '\n{"step": 3, "total')  # the last line was cut by a kill
    source = RingWorld(episodes=10, length=24)
    with EpisodeWriter(root / "data.h5", source.spec, body_masks=True) as writer:
        for episode in range(10):
            window = source.window(episode, 0, 24)
            assert window.physics is not None
            writer.append(
                Episode(
                    window.observations,
                    window.actions,
                    window.rewards,
                    window.continues,
                    window.physics.astype(np.float64),
                    window.body_masks,
                )
            )
    return root


def test_evaluate_writes_metrics_and_report(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Evaluate(run, out=tmp_path, device="cpu", protocol=PROTOCOL).run() == 0
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert (record["task"], record["preset"], record["seed"], record["commit"]) == ("ring-walk", "laptop", 7, "abc")
    assert record["seconds"]["collect"] == 3.0
    assert record["seconds"]["setup"] is None
    assert record["seconds"]["train"] == 9.5
    assert record["frames_trained"] == 640
    model = DPGMMVariationalRecurrentAutoencoder.from_pretrained(run / "weights")
    assert record["parameters"] == sum(item.numel() for item in model.parameters() if item.requires_grad)
    row = record["open_loop"]["5"]["psnr_body"]
    assert {name for name, value in row.items() if value is not None} == {
        "model",
        "model_single",
        "copy_last",
        "mean_image",
    }
    # The real model gives every part: nothing is null but what the data or the settings rule out.
    for group in ("reconstruction", "one_step_prior", "probe", "codebook", "mixture"):
        assert None not in record[group].values(), group
    assert None not in record["tokens"]["accuracy"].values()
    assert record["slots"]["fg_ari"] is None
    page = (tmp_path / "report.html").read_text()
    assert "total_loss" in page
    printed = capsys.readouterr().out
    assert str(tmp_path / "report.html") in printed.replace("\n", "")
    assert not (run / "metrics.json").exists()


def test_evaluate_trains_both_rssms_for_the_models_own_cpu_seconds(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Evaluate(run, out=tmp_path, rssm=True, rssm_tuned=True, device="cpu", protocol=PROTOCOL).run()
    record = json.loads((tmp_path / "metrics.json").read_text())
    details = json.loads((tmp_path / "evaluation.json").read_text())["baselines"]
    cost = record["training"]
    assert cost["cpu_seconds"]["model"] == 1.5
    printed, page = capsys.readouterr().out, (tmp_path / "report.html").read_text()
    for name in ("rssm", "rssm_tuned"):
        assert 1.5 <= cost["cpu_seconds"][name] < 5.0  # a step more than the budget at most
        assert details[name]["steps"] >= 1
        assert cost["frames"][name] == details[name]["frames"] == details[name]["steps"] * 16 * 16
        assert f"{cost['frames'][name]:,}" in printed
        assert f"{cost['frames'][name]:,}" in page
        for horizon in ("1", "5"):
            assert record["open_loop"][horizon]["psnr_body"][name] > 0.0
            assert record["stderr"]["open_loop"][horizon]["psnr_body"][name] is None  # one held-out episode


def test_a_model_that_is_not_a_number_is_refused(run: Path, tmp_path: Path) -> None:
    model = DPGMMVariationalRecurrentAutoencoder.from_pretrained(run / "weights")
    name, parameter = next(iter(model.named_parameters()))
    with torch.no_grad():
        parameter.view(-1)[0] = float("nan")
    model.save_pretrained(tmp_path / "broken" / "weights")
    match = rf"model\.safetensors: {name}: expected finite values, found NaN or infinity in 1 of {parameter.numel()}"
    with pytest.raises(ValueError, match=match):
        Evaluate(tmp_path / "broken", data=run / "data.h5", device="cpu").run()


def test_module_entry_point_takes_the_same_flags(run: Path, tmp_path: Path) -> None:
    flags = f"{run} --out {tmp_path} --no-report --device cpu --protocol.horizons 1 --protocol.context 3"
    flags += " --protocol.samples 2 --protocol.starts 1 --protocol.films 1 --protocol.probe-episodes 2"
    assert main(flags.split()) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["config"]["context"] == 3
    assert not (tmp_path / "report.html").exists()


def test_help_documents_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (Evaluate, Imagine):
        with pytest.raises(SystemExit):
            tyro.cli(command, args=["--help"])
        text = capsys.readouterr().out
        assert "Episode file (HDF5)" in text
        assert "--device" in text


def test_imagine_writes_an_animation_of_context_and_horizon(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "open_loop.gif"
    Imagine(run, horizon=6, context=4, samples=2, scale=2, out=out, device="cpu").run()
    frames = iio.imread(out)
    assert frames.shape[0] == 10
    assert frames.shape[1:3] == (2 * (32 + 2), 2 * (4 * 32 + 3 * 2))
    # The leftmost panel is the truth of the first test episode; a palette of 256 colours costs a little.
    source = RingWorld(episodes=10, length=24)
    episode = int(splits_for_run(run)["test"][0])
    truth = source.window(episode, 0, 10).observations.transpose(0, 2, 3, 1)
    assert np.abs(frames[:, : 2 * 32 : 2, : 2 * 32 : 2].astype(int) - truth).max() < 24


def splits_for_run(run: Path) -> dict[str, np.ndarray]:
    from aime.data import open_source

    return splits_for(open_source(run / "data.h5"))


def test_a_directory_without_weights_says_what_is_missing(tmp_path: Path, run: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected exported weights \(config\.json and model\.safetensors\)"):
        RunDirectory.find(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such run directory; near names there: ring"):
        RunDirectory.find(run.parent / "rimg")
    found = RunDirectory.find(run / "weights" / "model.safetensors")
    assert (found.root, found.weights) == (run, run / "weights")
    assert [row["step"] for row in found.history()] == [0.0, 1.0, 2.0]
    assert set(found.history()[0]) == {"step", "total_loss"}


def test_clear_errors_for_what_does_not_fit(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    config = WorldModelConfig.from_names(**(SMALL | {"action_size": 2}))
    DPGMMVariationalRecurrentAutoencoder(config).save_pretrained(bare / "weights")
    with pytest.raises(FileNotFoundError, match=r"has no data\.h5: say with --data"):
        Evaluate(bare, device="cpu").run()
    with pytest.raises(ValueError, match="takes 2 action entries, the data has 1"):
        Evaluate(bare, data=run / "data.h5", device="cpu").run()
    other = tmp_path / "other"
    DPGMMVariationalRecurrentAutoencoder(WorldModelConfig.from_names(**SMALL)).save_pretrained(other / "weights")
    with pytest.raises(
        ValueError, match="expected train_cpu, the CPU seconds of the training, found none: give --rssm-seconds"
    ):
        Evaluate(other, data=run / "data.h5", rssm=True, device="cpu").run()
    with pytest.raises(ValueError, match="need 65 frames; the longest episode to choose from has 24"):
        Imagine(run, device="cpu").run()
    with pytest.raises(ValueError, match=r"--episode: expected 0\.\.9, found 10"):
        Imagine(run, episode=10, device="cpu").run()
