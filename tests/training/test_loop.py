"""The loop: limits, schedules, logging, the NaN guard and what a run leaves on disk."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from aime.training import NonFiniteError, TrainConfig, train
from aime.training.guard import RunningMeans
from aime.training.schedule import beta, elapsed_fraction, learning_rate_factor
from tests.training.toy import ToySource, make_model

QUIET = {"tensorboard": False, "show_progress": False}
SMALL = {"batch_size": 4, "sequence_length": 6, "log_every": 5, "validate_every": 0, "checkpoint_every": 0}


def read_metrics(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_training_learns_and_leaves_a_complete_run(tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "timing.json").write_text('{"collect": 3.5}')
    model = make_model()
    config = TrainConfig(**{**SMALL, "steps": 150, "learning_rate": 3e-3, "validate_every": 50})
    result = train(model, ToySource(), config, run, provenance={"preset": "toy"}, **QUIET)
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == list(range(5, 151, 5))
    assert lines[-1]["total_loss"] < 0.5 * lines[0]["total_loss"]
    validated = [line for line in lines if "validation/total_loss" in line]
    assert [line["step"] for line in validated] == [50, 100, 150]
    assert validated[-1]["validation/total_loss"] < validated[0]["validation/total_loss"]
    for key in ("epoch", "frames", "seconds", "learning_rate", "beta", "bad_steps", "frames_per_second", "data_stall"):
        assert all(np.isfinite(line[key]) for line in lines), key
    assert lines[-1]["frames"] == 150 * 4 * 6 == result.frames
    timing = json.loads((run / "timing.json").read_text())
    assert timing["collect"] == 3.5 and timing["frames_trained"] == 3600
    assert timing["train"] > 0 and timing["train_setup"] > 0
    assert json.loads((run / "run.json").read_text())["preset"] == "toy"
    assert json.loads((run / "run.json").read_text())["task"] == "toy-square"
    written = json.loads((run / "config.json").read_text())
    assert written["train"]["steps"] == 150 and written["model"]["hidden"] == 16 and written["parameters"] > 1000
    assert (run / "weights" / "config.json").is_file() and result.weights == run / "weights"
    assert (run / "checkpoints" / "best.json").is_file()


def test_exported_weights_are_the_best_ones(tmp_path) -> None:
    """With a diverging rate the best validation comes early; its weights are exported, not the last."""
    model = make_model()
    config = TrainConfig(
        **{**SMALL, "steps": 40, "learning_rate": 3e-2, "warmup_fraction": 0.0, "final_learning_rate": 1.0}
        | {"validate_every": 2, "grad_clip": 1e9}
    )
    train(model, ToySource(), config, tmp_path / "run", **QUIET)
    validated = {
        line["step"]: line["validation/total_loss"]
        for line in read_metrics(tmp_path / "run")
        if "validation/total_loss" in line
    }
    best = min(validated, key=lambda step: validated[step])
    assert json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text())["step"] == best
    exported = np.load(tmp_path / "run" / "weights" / "model.npz")
    from aime.training import CheckpointDirectory

    expected = CheckpointDirectory(tmp_path / "run" / "checkpoints").load(best).tensors
    for name in exported.files:
        tensor = expected.get(f"average/{name}", expected[f"model/{name}"])  # averages of what is trained
        assert np.array_equal(exported[name], tensor.numpy()), name


@pytest.mark.parametrize(("limits", "steps"), [({"epochs": 2}, 12), ({"steps": 7}, 7), ({"steps": 7, "epochs": 1}, 6)])
def test_the_first_limit_ends_the_run(limits, steps) -> None:
    # 8 training episodes of 20 frames, 24 frames a step: 6 steps an epoch.
    model = make_model()
    assert train(model, ToySource(), TrainConfig(**SMALL, **limits), **QUIET).step == steps == model.calls


def test_a_budget_of_seconds_ends_the_run_and_drives_the_schedules() -> None:
    """A clock that ticks a tenth of a second at each look: the run ends by it, with the rate annealed."""
    ticks = itertools.count()
    model = make_model()
    result = train(model, ToySource(), TrainConfig(**SMALL, seconds=10.0), clock=lambda: next(ticks) * 0.1, **QUIET)
    assert result.finished
    assert 20 < result.step < 100
    rates = [group["lr"] for group in model.optimizer.param_groups]
    assert rates[0] == pytest.approx(2 * rates[1])  # groups keep their multiples
    assert rates[1] < 0.1 * 3e-4
    assert "validation/total_loss" in result.metrics


def test_cpu_seconds_are_those_of_the_process_in_training(tmp_path) -> None:
    """A CPU clock that gives half a second a look: timing.json and the log say what passed between first and last."""
    ticks = itertools.count(100)
    config = TrainConfig(**{**SMALL, "steps": 4, "log_every": 2, "validate_every": 0})
    train(make_model(), ToySource(), config, tmp_path / "run", cpu_clock=lambda: next(ticks) * 0.5, **QUIET)
    spent = json.loads((tmp_path / "run" / "timing.json").read_text())["train_cpu"]
    looks = next(ticks) - 101
    assert 0 < spent <= looks * 0.5
    logged = [line["cpu_seconds"] for line in read_metrics(tmp_path / "run")]
    assert logged == sorted(logged) and 0 < logged[0] < spent


def test_schedules() -> None:
    config = TrainConfig(
        steps=100, warmup_fraction=0.1, final_learning_rate=0.2, beta_min=0.25, beta_warmup_fraction=0.5
    )
    assert learning_rate_factor(config, 0.05) == pytest.approx(0.5)
    assert learning_rate_factor(config, 0.1) == pytest.approx(1.0)
    assert learning_rate_factor(config, 0.55) == pytest.approx(0.6)
    assert learning_rate_factor(config, 1.0) == pytest.approx(0.2)
    assert beta(config, 0.0) == 0.25 and beta(config, 0.25) == pytest.approx(0.625) and beta(config, 0.5) == 1.0
    both = TrainConfig(steps=100, seconds=50)
    assert elapsed_fraction(both, steps=10, seconds=20.0, epochs=0.3) == pytest.approx(0.4)
    assert elapsed_fraction(both, steps=500, seconds=20.0, epochs=0.3) == 1.0


def test_nan_steps_are_skipped_and_counted_then_stop_the_run(tmp_path) -> None:
    model = make_model()
    model.poison_from = 6
    config = TrainConfig(**SMALL, steps=100, bad_steps_allowed=4)
    with pytest.raises(NonFiniteError, match=r"step 10: 5 steps in a row .*bad_batch_step_10\.npz"):
        train(model, ToySource(), config, tmp_path / "run", **QUIET)
    batch = np.load(tmp_path / "run" / "bad_batch_step_10.npz")
    assert batch["observations"].shape == (4, 6, 3, 8, 8) and batch["actions"].shape == (4, 6, 2)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_few_nan_steps_are_survived() -> None:
    model = make_model()
    step = model.training_step_sequence

    def sometimes(*args, **options):
        model.poison_from = model.calls + 1 if model.calls % 3 == 0 else None
        return step(*args, **options)

    model.training_step_sequence = sometimes
    result = train(model, ToySource(), TrainConfig(**SMALL, steps=30, bad_steps_allowed=2), **QUIET)
    assert result.bad_steps == 10 and result.metrics["bad_steps"] == 10
    assert np.isfinite(result.metrics["total_loss"])


def poisoned(at: int, value: float):
    """A toy of which one parameter is lost at a step, by finite gradients."""
    model = make_model()
    step = model.training_step_sequence

    def training_step(*args, **options):
        metrics = step(*args, **options)
        if model.calls == at:
            with torch.no_grad():
                model.decoder.weight[0, 0] = value
        return metrics

    model.training_step_sequence = training_step
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("rhythm", [{"log_every": 1, "checkpoint_every": 2}, {"log_every": 100, "checkpoint_every": 2}])
def test_lost_parameters_are_neither_saved_nor_exported(tmp_path, value, rhythm) -> None:
    config = TrainConfig(**{**SMALL, **rhythm, "steps": 6, "bad_steps_allowed": 100, "weight_average": 0.0})
    with pytest.raises(
        NonFiniteError, match=r"decoder\.weight holds NaN or infinity in 1 of 3072 .*lower learning rate"
    ):
        train(poisoned(3, value), ToySource(), config, tmp_path / "run", **QUIET)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [entry.name for entry in checkpoints.iterdir()] == ["step_00000002"]
    assert not (tmp_path / "run" / "weights").exists()


def test_lost_parameters_are_no_success_without_a_run_directory() -> None:
    with pytest.raises(NonFiniteError, match="decoder.weight"):
        train(poisoned(2, float("nan")), ToySource(), TrainConfig(**SMALL, steps=2, weight_average=0.0), **QUIET)


def test_a_run_that_skipped_every_step_is_no_success(tmp_path) -> None:
    model = make_model()
    model.poison_from = 1
    with pytest.raises(NonFiniteError, match="all 4 steps had NaN or infinite gradients and were skipped"):
        train(model, ToySource(), TrainConfig(**SMALL, steps=4), tmp_path / "run", **QUIET)
    assert not (tmp_path / "run" / "weights").exists()


def test_running_means_leave_bad_steps_out() -> None:
    means = RunningMeans()
    for value, finite in ((1.0, True), (float("nan"), False), (3.0, True)):
        means.update({"loss": torch.tensor(value), "finite": torch.tensor(finite)})
    assert means.read() == {"loss": 2.0}
    assert means.read() == {}


def test_tensorboard_holds_the_scalars(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(make_model(), ToySource(), TrainConfig(**SMALL, steps=10), tmp_path / "run", show_progress=False)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"train/total_loss", "train/grad_norm", "validation/total_loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/total_loss")] == [5, 10]


def test_without_tensorboard_the_run_goes_on_and_says_so(tmp_path, monkeypatch, capsys) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else find(name, *rest)
    )
    train(make_model(), ToySource(), TrainConfig(**SMALL, steps=5), tmp_path / "run", show_progress=False)
    assert capsys.readouterr().out.count("tensorboard is not installed") == 1
    assert len(read_metrics(tmp_path / "run")) == 1


def test_data_that_do_not_fit_the_model() -> None:
    with pytest.raises(ValueError, match="action_size: the model expects 2, found 5"):
        train(make_model(), ToySource(action_size=5), TrainConfig(**SMALL, steps=1), **QUIET)
    with pytest.raises(ValueError, match=r"best_metric: expected one of .*found 'loss'"):
        train(make_model(), ToySource(), TrainConfig(**SMALL, steps=1, best_metric="loss"), **QUIET)


def test_balancer_by_name() -> None:
    config = TrainConfig(**SMALL, steps=3, balancer="sum", balancer_options={})
    assert train(make_model(), ToySource(), config, **QUIET).step == 3
    with pytest.raises(ValueError, match="did you mean sum"):
        train(make_model(), ToySource(), TrainConfig(**SMALL, steps=3, balancer="summ", balancer_options={}), **QUIET)
