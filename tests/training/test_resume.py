"""An interrupted run ends where an uninterrupted one does, whatever interrupted it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from aime.training import CheckpointDirectory, TrainConfig, train
from aime.training import checkpoint as checkpoint_module
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


@pytest.fixture(autouse=True)
def signals_as_on_a_terminal() -> Iterator[None]:
    """nohup, cron and some CI runners start processes with signals ignored, and what is ignored stays so."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGUSR1: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, action) for number, action in usual.items()}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, action in before.items():
        signal.signal(number, action)


class Interrupt(ToyModel):
    """Signals its own process during a step."""

    signal_at: int = 0
    number = signal.SIGTERM

    def training_step_sequence(self, *args, **options):
        if self.calls + 1 == self.signal_at:
            os.kill(os.getpid(), self.number)
        return super().training_step_sequence(*args, **options)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_signal_saves_and_the_run_continues_exactly(tmp_path, uninterrupted, number) -> None:
    torch.manual_seed(0)
    model = Interrupt()
    model.signal_at, model.number = 11, number
    before = signal.getsignal(number)
    result = train(model, ToySource(), TrainConfig(**OPTIONS), tmp_path / "run", **QUIET)
    assert not result.finished and result.step == 11 and result.weights is None
    assert result.stopped_by == number.name
    assert signal.getsignal(number) is before
    assert CheckpointDirectory(tmp_path / "run" / "checkpoints").latest() == 11
    model = make_model(seed=99)  # other weights and another random state: all must come from the checkpoint
    torch.rand(7)
    result = train(model, ToySource(), TrainConfig(**OPTIONS), tmp_path / "run", resume=True, **QUIET)
    assert result.finished
    assert_same(tmp_path / "run", model, uninterrupted)


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGTERM, signal.SIGTERM, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
        (signal.SIGINT, signal.SIGINT, signal.SIGTERM),
    ],
)
@pytest.mark.parametrize("late", ["write_tensors", "write_json", "sync_directory"])
def test_signals_during_the_save_change_nothing(tmp_path, monkeypatch, numbers, late) -> None:
    """The first stops the run; the others arrive in the middle of the checkpoint that it causes."""
    model = make_model()
    step, original, rest = model.training_step_sequence, getattr(checkpoint_module, late), list(numbers[1:])

    def interrupted(*args, **values):
        if model.calls + 1 == 3:
            os.kill(os.getpid(), numbers[0])
        return step(*args, **values)

    def signalled(*args, **values):
        while rest:
            os.kill(os.getpid(), rest.pop())
        return original(*args, **values)

    model.training_step_sequence = interrupted
    monkeypatch.setattr(checkpoint_module, late, signalled)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    result = train(model, ToySource(), TrainConfig(**OPTIONS), tmp_path / "run", **QUIET)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before
    assert not rest and result.step == 3 and result.stopped_by == numbers[0].name
    checkpoints = CheckpointDirectory(tmp_path / "run" / "checkpoints")
    assert checkpoints.steps() == [3] and checkpoints.load().values["counters"]["step"] == 3


def test_an_ignored_signal_stays_ignored(tmp_path) -> None:
    """As SIGHUP is under nohup, and SIGINT in a background job."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        model = make_model()
        step = model.training_step_sequence

        def signalled(*args, **values):
            os.kill(os.getpid(), signal.SIGHUP)
            return step(*args, **values)

        model.training_step_sequence = signalled
        assert train(model, ToySource(), TrainConfig(**{**OPTIONS, "steps": 2}), **QUIET).finished
    finally:
        signal.signal(signal.SIGHUP, before)


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


class OnManifold(ToyModel):
    """With a recurrent block on a manifold, whose optimizer counts its steps with a plain int."""

    def __init__(self) -> None:
        super().__init__()
        from aime.temporal_dynamics.manifold import gate_orthogonal_parameter

        blocks = torch.cat([torch.linalg.qr(torch.randn(16, 16))[0] for _ in range(4)])
        self.recurrent = gate_orthogonal_parameter(blocks)

    def configure_optimizer(self, learning_rate, weight_decay, balancer, **options) -> None:
        from aime.temporal_dynamics.manifold import riemannian_adam

        super().configure_optimizer(learning_rate, weight_decay, balancer, **options)
        self.optimizer = riemannian_adam(self.parameters(), lr=learning_rate, weight_decay=weight_decay)

    def forward_sequence(self, observations, actions, generator):
        outputs = super().forward_sequence(observations, actions, generator)
        gates = (outputs["latents"] @ self.recurrent.T).tanh()
        return {**outputs, "attention_dynamics_loss": outputs["attention_dynamics_loss"] + gates.square().mean()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # geoopt still scripts functions when it is imported
def test_a_run_on_a_manifold_continues_exactly(tmp_path) -> None:
    pytest.importorskip("geoopt")
    options = {**OPTIONS, "steps": 14, "checkpoint_every": 0, "validate_every": 0}  # step 10 re-projects
    torch.manual_seed(0)
    whole = OnManifold()
    train(whole, ToySource(), TrainConfig(**options), tmp_path / "whole", **QUIET)
    torch.manual_seed(0)
    first = OnManifold()
    step = first.training_step_sequence

    def interrupted(*args, **values):
        if first.calls + 1 == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **values)

    first.training_step_sequence = interrupted
    assert train(first, ToySource(), TrainConfig(**options), tmp_path / "run", **QUIET).step == 7
    torch.manual_seed(5)
    resumed = OnManifold()
    train(resumed, ToySource(), TrainConfig(**options), tmp_path / "run", resume=True, **QUIET)
    for (name, left), right in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(left, right), name


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
    assert result.finished and result.step == 24 and model.calls == 0 and result.ended_before
    for (name, left), right in zip(model.state_dict().items(), uninterrupted[1].state_dict().values(), strict=True):
        assert torch.equal(left, right), name


def test_a_run_that_was_killed_before_its_export_is_finished_when_resumed(tmp_path) -> None:
    """Weights of an earlier end lie there, or none: those of the last checkpoint are exported."""
    run = tmp_path / "run"
    first, later = TrainConfig(**OPTIONS | {"steps": 4}), TrainConfig(**OPTIONS | {"steps": 8})
    train(make_model(), ToySource(), first, run, **QUIET)
    earlier = {name: (run / name).read_bytes() for name in ("timing.json", "weights/model.npz")}
    train(make_model(), ToySource(), later, run, resume=True, **QUIET)
    exported = {file.name: file.read_bytes() for file in (run / "weights").iterdir()}
    assert exported["model.npz"] != earlier["weights/model.npz"]
    for name, content in earlier.items():
        (run / name).write_bytes(content)
    for _ in range(2):
        result = train(make_model(), ToySource(), later, run, resume=True, **QUIET)
        assert result.step == 8 and not result.ended_before
        assert {file.name: file.read_bytes() for file in (run / "weights").iterdir()} == exported
        shutil.rmtree(run / "weights")


def test_augmented_windows_resume_exactly_and_are_what_is_trained_on(tmp_path) -> None:
    changes = {"augment_shift": 2, "augment_jitter": 0.2, "augment_zoom": 0.5}
    whole = make_model()
    train(whole, ToySource(), TrainConfig(**OPTIONS, **changes), tmp_path / "whole", **QUIET)
    torch.manual_seed(0)
    model = Interrupt()
    model.signal_at = 11
    result = train(model, ToySource(), TrainConfig(**OPTIONS, **changes), tmp_path / "run", **QUIET)
    assert not result.finished and result.step == 11
    model = make_model(seed=99)
    train(model, ToySource(), TrainConfig(**OPTIONS, **changes), tmp_path / "run", resume=True, **QUIET)
    assert_same(tmp_path / "run", model, (tmp_path / "whole", whole))
    plain = make_model()
    train(plain, ToySource(), TrainConfig(**OPTIONS), tmp_path / "plain", **QUIET)
    assert losses_of(tmp_path / "plain") != losses_of(tmp_path / "whole")
