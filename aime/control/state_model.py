"""A small world model of state observations: the same recurrence and mixture prior as the pixel model's, no pictures.

x_t normalised observation
z_t ~ q(z_t | x_t)                        an MLP: the Control Suite's observations hold velocities
h_t = LSTM(h_{t-1}, [z_t; a_t])
z_t ~ p(z_t | h_{t-1}, z_{t-1})           Dirichlet-process mixture, means offset by a learned multiple of z_{t-1}
x_t ~ N(g(z_t), SCALE^2)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from aime.generative_prior import DPGMMPrior, PriorParameters
from aime.nn import expect_shape, mlp
from aime.ranges import Range, check_ranges
from aime.temporal_dynamics import LSTMLayer

Count = Annotated[int, Range(1, 65536)]

SCALE = 0.1
"""Standard deviation of an observation's entry given z, in units of its spread over the data."""
REPRESENTATION = 0.1
"""Weight of the KL's pull on the posterior; the pull on the prior has 1 (Hafner et al. 2023)."""


@dataclass(frozen=True)
class StateModelConfig:
    """Sizes of `StateWorldModel`."""

    observation_size: Count
    """O, entries of an observation."""
    action_size: Annotated[int, Range(1, 1024)]
    """A."""
    latent_dim: Annotated[int, Range(0, 65536)] = 0
    """D; 0: that of an observation, and at least 8."""
    hidden_dim: Count = 128
    """Hd."""
    width: Count = 128
    """Hidden units of encoder, decoder and prior."""
    max_components: Annotated[int, Range(1, 1024)] = 4
    """K, truncation of the Dirichlet process."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.latent_dim == 0:
            object.__setattr__(self, "latent_dim", max(self.observation_size, 8))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class StatePass:
    """One pass over sequences.

    Attributes:
        latent: (B, T, D) samples of the posterior.
        hidden: (B, T, Hd) h_t.
        loss: () nats a step.
        reconstruction, kl: () its parts.
    """

    latent: Tensor
    hidden: Tensor
    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


class StateWorldModel(nn.Module):
    """Recurrent latent model of observation vectors.

    >>> model = StateWorldModel(StateModelConfig(observation_size=5, action_size=1))
    >>> model(torch.zeros(2, 7, 5), torch.zeros(2, 7, 1)).hidden.shape
    torch.Size([2, 7, 128])
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, config: StateModelConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.observation_size))
        self.register_buffer("spread", torch.ones(config.observation_size))
        self.encoder = mlp((config.observation_size, config.width, config.width, 2 * config.latent_dim))
        self.decoder = mlp((config.latent_dim, config.width, config.width, config.observation_size))
        self.encoder_skip = nn.Linear(config.observation_size, config.latent_dim, bias=False)
        self.decoder_skip = nn.Linear(config.latent_dim, config.observation_size, bias=False)
        with torch.no_grad():
            nn.init.orthogonal_(self.encoder_skip.weight)
            self.decoder_skip.weight.copy_(self.encoder_skip.weight.T)
            for net in (self.encoder, self.decoder):
                last = net[-1]
                assert isinstance(last, nn.Linear)
                last.weight.mul_(0.1)
        self.dynamics = LSTMLayer(config.latent_dim + config.action_size, config.hidden_dim)
        self.prior = DPGMMPrior(
            config.max_components,
            config.latent_dim,
            config.hidden_dim,
            spread=0.1,  # offsets from z_{t-1}: the world mostly stands still from one step to the next
            initial_scale=0.3,
            stick_width=config.width // 4,
            component_width=config.width,
        )
        self.persistence = nn.Parameter(torch.ones(config.latent_dim))

    def observe_statistics(self, observations: Tensor) -> None:
        """Take mean and spread of each entry from observations (N, O) of the data."""
        expect_shape(observations, "N O", "observations", O=self.config.observation_size)
        self.mean.copy_(observations.float().mean(0))
        self.spread.copy_(observations.float().std(0).clamp_min(1e-3))

    def posterior(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation (..., D) of q(z | x) at observations (..., O)."""
        normalised = self._normalised(observations)  # (..., O)
        change, raw = self.encoder(normalised).chunk(2, -1)  # (..., D) each
        return self.encoder_skip(normalised) + change, (raw - 2.0).clamp(-6.0, 2.0)

    def _normalised(self, observations: Tensor) -> Tensor:
        # bounded, since what was never seen may lie far outside of the first data's spread
        return ((observations.float() - self.mean) / self.spread).clamp(-20, 20)

    def recurrent_input(self, latent: Tensor, actions: Tensor) -> Tensor:
        """[z_t; a_t] (..., D + A)."""
        return torch.cat([latent, actions.to(latent.dtype)], -1)

    def prior_at(
        self, hidden: Tensor, previous_latent: Tensor, generator: torch.Generator | None = None
    ) -> PriorParameters:
        """Prior of z_t from h_{t-1} (..., Hd) and z_{t-1} (..., D)."""
        prior: PriorParameters = self.prior(hidden, generator=generator)
        offset = (self.persistence * previous_latent).unsqueeze(-2)  # (..., 1, D)
        return dataclasses.replace(prior, means=prior.means + offset)

    def sample_next_latent(
        self,
        hidden: Tensor,
        previous_latent: Tensor,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, PriorParameters]:
        """A sample of z_t (B, D) from its prior, and the prior."""
        prior = self.prior_at(hidden, previous_latent, generator)
        return self.prior.sample(prior, temperature, generator), prior

    def forward(self, observations: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> StatePass:
        """States and losses of observations (B, T, O) and actions (B, T, A), each taken after its observation.

        The first frame of a window has no prior: what came before it is not known.

        Raises:
            ValueError: a shape that does not fit.
        """
        sizes = expect_shape(observations, "B T O", "observations", O=self.config.observation_size)
        expect_shape(actions, "B T A", "actions", B=sizes["B"], T=sizes["T"], A=self.config.action_size)
        mean, log_scale = self.posterior(observations)  # (B, T, D)
        latent = mean + log_scale.exp() * torch.randn(mean.shape, device=mean.device, generator=generator)  # (B, T, D)
        hidden, _ = self.dynamics(self.recurrent_input(latent, actions))  # (B, T, Hd)
        decoded = self.decoder_skip(latent) + self.decoder(latent)  # (B, T, O)
        error = (decoded - self._normalised(observations)) / SCALE  # (B, T, O)
        reconstruction = 0.5 * error.square().sum(-1).mean()
        prior = self.prior_at(hidden[:, :-1], latent[:, :-1], generator)  # (B, T - 1)
        next_mean, next_scale = mean[:, 1:], log_scale[:, 1:]  # (B, T - 1, D)
        learnt = self.prior.kl_divergence(
            next_mean.detach(), next_scale.detach(), prior, generator=generator
        )  # (B, T - 1)
        pulled = self.prior.kl_divergence(next_mean, next_scale, prior.detach(), generator=generator)  # (B, T - 1)
        kl = learnt.mean()
        loss = reconstruction + kl + REPRESENTATION * pulled.mean() + self.prior.stick_kl(prior).mean()
        return StatePass(latent, hidden, loss, reconstruction.detach(), kl.detach())
