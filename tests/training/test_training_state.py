"""Restoring is all or nothing: a checkpoint that does not fit in any one respect changes nothing at all."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from aime.data import PrefetchLoader, WindowSampler
from aime.training import Checkpoint
from aime.training.guard import FiniteGuard
from aime.training.training_state import Counters, capture, restore
from tests.training.toy import ToyModel, ToySource, make_model


class Run:
    """A toy that was trained for two steps, and all that belongs to its state."""

    def __init__(self, seed: int, steps: int = 2) -> None:
        self.model: ToyModel = make_model(seed)
        self.model.configure_optimizer(1e-3, 1e-2, "rgb")
        self.model.rgb_optimizer.get_share_params = lambda: list(self.model.parameters())
        self.loader = PrefetchLoader(WindowSampler(ToySource(), 4, 6, seed=seed))
        self.guard = FiniteGuard(3, torch.device("cpu"))
        self.generator = torch.Generator().manual_seed(seed)
        self.counters = Counters(step=steps, seconds=1.5, frames=48, best=0.5)
        with self.loader:
            for _ in range(steps):
                batch = next(self.loader)
                self.model.training_step_sequence(
                    batch.observations, batch.actions, None, None, beta=1.0, grad_clip=5.0, generator=self.generator
                )

    def capture(self) -> Checkpoint:
        checkpoint = capture(self.model, self.loader, self.counters, self.guard, self.generator)
        tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
        return Checkpoint(tensors, json.loads(json.dumps(checkpoint.values)))

    def restore(self, checkpoint: Checkpoint) -> Counters:
        return restore(checkpoint, self.model, self.loader, self.guard, self.generator)


def assert_same(left: Checkpoint, right: Checkpoint) -> None:
    assert left.values == right.values
    assert left.tensors.keys() == right.tensors.keys()
    for name, tensor in left.tensors.items():
        assert torch.equal(tensor, right.tensors[name]), name


def test_a_state_comes_back_bit_for_bit() -> None:
    saved = Run(1).capture()
    other = Run(2)
    random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    assert other.restore(copy.deepcopy(saved)) == Counters(step=2, seconds=1.5, frames=48, best=0.5)
    assert_same(other.capture(), saved)


def first(tensors: dict[str, Any], part: str) -> str:
    return next(name for name in tensors if part in name)


def change(part: str, how: Callable[[torch.Tensor], Any]) -> Callable[[Checkpoint], None]:
    def apply(checkpoint: Checkpoint) -> None:
        name = first(checkpoint.tensors, part)
        checkpoint.tensors[name] = how(checkpoint.tensors[name])

    return apply


def value(*path: Any) -> Callable[[Checkpoint], None]:
    *keys, last, new = path

    def apply(checkpoint: Checkpoint) -> None:
        place = checkpoint.values
        for key in keys:
            place = place[key]
        place[last] = new

    return apply


PARTS = (
    "model/",
    "exp_avg",
    "exp_avg_sq",
    "/step",
    "balancer/ema",
    "balancer/alpha",
    "balancer/prev",
    "balancer/reach",
)
STATES = ("balancer/step", "random/torch", "random/generator", "guard/total")
WRONG: dict[str, Callable[[Checkpoint], None]] = {
    **{f"{part} of another shape": change(part, lambda t: torch.zeros(t.numel() + 1, dtype=t.dtype)) for part in PARTS},
    **{f"{part} of another shape": change(part, lambda t: torch.zeros(3, dtype=t.dtype)) for part in STATES},
    **{f"{part} of another dtype": change(part, lambda t: t.to(torch.complex64)) for part in (*PARTS, *STATES)},
    **{f"no {part}": lambda c, part=part: c.tensors.pop(first(c.tensors, part)) for part in (*PARTS[:4], *STATES)},
    **{f"NaN in {part}": change(part, lambda t: t * float("nan")) for part in (*PARTS[:4], "balancer/ema")},
    "a count of steps of another dtype": change("/step", lambda t: t.to(torch.int32)),
    "one tensor more": lambda c: c.tensors.update({"model/more": torch.zeros(1)}),
    "one entry of the optimizer more": lambda c: c.tensors.update({"optimizer/decoder.bias/more": torch.zeros(192)}),
    "an optimizer of another parameter": lambda c: c.tensors.update({"optimizer/nobody/step": torch.zeros(())}),
    "a name that nobody knows": lambda c: c.tensors.update({"surprise/more": torch.zeros(1)}),
    "a plain step": lambda c: (
        c.tensors.pop("optimizer/decoder.bias/step"),
        c.values["optimizer"].update({"decoder.bias": {"step": 2}}),
    ),
    "a generator's state of zeros and ones": change("random/torch", lambda t: torch.ones_like(t) * 255),
    "another configuration": value("config", "hidden", 24),
    "no configuration": lambda c: c.values.pop("config"),
    "negative steps": value("counters", "step", -1),
    "a counter more": value("counters", "laps", 1),
    "NaN seconds": value("counters", "seconds", float("nan")),
    "another batch size": value("sampler", "batch_size", 5),
    "a position before the first": value("sampler", "position", -1),
    "a sampler without a seed": lambda c: c.values["sampler"].pop("seed"),
    "python's state cut": value("random", "python", [3, [1, 2], None]),
    "numpy's state cut": value("random", "numpy", ["MT19937", [1, 2], 0, 0, 0.0]),
    "numpy's state of words": value("random", "numpy", "MT19937"),
}


@pytest.fixture(scope="module")
def saved() -> Checkpoint:
    return Run(1).capture()


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_changes_nothing(name, saved) -> None:
    run, checkpoint = Run(2), copy.deepcopy(saved)
    WRONG[name](checkpoint)
    before = run.capture()
    with pytest.raises(ValueError, match="checkpoint"):
        run.restore(checkpoint)
    assert_same(run.capture(), before)
