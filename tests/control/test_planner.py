"""Planners on scores whose best action is known, and the noise that they draw from."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from aime.control.colored_noise import colored_noise
from aime.control.planner import ICEM, MPPI, ICEMConfig, MPPIConfig, Plan, Planner, make_planner

TARGETS = torch.tensor([[0.6, -0.3], [-0.8, 0.1]])  # (B, A)


def near_target(actions: Tensor) -> Tensor:
    """Returns (B, N) of sequences (B, N, H, A): 0 where every action is its environment's target."""
    return -(actions - TARGETS[:, None, None]).square().sum((-1, -2))


def planners(horizon: int = 4) -> list[Planner]:
    return [MPPI(2, MPPIConfig(horizon=horizon, temperature=5.0)), ICEM(2, ICEMConfig(horizon=horizon, iterations=8))]


@pytest.mark.parametrize("index", [0, 1])
def test_each_environment_finds_its_own_best_action(index: int) -> None:
    plan = planners()[index].plan(near_target, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(plan.action, TARGETS, atol=0.15)
    assert plan.elites.shape[2:] == (4, 2)
    values = near_target(plan.elites)
    assert (values[:, :-1] >= values[:, 1:] - 1e-6).all(), "elites come best first"
    assert (plan.value >= values[:, 0] - 1e-6).all()


@pytest.mark.parametrize("index", [0, 1])
def test_a_search_that_starts_from_the_last_plan_is_better_than_a_cold_one(index: int) -> None:
    choices: list[Planner] = [
        MPPI(2, MPPIConfig(horizon=6, iterations=1, temperature=5.0)),
        ICEM(2, ICEMConfig(horizon=6, iterations=1, samples=32)),
    ]
    short = choices[index]
    generator = torch.Generator().manual_seed(0)
    cold: list[Tensor] = []
    warm: list[Tensor] = []
    for _ in range(5):
        plan: Plan | None = None
        for step in range(4):
            plan = short.plan(near_target, 2, plan, generator=generator)
            (cold if step == 0 else warm).append(near_target(plan.mean[:, None]).mean())
    assert torch.stack(warm).mean() > torch.stack(cold).mean()


@pytest.mark.parametrize("index", [0, 1])
def test_environments_do_not_touch_each_other(index: int) -> None:
    """What the second environment is scored by changes nothing for the first."""

    def other(actions: Tensor) -> Tensor:
        values = near_target(actions)
        return torch.stack([values[0], actions[1].sum((-1, -2))])

    found = [planners()[index].plan(s, 2, generator=torch.Generator().manual_seed(3)) for s in (near_target, other)]
    assert torch.equal(found[0].action[0], found[1].action[0])
    assert not torch.equal(found[0].action[1], found[1].action[1])


@pytest.mark.parametrize("index", [0, 1])
def test_sequences_without_a_finite_return_are_never_chosen(index: int) -> None:
    def holes(actions: Tensor) -> Tensor:
        values = near_target(actions)
        return torch.where(actions[..., 0, 0] > 0, torch.nan, values)

    plan = planners()[index].plan(holes, 2, generator=torch.Generator().manual_seed(0))
    assert (plan.elites[:, :, 0, 0] <= 0).all()
    assert plan.action.isfinite().all()
    with pytest.raises(ValueError, match="found none among the sequences of environment 1"):
        planners()[index].plan(
            lambda a: near_target(a) / torch.tensor([[1.0], [0.0]]) * torch.tensor([[1.0], [0.0]]), 2
        )


@pytest.mark.parametrize("index", [0, 1])
def test_a_proposal_that_is_best_is_found(index: int) -> None:
    proposals = TARGETS[:, None, None].expand(2, 1, 4, 2)
    plan = planners()[index].plan(near_target, 2, proposals=proposals, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(plan.value, torch.zeros(2), atol=1e-6)
    with pytest.raises(ValueError, match="proposals: expected"):
        planners()[index].plan(near_target, 2, proposals=proposals[:, :, :3])


def test_no_round_is_begun_that_would_end_after_the_budget() -> None:
    ticks = itertools.count()  # each look at the clock is 10 ms later than the last
    for name, rounds in ((MPPI, 2), (ICEM, 2)):
        config = (MPPIConfig if name is MPPI else ICEMConfig)(iterations=9, budget_ms=25.0)
        planner = name(2, config, clock=lambda: next(ticks) * 0.01)  # type: ignore[arg-type]
        assert planner.plan(near_target, 2).iterations == rounds
        config = (MPPIConfig if name is MPPI else ICEMConfig)(iterations=9, budget_ms=1.0)
        planner = name(2, config, clock=lambda: next(ticks) * 0.01)  # type: ignore[arg-type]
        assert planner.plan(near_target, 2).iterations == 1, "the first round always is run"


def test_the_same_seed_plans_the_same_and_exploring_draws() -> None:
    for planner in planners():
        found = [planner.plan(near_target, 2, generator=torch.Generator().manual_seed(s)).action for s in (1, 1)]
        assert torch.equal(*found)
    mppi = MPPI(2, MPPIConfig(horizon=4, iterations=1))
    one = mppi.plan(near_target, 2, generator=torch.Generator().manual_seed(1))
    other = mppi.plan(near_target, 2, explore=True, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(one.action, other.action)
    assert torch.equal(one.mean, other.mean)
    assert other.action.abs().max() <= 1


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("steps", [2, 12, 13])
def test_noise_has_variance_one_at_every_step(exponent: float, steps: int) -> None:
    noise = colored_noise((20_000,), steps, exponent, torch.Generator().manual_seed(0))
    assert torch.allclose(noise.var(0), torch.ones(steps), atol=0.06)


def test_the_power_of_the_noise_falls_with_frequency_as_it_should() -> None:
    noise = colored_noise((4000,), 64, 2.0, torch.Generator().manual_seed(0))
    power = torch.fft.rfft(noise).abs().square().mean(0)
    slope = torch.log(power[16] / power[4]) / torch.log(torch.tensor(4.0))
    assert abs(float(slope) + 2.0) < 0.15


def test_constants_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="elites: expected at most the 8 samples, found 64"):
        MPPIConfig(samples=8)
    with pytest.raises(ValueError, match="planner: expected mppi or icem, found 'cem'"):
        make_planner("cem", 1)  # type: ignore[arg-type]
    small = make_planner("mppi", 1, samples=64, horizon=5)
    assert isinstance(small, MPPI)
    assert (small.config.elites, small.config.horizon) == (8, 5)
    with pytest.raises(ValueError, match="previous: expected a plan"):
        small.plan(lambda a: a.sum((-1, -2)), 3, small.plan(lambda a: a.sum((-1, -2)), 2))
