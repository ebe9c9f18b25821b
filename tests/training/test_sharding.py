"""A model that is divided among processes steps, saves and resumes as one that is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aime import sharding
from aime.data import WindowSampler
from aime.ranges import OptionError
from aime.ranks import Ranks
from aime.training.distributed import joined
from aime.training.session import divide_model
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig
from tests.training import ranks as processes
from tests.training.test_distributed import CPU, HERE, STEPS, lines_of, run, source, world_model

SHARDED = [name for name in ("rgb", "upgrad", "pcgrad") if name in HERE]
LINES = {"total_loss", "grad_norm", "rehearsal_loss", "perceiver_perplexity", "frames", "gradients/prior/norm/elbo"}


def steps_of(balancer: str, ranks: Ranks | None) -> list[dict[str, np.ndarray]]:
    """Balanced gradients of a few steps, whole."""
    model, generator = world_model(), torch.Generator().manual_seed(3)
    rank, size = 0, 1
    if ranks is not None:
        rank, size = ranks.rank, ranks.size
        divide_model(model, ranks)
    model.configure_optimizer(1e-4, 1e-5, balancer)  # AdamW turns rounding into steps of the rate
    with sharding.gathered(model):
        model.initialise_from_data(torch.from_numpy(source().frames[0]), generator=generator)
    sampler = WindowSampler(source(), 8, 5, seed=1, rank=rank, world_size=size)
    found = []
    for k in range(STEPS):
        batch = sampler.batch(k)
        model.training_step_sequence(
            batch.observations, batch.actions, batch.rewards, batch.continues, generator=generator, ranks=ranks
        )
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append({name: sharding.whole(gradient).numpy().copy() for name, gradient in gradients.items()})
    return found


def pieces(ranks: Ranks) -> dict[str, Any]:
    """What the functions of `aime.sharding` say of a module with parameters of 1, 3 and 5 rows."""
    torch.manual_seed(2)
    model = torch.nn.Module()
    model.one, model.three = (torch.nn.Parameter(torch.randn(n, 2)) for n in (1, 3))
    model.five = torch.nn.Parameter(torch.randn(5, 2, 3, 3).to(memory_format=torch.channels_last))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sharding.shard(model, ranks)
    with sharding.gathered(model):
        same = all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    parameters = dict(model.named_parameters())
    again = {name: sharding.whole(sharding.divide(before[name], p)) for name, p in parameters.items()}
    gradients = [before["one"] * (ranks.rank + 1), None, before["five"]]
    pairs = zip(sharding.sum_and_divide(gradients, [*parameters.values()], ranks), parameters.values(), strict=True)
    one, three, five = (
        torch.zeros(()) if rows is None else sharding.whole(sharding.divided(rows, p)) for rows, p in pairs
    )
    for parameter in parameters.values():
        parameter.grad = sharding.divide(torch.ones(parameter.shape), parameter)
    norm, last = float(sharding.clip([*parameters.values()], 1.0, ranks)), parameters["five"].grad
    assert last is not None
    return {
        "rows": [len(sharding.held(p)) for p in parameters.values()],
        "same": same,
        "again": all(torch.equal(again[name], before[name]) for name in before),
        "summed": torch.allclose(one, 3 * before["one"]) and torch.allclose(five, 2 * before["five"]),
        "none": three.dim() == 0,
        "norm": norm,
        "clipped": float(sharding.whole(last).norm()),
    }


def refusals(ranks: Ranks) -> list[str]:
    """What cannot be divided."""
    model = DPGMMVariationalRecurrentAutoencoder(
        WorldModelConfig.preset("laptop", action_size=2, image_size=32, orthogonal="manifold")
    )
    scalar = torch.nn.Module()
    scalar.scale = torch.nn.Parameter(torch.ones(()))
    said = []
    with pytest.raises(ValueError, match="expected parameters") as error:
        divide_model(model, ranks)
    said.append(str(error.value))
    with pytest.raises(ValueError, match="expected parameters") as error:
        sharding.shard(scalar, ranks)
    said.append(str(error.value))
    return said


def on_two(rank: int, directory: Path) -> dict[str, Any]:
    """Everything that two ranks are asked for, in one start."""
    with joined(CPU, 120) as ranks:
        assert ranks is not None
        found: dict[str, Any] = {name: steps_of(name, ranks) for name in SHARDED}
        found["pieces"], found["refusals"] = pieces(ranks), refusals(ranks)
        run(directory / "two", 2, ranks, shard=True, gradients_every=1)
        run(directory / "two", 4, ranks, shard=True, gradients_every=1, resume=True)
    return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def two(directory: Path) -> list[dict[str, Any]]:
    return processes.run(on_two, 2, directory)


@pytest.mark.parametrize("balancer", SHARDED)
def test_a_divided_step_is_the_step_of_one_process(two: list[dict[str, Any]], balancer: str) -> None:
    for k, expected in enumerate(steps_of(balancer, None)):
        for rank in range(2):
            assert two[rank][balancer][k].keys() == expected.keys()
            for name, value in expected.items():
                found = two[rank][balancer][k][name]
                np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5, err_msg=f"step {k}, rank {rank}: {name}")


def test_rows_are_divided_and_come_together(two: list[dict[str, Any]]) -> None:
    for rank, rows in enumerate(([1, 2, 3], [0, 1, 2])):
        found = two[rank]["pieces"]
        assert found["rows"] == rows and found["same"] and found["again"] and found["summed"] and found["none"]
        assert found["norm"] == pytest.approx((2 + 6 + 90) ** 0.5)
        assert found["clipped"] == pytest.approx((90 / 98) ** 0.5, rel=1e-5)


def test_what_cannot_be_divided_is_refused(two: list[dict[str, Any]], directory: Path) -> None:
    manifold, scalar = two[0]["refusals"]
    assert "orthogonal" in manifold and "manifold" in manifold
    assert scalar.startswith("scale: expected parameters with an axis")
    with pytest.raises(OptionError, match="shard: expected several processes"):
        run(directory / "alone", 1, None, shard=True)


def test_checkpoints_of_divided_and_whole_models_are_the_same(two: list[dict[str, Any]], directory: Path) -> None:
    """The run of two is the run of one; its checkpoint resumes on one process, and its export loads."""
    run(directory / "one", 4, None, gradients_every=1)
    expected = lines_of(directory / "one")
    divided = lines_of(directory / "two")
    for later in (directory / "two" / "checkpoints").glob("step_00000004"):
        later.rename(directory / "aside")
    run(directory / "two", 4, None, gradients_every=1, resume=True)
    for found in (divided, lines_of(directory / "two")):
        assert sorted(found) == [1, 2, 3, 4]
        assert set(LINES) <= expected[4].keys()
        for step, line in expected.items():
            for name in LINES & line.keys():  # tolerances as in test_distributed
                assert found[step][name] == pytest.approx(line[name], rel=1e-2), (step, name)
        assert found[4]["validation/total_loss"] == pytest.approx(expected[4]["validation/total_loss"], rel=1e-3)
    model = DPGMMVariationalRecurrentAutoencoder.from_pretrained(directory / "two" / "weights")
    assert all(torch.isfinite(p).all() for p in model.parameters())
