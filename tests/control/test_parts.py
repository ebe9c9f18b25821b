"""Heads, actor, critic and adversary."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aime.control.actor import ActionDistribution, Actor
from aime.control.actor_critic import ActorCriticConfig, ReturnScale
from aime.control.agac import Adversary, annealed
from aime.control.critic import Critic
from aime.control.heads import TwoHotHead, symexp, symlog
from aime.ranges import OptionError


def layer(net: nn.Sequential, index: int) -> nn.Linear:
    """A linear layer of a perceptron."""
    found = net[index]
    assert isinstance(found, nn.Linear)
    return found


def test_symexp_undoes_symlog() -> None:
    x = torch.tensor([-1000.0, -0.1, 0.0, 3.0, 800.0])
    assert torch.allclose(symexp(symlog(x)), x, rtol=1e-5)


def test_a_head_says_nothing_until_it_has_learnt() -> None:
    torch.manual_seed(0)
    assert TwoHotHead(6, 8)(torch.randn(100, 6)).abs().max() == 0.0


@pytest.mark.parametrize("number", [-500.0, -0.3, 0.0, 0.7, 2.0, 650.0])
def test_the_best_code_of_a_number_is_that_number(number: float) -> None:
    """Cross entropy to one target is least where the head's mean is the target."""
    head = TwoHotHead(1, 4)
    logits = torch.zeros(1, len(head.edges), requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        head.loss(logits, torch.tensor([number])).sum().backward()
        optimizer.step()
    assert float(head.mean(logits).detach()) == pytest.approx(number, abs=0.02 + 0.02 * abs(number))


def test_densities_entropy_and_divergence_are_torchs() -> None:
    torch.manual_seed(0)
    ours = ActionDistribution(torch.randn(5, 2), torch.rand(5, 2) + 0.1, torch.zeros(5, 2))
    other = ActionDistribution(torch.randn(5, 2), torch.rand(5, 2) + 0.1, torch.zeros(5, 2))
    theirs, others = (torch.distributions.Normal(p.mean, p.std) for p in (ours, other))
    action = torch.randn(5, 2)
    assert torch.allclose(ours.log_prob(action), theirs.log_prob(action).sum(-1), atol=1e-5)
    assert torch.allclose(ours.entropy(), theirs.entropy().sum(-1), atol=1e-5)
    divergence = torch.distributions.kl_divergence(theirs, others).sum(-1)
    assert torch.allclose(ours.kl_divergence(other), divergence, atol=1e-5)


def test_actions_stay_within_bounds_and_still_teach_beyond_them() -> None:
    actor = Actor(3, [-2.0, 0.0], [2.0, 1.0], width=4)
    sample = torch.tensor([[5.0, -7.0]], requires_grad=True)
    scaled = actor.scaled(sample)
    assert scaled.tolist() == [[2.0, 0.0]]
    scaled.sum().backward()
    assert sample.grad is not None
    assert sample.grad.tolist() == [[2.0, 0.5]]
    policy = actor(torch.randn(50, 3))
    assert policy.std.min() >= 0.1
    assert policy.std.max() <= 1.0


def test_raw_means_are_pulled_back_only_where_tanh_is_flat() -> None:
    raw = torch.tensor([[-4.0, 1.4], [0.0, 2.5]], requires_grad=True)
    excess = ActionDistribution(torch.tanh(raw), torch.ones(2, 2), raw).excess()
    assert excess.tolist() == [6.25, 1.0]
    excess.sum().backward()
    assert raw.grad is not None
    assert raw.grad.tolist() == [[-5.0, 0.0], [0.0, 2.0]]


def test_unbounded_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="expected finite bounds"):
        Actor(3, [-float("inf")], [1.0])


def test_the_slow_copy_follows_by_its_rate() -> None:
    torch.manual_seed(0)
    critic = Critic(3, width=4)
    with torch.no_grad():
        layer(critic.head.net, 0).weight.add_(1.0)
    before = layer(critic.slow.net, 0).weight.clone()
    critic.follow(0.25)
    assert torch.allclose(layer(critic.slow.net, 0).weight, before + 0.25)


def test_small_returns_are_not_blown_up() -> None:
    scale = ReturnScale()
    assert float(scale.update(torch.rand(1000) * 0.1)) == 1.0
    large = ReturnScale()
    assert float(large.update(torch.linspace(0, 100, 1001))) == pytest.approx(90.0)


def test_the_adversary_learns_the_actor_with_its_own_rate_and_alone() -> None:
    torch.manual_seed(0)
    actor = Actor(3, [-1.0], [1.0], width=16)
    with torch.no_grad():
        layer(actor.net, -1).bias[0] = 1.0
    adversary = Adversary(actor, learning_rate=3e-3)
    features, weights = torch.randn(64, 3), torch.ones(64)
    policy = actor(features)
    actions = policy.sample()
    before, kept = adversary.bonus(policy.detach(), features, actions).mean(), layer(actor.net, 0).weight.clone()
    assert adversary.bonus(policy.detach(), features, actions).shape == (64,)
    for _ in range(300):
        divergence = adversary.learn(policy, features, weights)
    assert float(divergence) < 0.05
    assert float(adversary.bonus(policy.detach(), features, actions).mean()) < 0.2 * float(before)
    assert torch.equal(layer(actor.net, 0).weight, kept)
    assert layer(actor.net, 0).weight.grad is None


def test_the_bonus_is_annealed_to_nothing() -> None:
    assert annealed(0.4, 0.0) == 0.4
    assert annealed(0.4, 0.5) == pytest.approx(0.2)
    assert annealed(0.4, 1.2) == 0.0


def test_an_adversary_needs_the_score_function() -> None:
    with pytest.raises(OptionError, match="expected gradient reinforce"):
        ActorCriticConfig(adversary=0.1)
