"""The whole loop, small: it runs, resumes exactly, survives errors, and its agent can be saved and loaded."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro

from aime.cli import main
from aime.control import collecting
from aime.control.actor_critic import ActorCriticConfig
from aime.control.agent import Agent, AgentConfig
from aime.control.cli import Control
from aime.control.config import ControlConfig
from aime.control.loop import control
from aime.control.outcome import command, final_episodes, record, write_report
from aime.control.replay import Trajectory
from aime.control.run import begin
from aime.data.errors import DataError
from aime.ranges import OptionError
from aime.training.preemption import Preemption

pytest.importorskip("dm_control")

SMALL: dict[str, Any] = {
    "observations": "states",
    "num_envs": 2,
    "time_limit": 0.4,
    "batch_size": 2,
    "sequence_length": 8,
    "train_ratio": 1,
    "evaluate_every": 1,
    "width": 8,
    "model": {"latent_dim": 4, "hidden_dim": 8, "width": 8, "max_components": 2},
    "actor_critic": ActorCriticConfig(horizon=3, starts=4),
}
TINY_PIXELS: dict[str, Any] = {
    "hidden_dim": 16,
    "prior_hidden_dim": 16,
    "encoder_channels": (8, 8, 8),
    "decoder_channels": (8, 8, 8),
    "mlp_hidden_dim": 16,
}


def quiet(_: str) -> None:
    """Show nothing."""


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(agent: Agent) -> dict[str, torch.Tensor]:
    """Copies of all tensors."""
    return {name: value.clone() for name, value in agent.state_dict().items()}


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path) -> None:
    """Same weights, replay and metrics, although the second was stopped, and killed after it had played on."""
    config = ControlConfig(**SMALL)
    whole = control(config, 100, tmp_path / "whole", rounds=3, show=quiet)
    whole.close()
    part = control(config, 100, tmp_path / "part", rounds=2, show=quiet)
    part.replay.append(part.replay.episodes[0])  # of a round whose training a kill cut off
    part.close()
    resumed = control(config, 100, tmp_path / "part", rounds=3, resume=True, show=quiet)
    resumed.close()
    one, other = weights(whole.agent), weights(resumed.agent)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.replay.count == resumed.replay.count == 6
    for number in range(6):
        first, second = whole.replay.episodes[number], resumed.replay.episodes[number]
        assert np.array_equal(first.observations, second.observations)
        assert np.array_equal(first.actions, second.actions)
    texts = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "part")]
    logs = [[json.loads(line) for line in text.splitlines()] for text in texts]
    assert [row["step"] for row in logs[1]] == [1, 2, 3]
    assert [row["train/model_loss"] for row in logs[0]] == [row["train/model_loss"] for row in logs[1]]
    assert {row["frames"] for row in logs[1]} == {80, 160, 240}


def test_from_pixels_to_a_report(tmp_path: Path) -> None:
    """The pixel model learns, its agent survives the disk, and the page has curve, films and promises."""
    options = {**SMALL, "observations": "pixels", "image_size": 32, "model": TINY_PIXELS}
    config = ControlConfig(**options)
    run = control(config, 100, tmp_path, rounds=2, show=quiet)
    run.close()
    agent = Agent.from_pretrained(tmp_path / "agent", action_size=1)
    outcome = final_episodes(agent, config, 3)
    assert outcome.promised.shape == outcome.happened.shape
    assert outcome.happened.sum() == pytest.approx(
        sum(float(e.rewards[: 3 * len(outcome.happened)].sum()) for e in outcome.played.episodes), rel=1e-5
    )
    facts = record(config, run.progress, outcome, 100)
    write_report(tmp_path / "report.html", facts, outcome)
    page = (tmp_path / "report.html").read_text()
    assert "What imagination promised" in page
    assert "data:image/gif" in page
    assert len(facts["curve"]) == 2
    frame = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    first, state = agent.act(frame)
    again, _ = Agent.from_pretrained(tmp_path / "agent").act(frame)
    assert torch.equal(first, again)
    later, _ = agent.act(frame, state)
    assert later.shape == (2, 1)
    with pytest.raises(TypeError, match="expected uint8 frames"):
        agent.act(frame.float())


def test_the_score_function_and_the_adversary_learn_too() -> None:
    """AGAC as an option: its metrics are there, and finite."""
    chosen = ActorCriticConfig(horizon=3, starts=4, gradient="reinforce", adversary=0.1)
    run = control(ControlConfig(**{**SMALL, "actor_critic": chosen}), 100, rounds=1, show=quiet)
    run.close()
    assert run.actor_critic.adversary is not None
    assert all(bool(torch.isfinite(value).all()) for value in run.actor_critic.adversary.state_dict().values())


def test_the_model_learns_before_the_actor_does() -> None:
    config = ControlConfig(**{**SMALL, "model_first": 10**6})
    fresh = begin(config)
    fresh.close()
    run = control(config, 100, rounds=1, show=quiet)
    run.close()
    for part in ("actor", "critic"):
        before, after = getattr(fresh.agent, part).state_dict(), getattr(run.agent, part).state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
    before, after = fresh.agent.world.state_dict(), run.agent.world.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("dynamics"))


def test_a_reward_that_is_nan_ends_the_run_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One error that names episode and step; the run goes on from its checkpoint afterwards."""
    config = ControlConfig(**SMALL)
    control(config, 100, tmp_path, rounds=1, show=quiet).close()
    real = Trajectory

    def spoiled(*arrays: Any, **facts: Any) -> Trajectory:
        made = real(*arrays, **facts)
        made.rewards[5] = np.nan
        return made

    with monkeypatch.context() as patched:
        patched.setattr(collecting, "Trajectory", spoiled)
        with pytest.raises(DataError, match=r"episode 2.*rewards.*finite.*step 5"):
            control(config, 100, tmp_path, rounds=2, resume=True, show=quiet)
    run = control(config, 100, tmp_path, rounds=2, resume=True, show=quiet)
    run.close()
    assert run.replay.count == 4


def test_what_makes_no_sense_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ControlConfig(**SMALL)
    with pytest.raises(OptionError, match="expected a checkpoint to resume from"):
        control(config, 1, tmp_path, resume=True, show=quiet)
    control(config, 100, tmp_path, rounds=1, show=quiet).close()
    with pytest.raises(OptionError, match="holds a run already"):
        control(config, 1, tmp_path, show=quiet)
    with pytest.raises(OptionError, match="found another seed"):
        control(dataclasses.replace(config, seed=2), 1, tmp_path, resume=True, show=quiet)
    assert main(["control", "--domain", "cartpol", "--out", str(tmp_path / "new")]) != 0
    assert "cartpole" in capsys.readouterr().err


def test_an_agent_for_other_actions_is_refused(tmp_path: Path) -> None:
    agent = Agent(AgentConfig("states", {"observation_size": 3, "action_size": 2}, (-1, -1), (1, 1)))
    agent.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected an agent of 1 action entries, found one of 2"):
        Agent.from_pretrained(tmp_path, action_size=1)
    with pytest.raises(ValueError, match="O=3"):
        agent.act(torch.zeros(1, 4))


def test_a_stop_within_the_first_round_leaves_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record of no minutes would pass for one of a run; the same command begins again."""
    monkeypatch.setattr(Preemption, "__enter__", _stop_at_once)
    command = ["control", "--observations", "states", "--num-envs", "2", "--time-limit", "0.4", "--minutes", "9"]
    command += ["--train-ratio", "1", "--threads", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    assert not (tmp_path / "control.json").exists()
    assert not (tmp_path / "agent").exists()
    assert "stopped in the first round, before there was a checkpoint" in capsys.readouterr().err


def _stop_at_once(self: Preemption) -> Preemption:
    self.requested = signal.SIGTERM
    return self


def test_the_command_of_a_record_makes_its_run_again() -> None:
    """Every option that is not the default's is in it; a record used to leave out all but task, minutes and seed."""
    learner = ActorCriticConfig(gradient="reinforce", adversary=0.5)
    config = ControlConfig(action_repeat=4, batch_size=16, seed=7, actor_critic=learner)
    words = command(config, 2.5).split()
    assert words[:2] == ["aime", "control"]
    made = tyro.cli(Control, args=words[2:])
    assert (made.minutes, made.seed, made.action_repeat, made.batch_size) == (2.5, 7, 4, 16)
    assert (made.gradient, made.adversary, made.train_ratio) == ("reinforce", 0.5, 0)
    assert command(ControlConfig(), 90).split()[2:] == [
        *("--domain", "cartpole", "--task", "swingup", "--observations", "pixels", "--minutes", "90", "--seed", "1")
    ]
