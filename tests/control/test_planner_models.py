"""Models to plan with: the adapter of the world model, the exact simulator, a user's own, and the policy over them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aime.control.imaginable import WorldModelImaginable
from aime.control.planner import ICEM, ICEMConfig
from aime.control.planning import PlanningPolicy
from aime.control.simulator import SimulatorModel
from aime.envs import ParallelEnvironment
from aime.evaluation.forecasters import ForecastTask, WorldModelForecaster
from aime.evaluation.foreign import ImaginableForecaster
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig
from aime.world_model.imaginable import Imaginable, Imagined, check_imagined

BOUNDS = (np.array([-1.0]), np.array([1.0]))


@pytest.fixture(scope="module")
def model() -> DPGMMVariationalRecurrentAutoencoder:
    torch.manual_seed(0)
    config = WorldModelConfig.preset(
        "pillars", action_size=1, image_size=32, attention_resolution=8, encoder_channels=(8, 16),
        decoder_channels=(16, 8), cells_per_level=1, downsample=8, patch_size=4,
    )  # fmt: skip
    model = DPGMMVariationalRecurrentAutoencoder(config).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():  # it begins with the mean image whatever the latent is
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


class Counter:
    """A user's model of two methods: the state is the last frame's mean, an action adds to it, 1 is the best place."""

    def observe(self, observations: Tensor, actions: Tensor, state: Any = None, *, generator: Any = None) -> Tensor:
        del actions, state, generator
        return observations[:, -1].float().mean((1, 2, 3))  # (B,)

    def imagine(self, state: Tensor, actions: Tensor, *, frames: bool = False, generator: Any = None) -> Imagined:
        del frames, generator
        places = state[:, None, None] + 0.1 * actions.sum(-1).cumsum(-1)  # (B, N, Hz)
        return Imagined(rewards=-(places - 1.0).square())


def test_observing_frame_by_frame_equals_all_at_once_and_agrees_with_the_model(
    model: DPGMMVariationalRecurrentAutoencoder,
) -> None:
    frames = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    actions = torch.randn(2, 4, 1, generator=torch.Generator().manual_seed(1))
    adapter = WorldModelImaginable(model)
    assert isinstance(adapter, Imaginable)
    whole = adapter.observe(frames, actions, generator=torch.Generator().manual_seed(5))
    # the model is told each action after its frame: the same recurrence, up to the last frame's action
    known = torch.cat([actions[:, 1:], torch.zeros(2, 1, 1)], 1)
    direct = model.observe(frames, known, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(whole.hidden, direct.hidden[:, 2], atol=1e-5)
    assert torch.allclose(whole.latent, direct.latent[:, 3], atol=1e-5)
    first = adapter.observe(frames[:, :3], actions[:, :3], generator=torch.Generator().manual_seed(5))
    second = adapter.observe(frames[:, 3:], actions[:, 3:], first)
    assert torch.allclose(second.hidden, adapter._absorb(first, actions[:, 3]).hidden, atol=1e-5)
    other = adapter.observe(frames[:, 3:], -actions[:, 3:], first)
    assert not torch.allclose(second.hidden, other.hidden)


def test_the_first_reward_is_that_of_the_first_action_at_the_observed_latent(
    model: DPGMMVariationalRecurrentAutoencoder,
) -> None:
    """Credit: with an action-reading reward, reward k must move with action k and with none after it."""
    frames = torch.randint(0, 256, (1, 3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    adapter = WorldModelImaginable(model, temperature=0.0, value=lambda features: features.sum(-1))
    state = adapter.observe(frames, torch.zeros(1, 3, 1), generator=torch.Generator().manual_seed(0))
    candidates = torch.zeros(3, 1, 1, 4, 1)  # one call for each, with the same draws
    candidates[1, 0, 0, 0] = 1.0
    candidates[2, 0, 0, 2] = 1.0
    found = [
        adapter.imagine(state, actions, frames=True, generator=torch.Generator().manual_seed(0))
        for actions in candidates
    ]
    for imagined in found:
        check_imagined(imagined, 1, 1, 4, (3, 32, 32))
    still, early, late = (imagined.rewards[0, 0] for imagined in found if imagined.rewards is not None)
    frame = [imagined.observations[0, 0] for imagined in found if imagined.observations is not None]
    assert not torch.isclose(still[0], early[0], atol=1e-6)
    assert torch.allclose(still[:2], late[:2], atol=1e-6)
    assert not torch.isclose(still[2], late[2], atol=1e-6)
    assert not torch.allclose(frame[0][0], frame[1][0], atol=1e-4)
    assert torch.allclose(frame[0][:2], frame[2][:2], atol=1e-5)
    assert not torch.allclose(frame[0][2], frame[2][2], atol=1e-4)
    absorbed = model.reward_head(adapter._absorb(state, candidates[1, :, 0, 0]).hidden).squeeze()
    assert torch.allclose(early[0], absorbed, atol=1e-5)


def test_returns_are_discounted_and_end_with_the_episode() -> None:
    rewards = torch.tensor([[[1.0, 2.0, 4.0]]])
    assert Imagined(rewards).returns(0.5).item() == 1 + 1 + 1
    assert Imagined(rewards, values=torch.tensor([[8.0]])).returns(0.5).item() == 3 + 1
    ends = torch.tensor([[[1.0, 0.0, 1.0]]])
    assert Imagined(rewards, continues=ends, values=torch.tensor([[8.0]])).returns(1.0).item() == 3
    with pytest.raises(ValueError, match="expected rewards"):
        Imagined().returns()
    with pytest.raises(ValueError, match=r"expected rewards of shape \(1, 1, 2\), found \(1, 1, 3\)"):
        check_imagined(Imagined(rewards), 1, 1, 2)


def test_a_users_model_of_two_methods_is_planned_with() -> None:
    policy = PlanningPolicy(Counter(), ICEM(1, ICEMConfig(horizon=3)), np.array([-2.0]), np.array([6.0]))
    frames = torch.stack([torch.full((3, 8, 8), 0), torch.full((3, 8, 8), 2)]).to(torch.uint8)
    action, state = policy.act(frames)
    assert 4.0 < action[0] <= 6.0, "upwards, in the task's bounds"
    assert -2.0 <= action[1] < 0.0
    policy.act(frames, state)
    assert policy.decisions.summary()["decisions"] == 2
    with pytest.raises(ValueError, match="finite bounds"):
        PlanningPolicy(Counter(), ICEM(1), np.array([-np.inf]), np.array([np.inf]))


def test_the_simulator_foresees_exactly_what_comes() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 5, 2))
    with (
        ParallelEnvironment("reacher", "easy", 3, action_repeat=2, seed=4) as env,
        SimulatorModel("reacher", "easy", 4, action_repeat=2) as model,
    ):
        env.reset()
        for _ in range(3):
            env.step(actions[:, 0])
        state = model.observe(env.state())
        plans = torch.from_numpy(np.stack([-actions, actions], 1)).float()  # (B, N, Hz, A)
        found = model.imagine(state, plans).rewards
        assert found is not None
        played = np.stack([env.step(actions[:, k].astype(np.float32)).reward.copy() for k in range(5)], 1)
    assert np.allclose(found[:, 1].numpy(), played, atol=1e-6)


def test_planning_with_the_physics_beats_chance_on_cartpole() -> None:
    """Half a second of swing-up from the pole hanging: the search must raise the pole, which random actions do not."""
    returns = {}
    for name in ("plan", "random"):
        with (
            ParallelEnvironment("cartpole", "balance", 1, action_repeat=8, seed=1) as env,
            SimulatorModel("cartpole", "balance", 24, action_repeat=8) as model,
        ):
            planner = ICEM(1, ICEMConfig(horizon=6, samples=24, elites=4, iterations=2))
            policy = PlanningPolicy(model, planner, *BOUNDS)
            generator, state = np.random.default_rng(0), None
            env.reset()
            total = 0.0
            for _ in range(15):
                if name == "plan":
                    action, state = policy.act(env.state(), state)
                    step = env.step(action.double().numpy())
                else:
                    step = env.step(env.sample_actions(generator))
                total += float(step.reward[0])
            returns[name] = total
    assert returns["plan"] > returns["random"] + 15, returns
    assert returns["plan"] > 0.9 * 15 * 8


def test_a_simulator_gives_no_frames_and_names_what_does_not_fit() -> None:
    with SimulatorModel("cartpole", "swingup", 2) as model:
        state = model.environment.state()
        with pytest.raises(ValueError, match="frames=False"):
            model.imagine(state, torch.zeros(2, 1, 1, 1), frames=True)
        with pytest.raises(ValueError, match="actions: expected"):
            model.imagine(state, torch.zeros(2, 1, 1, 3))


def test_the_documents_example_of_a_model_is_one() -> None:
    """The fenced block of docs/control.md that makes a model plans (its best action is none) and dreams frames."""
    page = (Path(__file__).parents[2] / "docs" / "control.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if "def make_model" in block)
    names: dict[str, Any] = {}
    exec(block, names)
    model = names["make_model"](None)
    assert isinstance(model, Imaginable)
    frames = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    action, state = PlanningPolicy(model, ICEM(1, ICEMConfig(horizon=3)), *BOUNDS).act(frames)
    assert action.abs().max() < 0.2
    dreamt = model.imagine(state.model, torch.zeros(2, 1, 4, 1), frames=True)
    check_imagined(dreamt, 2, 1, 4, (3, 8, 8))


def test_through_the_two_methods_the_world_model_forecasts_what_it_forecasts_by_itself(
    model: DPGMMVariationalRecurrentAutoencoder,
) -> None:
    """The same draws give the same frames: no action and no frame is one step off in the adapter."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    actions = torch.randn(2, 4 + 3, 1, generator=generator)
    forecasts = [
        forecaster.forecast(ForecastTask(frames, actions, 2, torch.Generator().manual_seed(7)))
        for forecaster in (WorldModelForecaster(model), ImaginableForecaster(WorldModelImaginable(model)))
    ]
    assert forecasts[0].rollouts is not None
    assert forecasts[1].rollouts is not None
    assert torch.allclose(forecasts[0].rollouts, forecasts[1].rollouts, atol=0.05)
    assert forecasts[0].rollouts.std(0).mean() > 0.5, "the frames differ from each other by more than the tolerance"
