"""TrainConfig: presets, aliases and errors."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
import textwrap

import pytest
import torch

from aime.ranges import OptionError
from aime.training import TrainConfig
from aime.training import config as config_module
from aime.training.batches import TrainingData
from tests.training.toy import ToySource


@pytest.mark.parametrize("name", list(config_module.PRESETS))
def test_presets_are_valid_and_end(name) -> None:
    config = TrainConfig.preset(name)
    assert config.epochs or config.steps or config.seconds


def test_tiers_are_the_documented_ones() -> None:
    """But for the passes of tier 1, which are as many as take minutes on a core (docs/tiers.md)."""
    found = {name: TrainConfig.preset(name) for name in ("tier1", "tier2", "tier3")}
    assert [(c.sequence_length, c.batch_size, c.epochs, c.learning_rate) for c in found.values()] == [
        (10, 16, 2, 3e-4),
        (20, 32, 200, 2e-4),
        (50, 32, 500, 2e-4),
    ]
    assert all(config.grad_clip == 5.0 for config in found.values())
    for name in ("tier2", "tier3"):
        assert found[name].beta_warmup_fraction * found[name].epochs == pytest.approx(25)


def test_a_limit_replaces_the_presets() -> None:
    config = TrainConfig.preset("tier1", steps=100)
    assert config.steps == 100 and config.epochs is None
    assert TrainConfig.preset("tier1", num_epochs=3, lr=0.1).learning_rate == 0.1


def test_errors() -> None:
    with pytest.raises(TypeError, match="did you mean batch_size"):
        TrainConfig.preset("laptop", batchsize=3)
    with pytest.raises(TypeError, match="given twice"):
        TrainConfig.preset("laptop", lr=3, learning_rate=2)
    with pytest.raises(ValueError, match="did you mean laptop"):
        TrainConfig.preset("labtop")
    with pytest.raises(ValueError, match="expected an end of the run"):
        TrainConfig()
    with pytest.raises(ValueError, match="batch_size: expected a whole number from 1 to 65536, found 0"):
        TrainConfig(steps=1, batch_size=0)
    with pytest.raises(ValueError, match="precision: expected one of"):
        TrainConfig(steps=1, precision="fp16")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, "three", True, None, [1]])
@pytest.mark.parametrize(
    "field", [f for f in dataclasses.fields(TrainConfig) if f.name != "steps"], ids=lambda f: f.name
)
def test_every_field_refuses_what_makes_no_sense(field, value) -> None:
    """Each by a message that names field, expectation and value; None is the default of what may be left out."""
    if (value is None and field.default is None) or (
        isinstance(value, str) and field.name in ("balancer", "best_metric", "wandb_project")
    ):
        return
    if value is True and isinstance(field.default, bool):
        return
    with pytest.raises(ValueError, match=f"^{field.name}: expected .*, found ") as refused:
        TrainConfig(**{"steps": 1, field.name: value})
    assert repr(value) in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("learning_rate", 2.0), ("grad_clip", 0.0), ("batch_size", 10**6), ("seed", 2**32), ("weight_decay", 1.0)],
)
def test_absurd_values_are_refused(field, value) -> None:
    with pytest.raises(ValueError, match=f"^{field}: expected "):
        TrainConfig(**{"steps": 1, field: value})


def test_every_field_is_documented() -> None:
    body = ast.parse(textwrap.dedent(inspect.getsource(TrainConfig))).body[0].body
    for field, after in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), field.target.id


def test_a_shift_of_a_whole_frame_is_refused() -> None:
    source = ToySource()
    side = min(source.spec.image_shape[-2:])
    config = TrainConfig(steps=1, batch_size=2, sequence_length=4, augment_shift=side)
    with pytest.raises(OptionError, match=f"augment_shift: expected fewer pixels than a frame's side of {side}"):
        TrainingData.open(source, config, torch.device("cpu"))
