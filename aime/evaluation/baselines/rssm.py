"""A small recurrent state-space model (RSSM): the learned baseline of every evaluation table.

Dreamer's world model in its Gaussian form (Hafner et al., "Learning Latent Dynamics for Planning from Pixels", 2019,
eq. 3-4, with the KL balancing and free nats of DreamerV2/V3), at about 1.4 M parameters and sized for two CPU cores:

    h_t = GRU(h_{t-1}, [z_{t-1}, a_{t-1}])          deterministic path
    p(z_t | h_t), q(z_t | h_t, x_t)                 diagonal Gaussians
    x_t ~ N(mean image + decoder(h_t, z_t), sigma^2)

Index discipline differs from AIME's on purpose (it is Dreamer's): ``h_t`` has absorbed everything *before* frame t,
so the state that predicts frame t+1 needs ``a_t``, which :meth:`RSSM.imagine` receives as its first action.

The class lives here and not in ``bench/baselines`` because ``aime evaluate --rssm`` has to work from an installed
wheel, which ships no ``bench/``; ``bench/baselines/rssm.py`` is only the command-line runner around it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from aime.ranges import Range, check_ranges

Size = Annotated[int, Range(1, 65536)]


@dataclass(frozen=True)
class RSSMConfig:
    """Sizes and loss constants of the baseline."""

    image_shape: tuple[Size, Size, Size] = (3, 64, 64)
    """(C, H, W); other sides than multiples of 16 are padded with the mean image inside."""
    action_size: Size = 1
    channels: tuple[Size, Size, Size, Size] = (16, 32, 64, 80)
    """Widths of the four stride-2 convolutions; mirrored in the decoder."""
    embedding_size: Size = 160
    hidden_size: Size = 256
    latent_size: Size = 32
    minimum_scale: Annotated[float, Range(above=0)] = 0.1
    """Lower bound of both Gaussian scales (Dreamer's value)."""
    observation_scale: Annotated[float, Range(above=0)] = 0.1
    """Standard deviation of the pixel likelihood, frames in [0, 1]. On a toy world .1 forecast .8 dB better one frame
    ahead after 400 steps than .05 after 600: the latent spends fewer nats (20 against 29) on detail."""
    free_nats: Annotated[float, Range(0)] = 1.0
    dynamics_weight: Annotated[float, Range(0)] = 0.8
    """Weight of KL(stop_grad(q) || p)."""
    representation_weight: Annotated[float, Range(0)] = 0.2
    """Weight of KL(q || stop_grad(p))."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Gaussian:
    """A diagonal Gaussian; ``mean`` and ``scale`` are (..., D)."""

    mean: Tensor
    scale: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One reparametrised draw (..., D)."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + self.scale * noise

    def detach(self) -> Gaussian:
        """The same distribution without gradient."""
        return Gaussian(self.mean.detach(), self.scale.detach())

    def kl_divergence(self, other: Gaussian) -> Tensor:
        """KL(self || other) in nats, summed over D: (...,)."""
        variance_ratio = (self.scale / other.scale).square()
        distance = ((self.mean - other.mean) / other.scale).square()
        return 0.5 * (variance_ratio + distance - 1.0 - variance_ratio.log()).sum(-1)


@dataclass(frozen=True)
class RSSMState:
    """The state after frame t: ``hidden`` (B, Hd) before the frame, ``latent`` (B, D) from it."""

    hidden: Tensor
    latent: Tensor


@dataclass(frozen=True)
class RSSMSequence:
    """States along a sequence: ``hidden`` (B, T, Hd), ``latent`` (B, T, D), both distributions (B, T, D)."""

    hidden: Tensor
    latent: Tensor
    posterior: Gaussian
    prior: Gaussian

    def last(self) -> RSSMState:
        """The state after the last frame."""
        return RSSMState(self.hidden[:, -1], self.latent[:, -1])


class RSSM(nn.Module):
    """Recurrent state-space model on pixels.

    Example:
        >>> model = RSSM(RSSMConfig(action_size=2))
        >>> frames = torch.zeros(4, 8, 3, 64, 64, dtype=torch.uint8)
        >>> states = model.observe(frames, torch.zeros(4, 8, 2))
        >>> model.imagine(states.last(), torch.zeros(4, 5, 2)).shape
        torch.Size([4, 5, 3, 64, 64])
    """

    mean_image: Tensor

    def __init__(self, config: RSSMConfig) -> None:
        super().__init__()
        self.config = config
        image_channels, height, width = config.image_shape
        self.grid = (-(-height // 16), -(-width // 16))  # rounded up: the last convolution's map
        flat = config.channels[-1] * self.grid[0] * self.grid[1]

        widths = (image_channels, *config.channels)
        encoder: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            encoder += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.SiLU()]
        self.encoder = nn.Sequential(*encoder, nn.Flatten(), nn.Linear(flat, config.embedding_size), nn.SiLU())

        decoder: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(widths[::-1]):
            decoder += [nn.SiLU(), nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1)]
        self.decoder_input = nn.Linear(config.hidden_size + config.latent_size, flat)
        self.decoder = nn.Sequential(*decoder)
        last = self.decoder[-1]
        assert isinstance(last, nn.ConvTranspose2d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)  # training starts exactly at the quality of the mean image
        nn.init.zeros_(last.bias)

        self.recurrent_input = nn.Sequential(
            nn.Linear(config.latent_size + config.action_size, config.hidden_size), nn.SiLU()
        )
        self.recurrent = nn.GRUCell(config.hidden_size, config.hidden_size)
        self.prior_head = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.SiLU(),
            nn.Linear(config.hidden_size, 2 * config.latent_size),
        )
        self.posterior_head = nn.Sequential(
            nn.Linear(config.hidden_size + config.embedding_size, config.hidden_size),
            nn.SiLU(),
            nn.Linear(config.hidden_size, 2 * config.latent_size),
        )
        self.register_buffer("mean_image", torch.zeros(config.image_shape))

    @torch.no_grad()
    def set_mean_image(self, mean_image: Tensor) -> None:
        """Set the constant that is subtracted before the encoder and added after the decoder: (C, H, W) in [0, 255]."""
        self.mean_image.copy_(mean_image / 255.0)

    def _gaussian(self, parameters: Tensor) -> Gaussian:
        mean, raw = parameters.chunk(2, dim=-1)
        return Gaussian(mean, F.softplus(raw) + self.config.minimum_scale)

    def embed(self, frames: Tensor) -> Tensor:
        """uint8 frames (B, T, C, H, W) -> embeddings (B, T, E); one call on B*T images."""
        flat = rearrange(frames, "b t c h w -> (b t) c h w")
        residual = flat.float() / 255.0 - self.mean_image
        _, height, width = self.config.image_shape
        padding = (0, 16 * self.grid[1] - width, 0, 16 * self.grid[0] - height)
        residual = F.pad(residual, padding).contiguous(memory_format=torch.channels_last)
        embeddings: Tensor = rearrange(self.encoder(4.0 * residual), "(b t) e -> b t e", b=frames.shape[0])
        return embeddings

    def decode(self, hidden: Tensor, latent: Tensor) -> Tensor:
        """States (..., Hd), (..., D) -> mean frames (..., C, H, W) in [0, 1], not clipped."""
        leading = hidden.shape[:-1]
        flat = self.decoder_input(torch.cat([hidden, latent], -1).flatten(0, -2))
        image = flat.unflatten(-1, (self.config.channels[-1], *self.grid))
        image = self.decoder(image.contiguous(memory_format=torch.channels_last))
        _, height, width = self.config.image_shape
        frames: Tensor = (image[..., :height, :width] + self.mean_image).reshape(*leading, *self.config.image_shape)
        return frames

    def initial_state(self, batch: int) -> RSSMState:
        """Zeros, as in Dreamer."""
        zeros = self.mean_image.new_zeros
        return RSSMState(zeros(batch, self.config.hidden_size), zeros(batch, self.config.latent_size))

    def _advance(self, state: RSSMState, action: Tensor) -> Tensor:
        hidden: Tensor = self.recurrent(self.recurrent_input(torch.cat([state.latent, action], -1)), state.hidden)
        return hidden

    def observe(self, frames: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> RSSMSequence:
        """Filter uint8 frames (B, T, C, H, W) with actions (B, T, A), a_t taken after frame t; a_{T-1} is not used."""
        embeddings = self.embed(frames)  # (B, T, E)
        batch, length = frames.shape[:2]
        noise = torch.randn(
            batch, length, self.config.latent_size, generator=generator, device=embeddings.device
        )  # (B, T, D)
        state = self.initial_state(batch)
        no_action = torch.zeros_like(actions[:, 0])
        hiddens, latents, means, scales = [], [], [], []
        for t in range(length):  # the one recurrence; everything else is batched over time
            hidden = self._advance(state, actions[:, t - 1] if t else no_action)
            posterior = self._gaussian(self.posterior_head(torch.cat([hidden, embeddings[:, t]], -1)))
            state = RSSMState(hidden, posterior.mean + posterior.scale * noise[:, t])
            hiddens.append(hidden)
            latents.append(state.latent)
            means.append(posterior.mean)
            scales.append(posterior.scale)
        hidden = torch.stack(hiddens, 1)  # (B, T, Hd)
        return RSSMSequence(
            hidden,
            torch.stack(latents, 1),
            Gaussian(torch.stack(means, 1), torch.stack(scales, 1)),
            self._gaussian(self.prior_head(hidden)),
        )

    def imagine(self, state: RSSMState, actions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Roll the prior forward: actions (B, Hz, A), ``actions[:, k]`` leading to frame k -> frames (B, Hz, C, H, W).

        From the state after frame t the first action is ``a_t`` and the first frame is o_{t+1}. Frames are in [0, 1].
        """
        hiddens, latents = [], []
        for k in range(actions.shape[1]):
            hidden = self._advance(state, actions[:, k])
            state = RSSMState(hidden, self._gaussian(self.prior_head(hidden)).sample(generator))
            hiddens.append(hidden)
            latents.append(state.latent)
        return self.decode(torch.stack(hiddens, 1), torch.stack(latents, 1))

    def loss(
        self, frames: Tensor, actions: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative ELBO per frame (nats up to the likelihood's constant) and its parts, with KL balancing."""
        states = self.observe(frames, actions, generator)
        reconstruction = self.decode(states.hidden, states.latent)  # (B, T, C, H, W)
        squared = (reconstruction - frames.float() / 255.0).square().sum((-3, -2, -1)).mean()
        negative_log_likelihood = squared / (2.0 * self.config.observation_scale**2)
        dynamics = states.posterior.detach().kl_divergence(states.prior).mean()
        representation = states.posterior.kl_divergence(states.prior.detach()).mean()
        free = self.config.free_nats
        kl = self.config.dynamics_weight * dynamics.clamp_min(free)
        kl = kl + self.config.representation_weight * representation.clamp_min(free)
        mse = squared / frames[0, 0].numel()
        return negative_log_likelihood + kl, {"mse": mse.detach(), "kl": representation.detach()}
