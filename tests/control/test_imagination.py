"""Imagination and returns: against plain loops, and on a decision process whose values are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from aime.control.actor import Actor
from aime.control.critic import Critic
from aime.control.heads import ContinueHead, TwoHotHead
from aime.control.imagination import Belief, imagine, lambda_returns, reach
from aime.control.state_model import StateModelConfig, StateWorldModel
from aime.control.worlds import beliefs, feature_size

CONFIG = StateModelConfig(observation_size=3, action_size=2, latent_dim=4, hidden_dim=8, width=8, max_components=2)


def layer(net: nn.Sequential, index: int) -> nn.Linear:
    """A linear layer of a perceptron."""
    found = net[index]
    assert isinstance(found, nn.Linear)
    return found


def test_lambda_returns_are_those_of_the_definition() -> None:
    """R_t as the weighted sum of all n-step returns, computed in float64 without the recursion."""
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 3, 6, dtype=torch.float64, generator=generator)
    continues = torch.rand(3, 6, dtype=torch.float64, generator=generator)
    gamma, lambda_ = 0.9, 0.7
    found = lambda_returns(rewards, continues, values, gamma, lambda_)
    for row in range(3):
        for t in range(6):
            total, weight_left = 0.0, 1.0
            for n in range(1, 6 - t + 1):  # the n-step return from t
                n_step, factor = 0.0, 1.0
                for k in range(t, t + n):
                    n_step += factor * float(rewards[row, k])
                    factor *= gamma * float(continues[row, k])
                n_step += factor * float(values[row, t + n - 1])
                last = n == 6 - t
                total += (weight_left if last else weight_left * (1 - lambda_)) * n_step
                weight_left *= lambda_
            assert float(found[row, t]) == pytest.approx(total, rel=1e-12)


def test_an_ended_episode_has_no_further_rewards() -> None:
    """What follows an end counts for nothing, neither in returns nor in the weights of the states behind it."""
    rewards, values = torch.ones(1, 4), torch.full((1, 4), 100.0)
    continues = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    returns = lambda_returns(rewards, continues, values, 1.0, 1.0)
    assert returns[0, :2].tolist() == [2.0, 1.0]
    assert reach(continues, 0.5).tolist() == [[1.0, 0.5, 0.0, 0.0]]


class CountingDynamics:
    """h_{t} = h_{t-1} + a_t, so that every feature tells which actions it has absorbed."""

    def step(self, inputs: Tensor, lstm: Tensor) -> tuple[Tensor, Tensor]:
        lstm = lstm + inputs[:, 1:]
        return lstm, lstm


class CountingWorld:
    """A world whose latent is the time: z_{t+1} = z_t + 1."""

    dynamics = CountingDynamics()

    def recurrent_input(self, latent: Tensor, actions: Tensor) -> Tensor:
        return torch.cat([latent, actions], -1)

    def sample_next_latent(self, hidden: Tensor, latent: Tensor, *_: object) -> tuple[Tensor, None]:
        return latent + 1, None


def test_credit_goes_to_the_action_that_earned_it() -> None:
    """Rewards are read from a state that has absorbed their own action and no later one."""
    actor = Actor(2, [-1.0], [1.0], width=4)
    start = Belief(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1))  # type: ignore[arg-type]
    seen: list[Tensor] = []

    def reward(features: Tensor) -> Tensor:
        seen.append(features)
        return features[..., 0]

    dream = imagine(CountingWorld(), actor, reward, lambda f: torch.ones(f.shape[:-1]), start, 5)  # type: ignore[arg-type]
    taken = dream.actions[..., 0].clamp(-1, 1)
    assert torch.allclose(dream.rewards, taken.cumsum(1))
    assert seen[0][0, :, 1].tolist() == [0, 1, 2, 3, 4]
    assert dream.features[0, :, 1].tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.allclose(dream.features[0, 1:, 0], dream.rewards[0])


def test_the_critic_finds_the_values_of_a_known_process() -> None:
    """A chain of 4 states that go round and pay in state 3 alone: values follow from the geometric series."""
    torch.manual_seed(0)
    gamma, states = 0.8, torch.eye(4)
    critic = Critic(4, width=16)
    optimizer = torch.optim.Adam(critic.head.parameters(), lr=2e-2)
    rewards = torch.tensor([0.0, 0.0, 0.0, 1.0])
    order = torch.stack([(torch.arange(5) + first) % 4 for first in range(4)])  # (4, H + 1) states of each rollout
    for _ in range(100):
        features = states[order]
        with torch.no_grad():
            values = critic(features)
            returns = lambda_returns(rewards[order[:, :-1]], torch.ones(4, 4), values[:, 1:], gamma, 0.9)
        loss = critic.loss(features[:, :-1], returns).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        critic.follow(0.5)
    expected = torch.tensor([gamma**3, gamma**2, gamma, 1.0]) / (1 - gamma**4)
    assert torch.allclose(critic(states).detach(), expected, atol=0.15)


def test_beliefs_at_every_frame_equal_single_steps() -> None:
    """The belief at frame t holds h_{t-1} and its raw recurrent state; frame 0 the learned initial state."""
    torch.manual_seed(0)
    world = StateWorldModel(CONFIG)
    latent, actions = torch.randn(2, 5, 4), torch.randn(2, 5, 2)
    rows, acted = beliefs(world, latent, actions)
    state = world.dynamics.initial_state(2)
    hidden = world.dynamics.output(state)
    for t in range(5):
        at = slice(t, 10, 5)  # row b T + t
        assert torch.allclose(rows.hidden[at], hidden, atol=1e-5)
        assert torch.allclose(rows.lstm.cell[at], state.cell, atol=1e-5)
        assert torch.equal(rows.latent[at], latent[:, t])
        hidden, state = world.dynamics.step(world.recurrent_input(latent[:, t], actions[:, t]), state)
        assert torch.allclose(acted[:, t, :8], hidden, atol=1e-5)


def test_the_gradient_through_the_world_is_that_of_finite_differences() -> None:
    """With fixed noise, moving one bias of the actor changes the imagined return as its gradient says."""
    torch.manual_seed(0)
    world = StateWorldModel(CONFIG).double()
    inputs = feature_size(world)
    actor, reward, ends = Actor(inputs, [-1.0] * 2, [1.0] * 2, 8).double(), TwoHotHead(inputs, 8), ContinueHead(inputs)
    torch.nn.init.normal_(layer(reward.net, -1).weight)
    reward, ends = reward.double(), ends.double()
    rows, _ = beliefs(world, torch.randn(1, 3, 4).double(), torch.randn(1, 3, 2).double())
    bias = layer(actor.net, -1).bias
    with torch.no_grad():  # far from the bounds, where gradient and difference part on purpose
        bias[2:] = -20.0

    def total() -> Tensor:
        torch.manual_seed(1)
        return imagine(world, actor, reward, ends, rows, 4).rewards.sum()

    (gradient,) = torch.autograd.grad(total(), [bias])
    with torch.no_grad():
        bias[0] += 1e-3
        above = total()
        bias[0] -= 2e-3
        below = total()
    assert float((above - below) / 2e-3) == pytest.approx(float(gradient[0]), rel=0.1, abs=1e-3)
