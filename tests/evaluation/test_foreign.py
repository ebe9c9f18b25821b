"""Models of others, of two methods, scored in the same table as this project's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aime import cli
from aime.data import Episode, EpisodeWriter
from aime.evaluation.evaluate import evaluate_model
from aime.evaluation.foreign import evaluate_imaginable, load_imaginable
from aime.evaluation.protocol import EvaluationConfig
from aime.world_model.imaginable import Imagined
from tests.evaluation.ring_world import SIDE, RingModel, RingWorld

CONFIG = EvaluationConfig(
    horizons=(1, 5), context=4, samples=2, starts=1, episodes=2, films=1, probe_episodes=12, rollouts_at_once=8
)


class Ring:
    """Knows the ring exactly, by the two methods; ``late`` takes each action one frame too late."""

    def __init__(self, late: bool = False) -> None:
        self.late = late

    def observe(self, observations: Tensor, actions: Tensor, state: Any = None, *, generator: Any = None) -> Tensor:
        del actions, state, generator
        return RingModel.locate(observations[:, -1]).float()  # (B,)

    def imagine(self, state: Tensor, actions: Tensor, *, frames: bool = False, generator: Any = None) -> Imagined:
        moves = actions[..., 0].cumsum(-1)  # (B, N, Hz)
        if self.late:
            moves = torch.cat([torch.zeros_like(moves[..., :1]), moves[..., :-1]], -1)
        places = (state[:, None, None] + moves) % SIDE
        return Imagined(rewards=-actions[..., 0], observations=RingModel.render(places) if frames else None)


class FeaturedRing(Ring):
    """Tells the place, from which all else of the ring is read."""

    def features(self, state: Tensor) -> Tensor:
        angle = state * 2 * np.pi / SIDE
        return torch.stack([state, angle.sin(), angle.cos()], -1)


def test_an_exact_model_scores_as_this_projects_own_and_a_late_one_does_not(ring: RingWorld) -> None:
    own = evaluate_model(RingModel(), ring, CONFIG)
    found = evaluate_imaginable(FeaturedRing(), ring, CONFIG, name="ring")
    late = evaluate_imaginable(Ring(late=True), ring, CONFIG)
    for horizon in (1, 5):
        exact = own.open_loop.scores["model"].horizons[horizon]["psnr"].mean
        assert found.open_loop.scores["model"].horizons[horizon]["psnr"].mean == exact
        score = late.open_loop.scores["model"].horizons[horizon]["psnr"].mean
        assert exact is not None
        assert score is not None
        assert score < exact - 20
        copied = own.open_loop.scores["copy_last"].horizons[horizon]["psnr_body"]
        assert found.open_loop.scores["copy_last"].horizons[horizon]["psnr_body"] == copied, "the same clips"
    assert found.one_step_prior == own.one_step_prior
    assert found.reconstruction_baseline == own.reconstruction_baseline
    assert found.probe["qpos_r2"].mean == pytest.approx(1.0, abs=1e-3)
    assert late.not_computed["probe"].startswith("the model has no method features")
    assert "reconstruction" in found.not_computed


def test_results_of_another_shape_are_one_clear_error(ring: RingWorld) -> None:
    class Small(Ring):
        def imagine(self, state: Tensor, actions: Tensor, *, frames: bool = False, generator: Any = None) -> Imagined:
            images = super().imagine(state, actions, frames=True).observations
            assert images is not None
            return Imagined(observations=images[..., :-1])

    with pytest.raises(ValueError, match=r"imagine: expected observations of shape \(1, 2, 1, 3, 32, 32\), found"):
        evaluate_imaginable(Small(), ring, CONFIG)


MODULE = """
from tests.evaluation.test_foreign import FeaturedRing

def make_model(spec):
    assert spec.action_size == 1
    return FeaturedRing()

def make_nothing(spec):
    return object()

def fails(spec):
    raise KeyError("weights")
"""


@pytest.fixture
def workplace(tmp_path: Path, ring: RingWorld, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_ring.py").write_text(MODULE)
    with EpisodeWriter(tmp_path / "data.h5", ring.spec, body_masks=True) as writer:
        for episode in range(10):
            window = ring.window(episode, 0, 40)
            assert window.physics is not None
            physics = window.physics.astype(np.float64)
            writer.append(
                Episode(
                    window.observations, window.actions, window.rewards, window.continues, physics, window.body_masks
                )
            )
    return tmp_path


def test_the_command_scores_a_module_of_the_working_directory(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = [
        "--protocol.horizons",
        "1",
        "5",
        "--protocol.context",
        "4",
        "--protocol.samples",
        "2",
        "--protocol.starts",
        "1",
    ]
    command = ["evaluate", "--model", "my_ring:make_model", "--data", "data.h5", "--out", "out", *protocol]
    assert cli.main(command) == 0
    record = json.loads((workplace / "out" / "metrics.json").read_text())
    assert record["task"] == "ring-walk"
    assert record["open_loop"]["5"]["psnr"]["model"] > record["open_loop"]["5"]["psnr"]["copy_last"] + 20
    assert record["reconstruction"]["psnr"] is None
    report = (workplace / "out" / "report.html").read_text()
    assert "my_ring:make_model on ring-walk" in report
    assert "my_ring:make_model, mean of 2 samples" in report
    assert "AIME, mean" not in report
    assert "copy_last" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("my_ring", "expected MODULE:FUNCTION"),
        ("no_ring:make", "expected a module 'no_ring' here or installed"),
        ("my_ring:make_modell", "near names there: make_model"),
        ("my_ring:fails", "my_ring:fails failed with KeyError: 'weights'"),
        ("my_ring:make_nothing", "returned object, which has no observe and no imagine"),
    ],
)
def test_a_model_that_cannot_be_made_is_one_line(workplace: Path, ring: RingWorld, place: str, words: str) -> None:
    with pytest.raises(ValueError, match="model: ") as error:
        load_imaginable(place, ring.spec)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected RUN, a run directory, or --model"),
        (["runs/x", "--model", "a:b"], "expected one of RUN and --model, found both"),
        (["--model", "a:b"], "expected --data, the episodes, and --out"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", *arguments]) == 2
    assert words in capsys.readouterr().err
