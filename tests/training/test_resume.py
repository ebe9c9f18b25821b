"""An interrupted run ends where an uninterrupted one does, whatever interrupted it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aime.training import CheckpointDirectory, TrainConfig, train
from tests.training.toy import ToyConfig, ToyModel, ToySource, make_model

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "batch_size": 4,
    "sequence_length": 6,
    "steps": 24,
    "log_every": 1,
    "validate_every": 8,
    "checkpoint_every": 4,
}
QUIET = {"tensorboard": False, "show_progress": False}


def losses_of(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))  # each step once
    return {line["step"]: line["total_loss"] for line in lines}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, ToyModel]:
    run = tmp_path_factory.mktemp("whole") / "run"
    model = make_model()
    result = train(model, ToySource(), TrainConfig(**OPTIONS), run, **QUIET)
    assert result.finished and result.step == 24
    return run, model


def assert_same(run: Path, model: ToyModel, uninterrupted: tuple[Path, ToyModel]) -> None:
    expected, found = losses_of(uninterrupted[0]), losses_of(run)
    assert found.keys() == expected.keys()
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, abs=1e-6, rel=1e-6), step
    for (name, left), right in zip(model.state_dict().items(), uninterrupted[1].state_dict().values(), strict=True):
        assert torch.allclose(left, right, atol=1e-6), name


class Interrupt(ToyModel):
    """Signals its own process during a step."""

    signal_at: int = 0
    number = signal.SIGTERM

    def training_step_sequence(self, *args, **options):
        if self.calls + 1 == self.signal_at:
            os.kill(os.getpid(), self.number)
        return super().training_step_sequence(*args, **options)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_the_run_continues_exactly(tmp_path, uninterrupted, number) -> None:
    torch.manual_seed(0)
    model = Interrupt()
    model.signal_at, model.number = 11, number
    before = signal.getsignal(number)
    result = train(model, ToySource(), TrainConfig(**OPTIONS), tmp_path / "run", **QUIET)
    assert not result.finished and result.step == 11 and result.weights is None
    assert signal.getsignal(number) is before
    assert CheckpointDirectory(tmp_path / "run" / "checkpoints").latest() == 11
    model = make_model(seed=99)  # other weights and another random state: all must come from the checkpoint
    torch.rand(7)
    result = train(model, ToySource(), TrainConfig(**OPTIONS), tmp_path / "run", resume=True, **QUIET)
    assert result.finished
    assert_same(tmp_path / "run", model, uninterrupted)


@pytest.mark.parametrize("where", ["before rename", "before index"])
def test_kill_in_the_middle_of_a_save(tmp_path, uninterrupted, where) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "tests.training.killed_run", str(run), "12", where]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    checkpoints = CheckpointDirectory(run / "checkpoints")
    assert checkpoints.latest() == 8
    assert any(entry.name.startswith(".writing_00000012") for entry in checkpoints.path.iterdir())
    model = make_model(seed=99)
    train(model, ToySource(), TrainConfig(**OPTIONS), run, resume=True, **QUIET)
    assert_same(run, model, uninterrupted)
    assert not list(checkpoints.path.glob(".writing_*"))


def test_another_model_configuration_is_refused(tmp_path, uninterrupted) -> None:
    model = ToyModel(ToyConfig(hidden=24))
    with pytest.raises(ValueError, match=r"hidden 16 \(now 24\)"):
        train(model, ToySource(), TrainConfig(**OPTIONS), uninterrupted[0], resume=True, **QUIET)


def test_an_existing_run_is_not_overwritten(uninterrupted) -> None:
    with pytest.raises(ValueError, match="found an earlier run"):
        train(make_model(), ToySource(), TrainConfig(**OPTIONS), uninterrupted[0], **QUIET)


def test_a_finished_run_resumes_to_nothing(uninterrupted) -> None:
    model = make_model(seed=5)
    result = train(model, ToySource(), TrainConfig(**OPTIONS), uninterrupted[0], resume=True, **QUIET)
    assert result.finished and result.step == 24 and model.calls == 0
