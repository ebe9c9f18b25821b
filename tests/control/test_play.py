"""`aime play` on a real, untrained world model and episodes of cartpole: files, figures, and errors of one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from torch import Tensor

from aime import cli
from aime.control.episodes import frames_of
from aime.control.playing import Played, play, t_quantile
from aime.control.rewards import choose_reward
from aime.data import open_source
from aime.envs import ParallelEnvironment
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig
from tests.evaluation.test_cli import SMALL


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as `aime train` leaves it: weights and the episodes, drawn by the ray caster."""
    root = tmp_path_factory.mktemp("runs") / "cartpole"
    torch.manual_seed(0)
    DPGMMVariationalRecurrentAutoencoder(WorldModelConfig.from_names(**SMALL)).save_pretrained(root / "weights")
    arguments = "collect --episodes 6 --steps 20 --action-repeat 10 --size 32 --no-masks --threads 1 --num-envs 6 --out"
    assert cli.main([*arguments.split(), str(root / "data.h5")]) == 0
    return root


QUICK = ["--episodes", "2", "--horizon", "2", "--samples", "4", "--iterations", "1", "--action-repeat", "50"]


@pytest.mark.parametrize("planner", ["mppi", "icem"])
def test_a_world_model_alone_is_planned_with(run: Path, planner: str, capsys: pytest.CaptureFixture[str]) -> None:
    film = run / f"{planner}.gif"
    command = ["play", str(run), "--planner", planner, *QUICK, "--film", str(film)]
    assert cli.main(command) == 0
    output = capsys.readouterr().out
    assert "reward: " in output
    assert "95 % interval" in output
    record = json.loads((run / "play.json").read_text())
    assert (record["task"], record["planner"], record["action_repeat"]) == ("cartpole-swingup", planner, 50)
    assert len(record["returns"]) == 2
    assert record["steps"] == 1000 // 50
    assert record["decision"]["decisions"] == 20
    assert record["reward"]["head"] in ("own", "fitted")
    low, high = record["interval_95"]
    assert low <= record["mean"] <= high
    assert iio.imread(film).shape[1] == 3 * 32
    before = record["returns"]
    assert cli.main(command) == 0
    assert json.loads((run / "play.json").read_text())["returns"] == before, "a seed decides everything"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--planner", "none"], 1, "expected an agent in "),
        (["--planner", "icem", "--task", "swingap"], 1, "unknown task 'swingap' of domain 'cartpole': did you mean"),
        (["--planner", "icem", "--domain", "reacher", "--task", "easy"], 1, "expected 2 action entries"),
        (["--planner", "icem", "--film", "film.avi"], 2, "film: expected a path that ends in .gif or .mp4"),
        (["--planner", "icem", "--episodes", "0"], 2, "episodes: expected a whole number from 1"),
        (["--planner", "icem", "--data", "nowhere.h5"], 1, "nowhere.h5"),
    ],
)
def test_what_does_not_fit_is_one_line(
    run: Path, arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["play", str(run), *arguments]) == status
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    assert words in message


def test_a_run_that_is_not_there_names_near_ones(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["play", str(run.parent / "cartpol"), "--planner", "icem"]) == 1
    assert "near names there: cartpole" in capsys.readouterr().err


def test_the_reward_is_fitted_where_the_models_own_head_knows_nothing(run: Path) -> None:
    """An untrained head is worse than a regression on the states, and the regression is what it says it is."""
    model = DPGMMVariationalRecurrentAutoencoder.from_pretrained(run / "weights")
    choice = choose_reward(model, open_source(run / "data.h5"))
    assert choice.head is not None
    assert choice.fitted_r2 > choice.own_r2
    features = torch.randn(3, model.config.hidden_dim + model.config.latent_dim, generator=torch.Generator())
    halves = (choice.head(features[:1]) + choice.head(features[1:2])) / 2
    assert torch.allclose(choice.head((features[:1] + features[1:2]) / 2), halves, atol=1e-4), "it is linear"
    assert "ridge regression" in choice.sentence()


class Constant:
    """Acts with zeros, and counts the episodes' starts."""

    starts = 0

    def act(self, observation: Tensor, state: Any = None, explore: bool = False) -> tuple[Tensor, Any]:
        del explore
        self.starts += state is None
        return torch.zeros(len(observation), 1), True


def test_every_episode_begins_without_memory_and_left_over_ones_are_dropped() -> None:
    policy = Constant()
    with ParallelEnvironment(
        "cartpole", "balance", 2, action_repeat=100, seed=3, pixels=(16, 16), renderer="raycast"
    ) as env:
        played = play(env, policy, frames_of, 3, keep_films=3)
    assert policy.starts == 2
    assert played.returns.shape == (3,)
    assert [film.shape for film in played.films] == [(10, 16, 16, 3)] * 3
    assert played.steps == 10
    assert len(set(played.returns)) == 3, "each is another episode"


def test_the_interval_is_students() -> None:
    for degrees, quantile in ((1, 12.706), (4, 2.776), (5, 2.571), (9, 2.262), (29, 2.045), (1000, 1.962)):
        assert abs(t_quantile(degrees) - quantile) < 3.5e-3
    low, high = Played(np.array([1.0, 2.0, 3.0]), (), 1, 0.0).interval or (0.0, 0.0)
    assert np.isclose((low + high) / 2, 2.0)
    assert np.isclose(high - 2.0, 4.303 / 3**0.5, atol=1e-3)
    assert Played(np.array([1.0]), (), 1, 0.0).interval is None


class Leaning:
    """An agent as `aime.control.agent` offers one, which pushes one way."""

    def __init__(self, observations: str = "pixels", actions: int = 1) -> None:
        self.config = SimpleNamespace(
            action_size=actions, image_size=16 if observations == "pixels" else 0, observations=observations,
            domain="cartpole", task="balance", action_repeat=100,
        )  # fmt: skip
        self.seen: list[tuple[int, ...]] = []

    def act(self, observation: Tensor, state: Any = None, explore: bool = False) -> tuple[Tensor, Any]:
        assert not explore
        self.seen.append(tuple(observation.shape))
        return torch.ones(len(observation), 1), True


@pytest.mark.parametrize(("observations", "shape"), [("pixels", (2, 3, 16, 16)), ("states", (2, 5))])
def test_the_runs_agent_acts_on_what_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, observations: str, shape: tuple[int, ...]
) -> None:
    agent = Leaning(observations)
    _offer(monkeypatch, agent)
    (tmp_path / "agent").mkdir()
    assert cli.main(["play", str(tmp_path), "--episodes", "2"]) == 0
    assert set(agent.seen) == {shape}
    record = json.loads((tmp_path / "play.json").read_text())
    assert (record["task"], record["planner"], record["action_repeat"]) == ("cartpole-balance", "none", 100)
    assert record["steps"] == 10
    assert (tmp_path / "play.gif").is_file()


def test_an_agent_for_other_actions_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _offer(monkeypatch, Leaning("states", actions=3))
    (tmp_path / "agent").mkdir()
    assert cli.main(["play", str(tmp_path)]) == 1
    assert (
        "expected 1 action entries, as cartpole balance takes, found a model or an agent of 3"
        in capsys.readouterr().err
    )
    assert cli.main(["play", str(tmp_path), "--planner", "mppi"]) == 2
    assert "planner: expected none, the agent in" in capsys.readouterr().err


def _offer(monkeypatch: pytest.MonkeyPatch, agent: Leaning) -> None:
    """Let the module of agents give this one, whatever the directory holds."""
    loader = SimpleNamespace(from_pretrained=lambda directory, device: agent)
    monkeypatch.setitem(sys.modules, "aime.control.agent", SimpleNamespace(Agent=loader))
