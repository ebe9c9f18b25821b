"""The experiment on tokens: what it scores, and that a predictor learns a motion that copying cannot foresee."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import tokens
from bench.token_scores import descend, perceptron_figures, score
from bench.tokens import Arm, Tokens, Video, make, parse, train_predictor, videos
from tests.training.test_documented_trainer import write_walk

TINY = {
    **tokens.SCALES["laptop"],
    "num_codes": 8,
    "code_dim": 8,
    "num_latents": 2,
    "num_latent_channels": 16,
    "context_dim": 8,
    "base_channels": 4,
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tokens.SCALES, "laptop", TINY)
    monkeypatch.setitem(tokens.BATCH, "laptop", (8, 4))


def turning(episodes: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (E, T, 2, 2) that go up by one where the action says so, all positions alike, and the actions (E, T, 1)."""
    actions = torch.randint(2, (episodes, length, 1))
    moved = torch.nn.functional.pad(actions[:, :-1, 0].cumsum(1), (1, 0))
    ids = (torch.randint(8, (episodes, 1)) + moved) % 8
    return ids[..., None, None].expand(-1, -1, 2, 2).int(), actions.float()


@pytest.mark.parametrize("acts", [True, False])
def test_tokens_that_follow_actions_are_foreseen_with_them_alone(acts: bool) -> None:
    torch.manual_seed(0)
    ids, actions = turning(32, 40)
    video = Video(torch.zeros(32, 40, 3, 64, 64, dtype=torch.uint8), actions)
    perceiver = make("laptop", Arm({"downsample": 32}), video)
    arm = Arm({}, actions=acts, rate=1e-2)
    train_predictor(perceiver, arm, ids, actions, 150, (8, 8))
    seen, acted = turning(8, 40)
    figures = score(perceiver, seen, acted if acts else None)
    assert 0.4 < figures["copy_accuracy"] < 0.6
    if acts:
        assert figures["accuracy_changed"] > 0.9 and figures["accuracy_unchanged"] > 0.9
        assert figures["accuracy_5"] > 0.8 > figures["copy_accuracy_5"]
    else:
        assert figures["accuracy"] < 0.6 and figures["nats"] > 0.6  # log 2 = .69 is what is to be known


def test_the_yardstick_foresees_them_too() -> None:
    torch.manual_seed(0)
    figures = perceptron_figures(torch.randn(8, 8), turning(32, 40), turning(8, 40), 150)
    assert figures["perceptron_accuracy_changed"] > 0.9 and figures["perceptron_nats"] < 0.5


def test_arms_are_measured_once_and_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_walk(tmp_path / "walk.h5", size=64, actions=2, episodes=3, length=24)
    path = tmp_path / "tokens.json"
    bench = Tokens(
        tmp_path / "walk.h5",
        tmp_path / "walk.h5",
        arms=("default", "two-books"),
        tokenizer_steps=2,
        steps=2,
        perceptron_steps=2,
        out=path,
    )
    assert bench.measure() == 0 and capsys.readouterr().out.count("accuracy_changed_5") == 2
    rows = json.loads(path.read_text())["arms"]
    assert list(rows) == ["default/2/2/1", "two-books/2/2/1"]
    assert "perceptron_nats" in rows["default/2/2/1"]
    for row in rows.values():
        assert {"psnr", "perplexity", "usage", "accuracy", "copy_accuracy", "accuracy_changed"} <= set(row)
    assert bench.measure() == 0 and capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="--arms: expected names among default"):
        Tokens(tmp_path / "walk.h5", tmp_path / "walk.h5", arms=("none",)).measure()


def test_held_out_episodes_are_those_of_the_files_own_splits(tmp_path: Path) -> None:
    write_walk(tmp_path / "walk.h5", size=64, actions=2, episodes=6, length=24)
    train, test = videos(tmp_path / "walk.h5", None)
    whole, _ = videos(tmp_path / "walk.h5", tmp_path / "walk.h5")
    assert len(train.frames) + len(test.frames) == len(whole.frames) == 6 and len(test.frames) >= 2
    for frames in test.frames:
        assert not (train.frames == frames).flatten(1).all(1).any()


def test_a_schedule_ends_with_its_seconds() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    counts = []
    for steps, seconds in ((10_000, 1e-9), (7, 1e9)):
        before = list(descend([weight], 0.1, steps, seconds))
        counts.append(len(before))
    assert counts == [1, 7]


def test_the_command_line_names_every_option(tmp_path: Path) -> None:
    bench = parse([str(tmp_path), "--arms", "fast", "open", "--seeds", "1", "2", "--seconds", "3", "--device", "cpu"])
    assert bench == Tokens(tmp_path, arms=("fast", "open"), seeds=(1, 2), seconds=3.0, device="cpu")
    assert parse([str(tmp_path)]) == Tokens(tmp_path)
