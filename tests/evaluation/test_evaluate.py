"""The evaluation as a whole on a model that knows the truth, and the exact contents of metrics.json."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aime.evaluation.evaluate import Evaluation, evaluate_model
from aime.evaluation.filtering import score_one_step
from aime.evaluation.metrics import PSNR_CEILING, psnr_from_mse
from aime.evaluation.protocol import Clips, EvaluationConfig, cut_clips
from aime.evaluation.record import RunFacts, metrics_record, protocol_record, write_json
from aime.evaluation.slots import foreground_ari, foreground_ari_of_clips
from aime.evaluation.table import print_summary
from aime.evaluation.tokens import codebook_figures, token_counts
from tests.evaluation.ring_world import SIDE, RingModel, RingWorld

CONFIG = EvaluationConfig(
    horizons=(1, 5, 15, 45), context=4, samples=2, starts=2, episodes=3, films=2, one_step_stride=2
)
SERIES = {"model", "model_single", "copy_last", "mean_image", "rssm", "rssm_tuned"}
FACTS = RunFacts(
    task="ring-walk",
    preset="laptop",
    seed=1,
    train_seconds=12.5,
    train_cpu_seconds=24.5,
    frames_trained=100,
    parameters=3,
)


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    model = RingModel()
    model.train()
    result = evaluate_model(model, RingWorld(episodes=20), CONFIG)
    assert model.training  # left as it was found
    return result


def test_a_perfect_model_gets_perfect_figures(evaluation: Evaluation) -> None:
    for figures in (evaluation.reconstruction, evaluation.one_step_prior):
        assert figures["psnr"].mean == figures["psnr_body"].mean == PSNR_CEILING
    assert evaluation.reconstruction_baseline["psnr_body"].mean < 20.0
    for kind in ("", "_nonlinear"):
        assert evaluation.probe[f"reward_r2{kind}"].mean == pytest.approx(1.0, abs=2e-4)
        assert evaluation.probe[f"qpos_r2{kind}"].mean == pytest.approx(1.0, abs=3e-4)
    # Its state holds sine, cosine and rate of the turn; their derivatives are products of these.
    columns = metrics_record(evaluation, FACTS)["probe_columns"]
    assert columns["d/dt cart"]["linear"] == pytest.approx(1.0, abs=2e-4)
    assert columns["d/dt sin turn"]["linear"] < 0.5
    assert columns["d/dt sin turn"]["exact"] == pytest.approx(1.0, abs=1e-6)
    assert evaluation.probe["qvel_r2_nonlinear"].mean > 0.98


def test_mixture_figures_are_those_of_the_known_prior(evaluation: Evaluation) -> None:
    # Half the weight sits on a unit Gaussian centred at z itself, the other half far away.
    expected = -(math.log(0.5) - 1.5 * math.log(2 * math.pi))
    assert evaluation.mixture["nll"].mean == pytest.approx(expected, abs=1e-4)
    assert evaluation.mixture["components_used"].mean == 1.0
    np.testing.assert_allclose(evaluation.histograms["responsibilities"], [1.0, 0.0], atol=1e-6)


def test_codebook_use_is_counted_on_the_held_out_clips(evaluation: Evaluation) -> None:
    usage = evaluation.codebook["usage"].mean
    assert usage is not None
    assert 0.5 < usage <= 1.0
    assert evaluation.codebook["perplexity"].mean <= usage * SIDE + 1e-9
    assert evaluation.histograms["codebook"].sum() == evaluation.clips * evaluation.clip_length * 4


def test_one_step_prior_is_scored_against_the_next_frame() -> None:
    world = RingWorld(episodes=3)
    clips = cut_clips(world, [0], 12, 1)
    late, times = score_one_step(RingModel(late=True), clips, CONFIG)
    exact, _ = score_one_step(RingModel(), clips, CONFIG)
    assert times.tolist() == [5, 7, 9, 11]
    assert exact.whole[0].sum() < 1e-5  # float32 rounding of [-1, 1] to [0, 255]
    # One frame late, it shows the frame after the target, but for the last, which has no further action of its own.
    frames = clips.observations[0].double()
    expected = [(frames[t + 1] - frames[t]).square().sum().item() for t in (5, 7, 9)]
    assert late.whole[0][0, :3].tolist() == pytest.approx(expected)


def test_metrics_json_has_exactly_the_keys_of_the_schema(evaluation: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, metrics_record(evaluation, FACTS))
    record = json.loads(path.read_text())
    measured = {
        "open_loop",
        "fvd",
        "reconstruction",
        "one_step_prior",
        "probe",
        "codebook",
        "mixture",
        "tokens",
        "slots",
    }
    about = {
        "schema",
        "task",
        "preset",
        "seed",
        "commit",
        "device",
        "versions",
        "seconds",
        "frames_trained",
        "parameters",
        "renderer",
        "training",
        "probe_columns",
    }
    assert set(record) == measured | about | {"stderr"}
    assert record["schema"] == 1
    assert (record["task"], record["preset"], record["seed"], record["commit"]) == ("ring-walk", "laptop", 1, None)
    assert set(record["seconds"]) == {"setup", "collect", "train", "evaluate"}
    assert (record["seconds"]["setup"], record["seconds"]["train"]) == (None, 12.5)
    assert record["seconds"]["evaluate"] > 0.0
    assert record["training"] == {
        "cpu_seconds": {"model": 24.5, "rssm": None, "rssm_tuned": None},
        "frames": {"model": 100, "rssm": None, "rssm_tuned": None},
        "parameters": {"model": 3, "rssm": None, "rssm_tuned": None},
    }
    for tree in (record, record["stderr"]):
        assert list(tree["open_loop"]) == ["1", "5", "15", "45"]
        for horizon in tree["open_loop"].values():
            assert set(horizon) == {
                *("psnr", "psnr_body", "psnr_union", "ssim", "lpips"),
                *("crps_body", "spread_ratio", "action_shuffle"),
            }
            assert all(set(row) == SERIES for row in horizon.values())
        assert set(tree["fvd"]) == SERIES
        assert set(tree["reconstruction"]) == set(tree["one_step_prior"]) == {"psnr", "psnr_body"}
        assert set(tree["probe"]) == {
            f"{name}_r2{kind}" for name in ("qpos", "qvel", "reward") for kind in ("", "_nonlinear")
        }
        assert set(tree["codebook"]) == {"perplexity", "usage"}
        assert set(tree["mixture"]) == {"components_used", "nll", "crps"}
        assert set(tree["tokens"]) == {"accuracy", "copied"}
        assert set(tree["tokens"]["accuracy"]) == set(tree["tokens"]["copied"]) == {"1", "5"}
        assert set(tree["slots"]) == {"fg_ari"}
    assert set(record["stderr"]) == measured


def test_what_was_not_computed_is_null_and_says_why(evaluation: Evaluation) -> None:
    record = metrics_record(evaluation, FACTS)
    assert record["open_loop"]["45"]["psnr"] == dict.fromkeys(SERIES)  # episodes of 40 frames
    assert all(row["rssm"] is None for row in record["open_loop"]["1"].values())
    assert record["slots"]["fg_ari"] is None
    assert record["tokens"]["accuracy"] == {"1": None, "5": None}
    assert {"open_loop.45", "slots.fg_ari", "tokens.accuracy"} <= set(evaluation.not_computed)


def test_a_bare_model_on_bare_data_gives_nulls_not_zeros() -> None:
    source = RingWorld(episodes=10, masks=False, physics=False)
    evaluation = evaluate_model(RingModel(bare=True), source, CONFIG)
    record = metrics_record(evaluation, RunFacts())
    assert record["reconstruction"] == {"psnr": None, "psnr_body": None}
    assert record["open_loop"]["1"]["psnr_body"] == dict.fromkeys(SERIES)
    assert record["open_loop"]["1"]["psnr"]["model"] == PSNR_CEILING
    for group in ("probe", "codebook", "mixture", "slots"):
        assert set(record[group].values()) == {None}
    assert record["task"] is record["parameters"] is record["seconds"]["train"] is None
    assert {"psnr_body", "probe", "mixture", "codebook", "reconstruction"} <= set(evaluation.not_computed)


def test_protocol_record_is_json_without_nan(evaluation: Evaluation, tmp_path: Path) -> None:
    write_json(tmp_path / "evaluation.json", protocol_record(evaluation, {"rssm": {"steps": 3}}))
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["clip_length"] == 4 + 15
    assert len(record["curves"]["model"]["psnr"]) == 15
    assert set(record["probe_r2"]) == {
        "cart",
        "sin turn",
        "cos turn",
        "d/dt cart",
        "d/dt sin turn",
        "d/dt cos turn",
        "d/dt turn",
        "reward",
    }
    assert record["baselines"] == {"rssm": {"steps": 3}}


def test_json_with_nan_is_refused_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def test_held_out_episodes_are_never_those_of_training() -> None:
    source = RingWorld(episodes=20)
    read: list[int] = []
    window = source.window

    def recording(episode: int, start: int, length: int) -> Any:
        read.append(episode)
        return window(episode, start, length)

    source.splits = {"train": np.array([0, 1]), "validation": np.array([2]), "test": np.array([3, 4])}
    source.window = recording  # type: ignore[method-assign]
    evaluation = evaluate_model(RingModel(), source, CONFIG)
    assert evaluation.episodes == (3, 4)
    assert set(read) == {0, 1, 3, 4}


def test_evaluation_repeats_itself() -> None:
    first, second = (metrics_record(evaluate_model(RingModel(noise=0.3), RingWorld(), CONFIG), FACTS) for _ in range(2))
    for record in (first, second):
        del record["seconds"]
    assert first == second


def test_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="unknown split 'tset'; the data has test, train, validation"):
        evaluate_model(RingModel(), RingWorld(), EvaluationConfig(split="tset"))


def test_summary_shows_figures_and_reasons(evaluation: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(evaluation, metrics_record(evaluation, FACTS))
    text = capsys.readouterr().out
    assert "ring-walk" in text
    assert "psnr_body" in text
    assert "mean_image" in text
    assert "not computed" in text


def test_perplexity_of_even_use_is_the_number_of_codes_used() -> None:
    ids = torch.tensor([0, 1, 2, 3]).reshape(1, 2, 2, 1).repeat(3, 1, 1, 1)  # (clips, frames, tokens, books)
    figures = codebook_figures(token_counts(ids, 8), np.arange(3))
    assert figures["perplexity"].mean == pytest.approx(4.0)
    assert figures["usage"].mean == 0.5
    assert figures["usage"].stderr == 0.0


def test_foreground_ari_needs_two_bodies() -> None:
    bodies = np.array([[0, 1, 1, 2]])
    slots = np.array([[[9.0, 9.0, 9.0, 0.0]], [[0.0, 0.0, 0.0, 1.0]]])
    assert foreground_ari(slots, bodies) == pytest.approx(1.0)  # the background may go anywhere
    assert math.isnan(foreground_ari(slots, (bodies > 0).astype(int)))
    clips = torch.tensor([[[[0, 1], [1, 2]]], [[[0, 1], [1, 1]]]])  # (N, L, H, W)
    scores = foreground_ari_of_clips(torch.rand(2, 1, 3, 2, 2), clips)
    assert torch.isnan(scores).tolist() == [False, True]


def left_half(frames: torch.Tensor) -> torch.Tensor:
    """(B, T, C, H, W) -> (B, T, H, W) bool: the columns of the square's left half."""
    edge = RingModel.locate(frames)[..., None]
    return ((torch.arange(SIDE) - edge) % SIDE < 3)[..., None, :].expand(-1, -1, SIDE, -1)


def test_slots_that_part_the_bodies_score_one_where_the_data_tells_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The square's left half is one body, its right half another; slots that follow them agree, random ones do not."""

    def with_ids(*args: Any) -> Clips:
        clips = cut_clips(*args)
        ids = torch.where(left_half(clips.observations), 1, bodies) * clips.body_masks
        return dataclasses.replace(clips, body_ids=ids.to(torch.uint8))

    class Parting(RingModel):
        def forward_sequence(self, observations: torch.Tensor, actions: torch.Tensor, **options: Any) -> dict[str, Any]:
            left = left_half(observations)[:, :, None].float()
            outputs = super().forward_sequence(observations, actions, **options)
            return outputs | {"slot_attention_maps": torch.cat([left, 1 - left], 2)}

    monkeypatch.setattr("aime.evaluation.evaluate.cut_clips", with_ids)
    bodies = 2
    parted, mixed = (evaluate_model(model, RingWorld(episodes=20), CONFIG) for model in (Parting(), RingModel()))
    assert parted.foreground_ari.mean == pytest.approx(1.0)
    assert mixed.foreground_ari.mean < 0.5
    assert "slots.fg_ari" not in parted.not_computed
    bodies = 1
    alone = evaluate_model(Parting(), RingWorld(episodes=20), CONFIG)
    assert alone.foreground_ari.mean is None
    assert alone.not_computed["slots.fg_ari"] == "no frame shows two bodies; the index needs at least two"


def test_psnr_of_the_reconstruction_baseline_uses_the_same_frames() -> None:
    """The mean image beside the reconstruction is scored from the burn-in on, here worked out from the episodes."""
    source = RingWorld(episodes=20)
    evaluation = evaluate_model(RingModel(), source, CONFIG)
    splits_train = [episode for episode in range(20) if episode not in evaluation.episodes]
    assert len(splits_train) == 20 - len(evaluation.episodes)
    per_episode = []
    from aime.data import splits_for
    from aime.evaluation.protocol import training_mean_image

    mean = training_mean_image(source, [int(e) for e in splits_for(source)["train"]], 10_000).numpy()
    for episode in evaluation.episodes:
        errors = []
        for start in (0, 40 - evaluation.clip_length):
            window = source.window(episode, start + CONFIG.burn_in, evaluation.clip_length - CONFIG.burn_in)
            errors.append(np.square(window.observations - mean).mean())
        per_episode.append(psnr_from_mse(np.mean(errors)))
    assert evaluation.reconstruction_baseline["psnr"].mean == pytest.approx(np.mean(per_episode), abs=1e-4)
