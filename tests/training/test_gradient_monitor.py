"""Norms and cosines of each task in each part of the model."""

from __future__ import annotations

import json

import pytest
import torch

from aime.training import GradientMonitor, TrainConfig, train
from aime.training.gradient_monitor import component_of
from tests.training.toy import ToySource, make_model
from tests.world_model.conftest import sequences, small_model


def test_components_are_those_of_the_tasks_own_gradients() -> None:
    model, batch = small_model(), sequences(4)
    model.configure_optimizer(balancer="rgb")
    monitor = GradientMonitor(model)
    assert monitor.measure() == {}
    outputs = model.forward_sequence(*batch.all, generator=torch.Generator().manual_seed(0))
    _, tasks = model.loss_aggregator.compute_losses(outputs)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    gradients = {
        task: torch.autograd.grad(loss, model.trainable, allow_unused=True, retain_graph=True)
        for task, loss in tasks.items()
    }
    model.rgb_optimizer.backward(tasks)
    measured = monitor.measure()
    components = {component_of(name) for name in names}
    assert {"trunk", "posterior", "decoder", "prior", "lstm", "perceiver", "attention"} <= components
    for component in components:
        own = {}
        for task, values in gradients.items():
            pieces = [
                torch.zeros_like(p).flatten() if g is None else g.flatten()
                for name, p, g in zip(names, model.trainable, values, strict=True)
                if component_of(name) == component
            ]
            own[task] = torch.cat(pieces).double()
            norm = measured.get(f"gradients/{component}/norm/{task}", torch.zeros(()))
            assert float(norm) == pytest.approx(float(own[task].norm()), rel=1e-5, abs=1e-12)
        name = f"gradients/{component}/cosine/elbo_predictive"
        if name in measured:
            cosine = torch.nn.functional.cosine_similarity(own["elbo"], own["predictive"], dim=0)
            assert float(measured[name]) == pytest.approx(float(cosine), abs=1e-5)
    assert "gradients/decoder/cosine/elbo_perceiver" not in measured  # the Perceiver does not reach the decoder


def test_the_training_loop_reports_them_every_so_many_steps(tmp_path) -> None:
    options = {"batch_size": 4, "sequence_length": 6, "steps": 4, "log_every": 1, "gradients_every": 2}
    train(make_model(), ToySource(), TrainConfig(**options), tmp_path / "run", tensorboard=False, show_progress=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    with_gradients = [line["step"] for line in lines if "gradients/decoder/norm/elbo" in line]
    assert with_gradients == [2, 4]
    assert -1.0 <= lines[1]["gradients/posterior/cosine/elbo_predictive"] <= 1.0


def test_a_writer_is_asked_for_before_it_is_written_to() -> None:
    class Writer:
        def __init__(self) -> None:
            self.tags: list[str] = []

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            assert isinstance(value, float) and step == 7
            self.tags.append(tag)

    model, writer = small_model(), Writer()
    with pytest.raises(ValueError, match="writer: expected"):
        GradientMonitor(model).log(7)
    model.configure_optimizer(balancer="sum")
    model.training_step_sequence(*sequences(3).all)
    GradientMonitor(model, writer).log(7)
    assert "gradients/decoder/norm/elbo" in writer.tags
