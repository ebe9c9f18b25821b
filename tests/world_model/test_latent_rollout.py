"""The fused rollout against the same rollout under autograd, in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aime.generative_prior.networks import smooth_bound
from aime.temporal_dynamics import LSTMState
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig
from aime.world_model.latent_rollout import RolloutNoise, roll_latents

FRAMES, BATCH = 6, 3


def small_model(**changes: object) -> DPGMMVariationalRecurrentAutoencoder:
    """A world model with everything that a rollout touches random, so that no gradient is trivially zero."""
    torch.manual_seed(0)
    sizes = {"image_size": 32, "latent_dim": 4, "hidden_dim": 8, "prior_hidden_dim": 12, "context_dim": 8}
    config = WorldModelConfig.preset("laptop", action_size=2, **{**sizes, "max_components": 3, **changes})
    model = DPGMMVariationalRecurrentAutoencoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def rolled_by_autograd(
    model: DPGMMVariationalRecurrentAutoencoder, state: tuple[Tensor, ...], actions: Tensor, noise: RolloutNoise
) -> tuple[Tensor, Tensor]:
    """What `roll_latents` says it computes, frame by frame, on the modules themselves."""
    hidden, latent, raw, cell = state
    lstm = LSTMState(raw, cell)
    hiddens, latents = [], []
    for j in range(actions.shape[1]):
        conditions = torch.cat([hidden, model.foreseen_context(hidden).detach()], -1)
        log_weights = model.prior.stick_breaking.log_weights(conditions.detach(), noise.sticks[j])
        chosen = (log_weights + noise.choice[j]).argmax(-1)
        outputs = model.prior.component_net.network(conditions).unflatten(-1, (2, model.config.max_components, -1))
        mean, scale = (outputs * F.one_hot(chosen, model.config.max_components)[:, None, :, None]).sum(2).unbind(1)
        latent = mean + model.persistence * latent + smooth_bound(scale).exp() * noise.normal[j]
        hidden, lstm = model.dynamics.step(torch.cat([latent, actions[:, j]], -1), lstm)
        hiddens.append(hidden)
        latents.append(latent)
    return torch.stack(hiddens, 1), torch.stack(latents, 1)


@pytest.mark.parametrize(
    "changes", [{}, {"num_lstm_layers": 2}, {"max_components": 1}, {"context_in_posterior": False}], ids=str
)
def test_values_and_gradients_are_those_of_autograd(changes: dict[str, object]) -> None:
    model = small_model(**changes).double()
    model.expect_float32 = lambda: None  # type: ignore[method-assign]  # the arithmetic, not the precision, is tested
    config = model.config
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64).requires_grad_()

    layers = config.num_lstm_layers
    hidden, latent = draw(config.hidden_dim), draw(config.latent_dim)
    raw, cell = draw(layers, config.hidden_dim), draw(layers, config.hidden_dim)
    actions = draw(FRAMES, config.action_size)
    noise = RolloutNoise.draw(model, FRAMES, BATCH, generator)
    found = roll_latents(model, hidden, latent, LSTMState(raw, cell), actions, noise)
    expected = rolled_by_autograd(model, (hidden, latent, raw, cell), actions, noise)
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in expected]
    recurrent = [*model.prior.component_net.parameters(), model.persistence, *model.dynamics.lstm.parameters()]
    wanted = [actions, hidden, latent, raw, cell, *recurrent, *model.dynamics.norm.parameters()]

    def gradients(parts: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad((parts[0] * weights[0]).sum() + (parts[1] * weights[1]).sum(), wanted)

    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)
    for ours, reference in zip(gradients(found), gradients(expected), strict=True):
        assert reference.abs().max() > 0
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-11)


def test_choice_follows_the_weights() -> None:
    model = small_model()
    frames, batch = 1, 20_000
    generator = torch.Generator().manual_seed(2)
    noise = RolloutNoise.draw(model, frames, batch, generator)
    conditions = torch.cat([torch.zeros(1, 8), model.foreseen_context(torch.zeros(1, 8))], -1).expand(batch, -1)
    sampled = model.prior.stick_breaking.log_weights(conditions, noise.sticks[0])
    share = F.one_hot((sampled + noise.choice[0]).argmax(-1), 3).double().mean(0)
    expected = model.prior(conditions[:1], deterministic=True).log_pi.exp()[0].double()
    torch.testing.assert_close(share, expected, rtol=0, atol=0.015)
