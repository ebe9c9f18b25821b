"""A small recurrent state-space model (RSSM): the learned baselines of every evaluation table.

Dreamer's world model in its Gaussian form (Hafner et al., "Learning Latent Dynamics for Planning from Pixels", 2019,
eq. 3-4, with the KL balancing and free nats of DreamerV2/V3), at about 1.4 M parameters and sized for two CPU cores:

    h_t = GRU(h_{t-1}, [z_{t-1}, a_{t-1}])          deterministic path
    p(z_t | h_t), q(z_t | h_t, x_t)                 diagonal Gaussians
    x_t ~ N(mean image + spread * decoder(h_t, z_t), (sigma * spread)^2)

Two configurations of the same class are rows of the table. ``rssm`` is the field's: four convolutions, spread 1, KL
balancing. ``rssm_tuned`` (:meth:`RSSMConfig.tuned`) has everything that helped AIME's own model and is none of its
pillars: a trunk of patches, the pixels' spread divided out, a plain ELBO, half of the frames decoded.

Index discipline differs from AIME's on purpose (it is Dreamer's): ``h_t`` has absorbed everything *before* frame t,
so the state that predicts frame t+1 needs ``a_t``, which :meth:`RSSM.imagine` receives as its first action.

The class lives here and not in ``bench/baselines`` because ``aime evaluate --rssm`` has to work from an installed
wheel, which ships no ``bench/``; ``bench/baselines/rssm.py`` is only the command-line runner around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime import kernels
from aime.evaluation.baselines.trunks import INPUT_GAIN, TRUNKS
from aime.evaluation.protocol import PixelStatistics
from aime.nn import multiplies_bfloat16
from aime.ranges import Range, check_ranges

Size = Annotated[int, Range(1, 65536)]


@dataclass(frozen=True)
class RSSMConfig:
    """Sizes and loss constants of the baseline."""

    image_shape: tuple[Size, Size, Size] = (3, 64, 64)
    """(C, H, W); other sides than multiples of 16 are padded with the mean image inside."""
    action_size: Size = 1
    trunk: Literal["convolutions", "patches"] = "convolutions"
    """Image networks, see :mod:`.trunks`."""
    channels: tuple[Size, ...] = (16, 32, 64, 80)
    """Widths of the trunk, four for convolutions and three for patches; mirrored in the decoder."""
    embedding_size: Size = 160
    hidden_size: Size = 256
    latent_size: Size = 32
    minimum_scale: Annotated[float, Range(above=0)] = 0.1
    """Lower bound of both Gaussian scales (Dreamer's value)."""
    observation_scale: Annotated[float, Range(above=0)] = 0.1
    """Standard deviation of the pixel likelihood, frames in [0, 1]. On a toy world .1 forecast .8 dB better one frame
    ahead after 400 steps than .05 after 600: the latent spends fewer nats (20 against 29) on detail."""
    whitening_floor: Annotated[float, Range(0)] = 0.0
    """Frames, target and likelihood are divided by (spread of the pixel over the training frames + this), frames in
    [0, 1], scaled so that the mean image scores what it did; 0 divides by nothing. Without it the pixels that always
    change own the likelihood: on cartpole the cart's rows hold two thirds of the variance, the pole is seen late."""
    decoded_share: Annotated[float, Range(above=0, to=1)] = 1.0
    """Share of a sequence's frames that are decoded in training."""
    mixed_precision: bool = False
    """Image networks in bfloat16 where the device multiplies it."""
    free_nats: Annotated[float, Range(0)] = 1.0
    dynamics_weight: Annotated[float, Range(0)] = 0.8
    """Weight of KL(stop_grad(q) || p)."""
    representation_weight: Annotated[float, Range(0)] = 0.2
    """Weight of KL(q || stop_grad(p)); with no free nats and both weights 1 the gradient is the ELBO's own."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @classmethod
    def tuned(cls, image_shape: tuple[int, int, int], action_size: int) -> RSSMConfig:
        """The second row, ``rssm_tuned``.

        Measured on cartpole swingup (150 episodes, 500 steps, one seed, body PSNR at horizons 1, 5, 15, 45): 16.5,
        13.7, 10.9, 9.4 dB at .15 CPU seconds a step, where ``rssm`` has 15.6, 13.8, 10.1, 8.8 at .22. Instead of it: KL
        balancing .8/.2 with a free nat 16.1, 13.6, 10.2, 9.5; observation scale .05 16.9, 13.5, 10.3, 9.5, scale .2
        15.8, 13.8, 11.1, 9.6; every frame decoded and 320 hidden units 17.3, 14.4, 11.0, 9.0 at half as much again a
        step.
        """
        return cls(
            image_shape=image_shape,
            action_size=action_size,
            trunk="patches",
            channels=(48, 64, 80),
            observation_scale=0.1,
            whitening_floor=0.025,
            decoded_share=0.5,
            mixed_precision=True,
            free_nats=0.0,
            dynamics_weight=1.0,
            representation_weight=1.0,
        )


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
    spread: Tensor

    def __init__(self, config: RSSMConfig) -> None:
        super().__init__()
        self.config = config
        image_channels, height, width = config.image_shape
        self.grid = (-(-height // 16), -(-width // 16))  # rounded up: the trunk's coarsest map
        flat = config.channels[-1] * self.grid[0] * self.grid[1]
        self.encoder: nn.Module = TRUNKS[config.trunk][0](image_channels, config.channels)
        self.patch_size = TRUNKS[config.trunk][0].patch_size
        self.embedding = nn.Sequential(nn.Linear(flat, config.embedding_size), nn.SiLU())
        self.decoder: nn.Module = TRUNKS[config.trunk][1](image_channels, config.channels, self.grid)
        self.decoder_input = nn.Linear(config.hidden_size + config.latent_size, flat)
        self.recurrent_input = nn.Sequential(
            nn.Linear(config.latent_size + config.action_size, config.hidden_size), nn.SiLU()
        )
        self.recurrent = nn.GRUCell(config.hidden_size, config.hidden_size)
        self.prior_head = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.SiLU(),
            nn.Linear(config.hidden_size, 2 * config.latent_size),
        )
        self.posterior_input = nn.Linear(config.hidden_size + config.embedding_size, config.hidden_size)
        self.posterior_output = nn.Linear(config.hidden_size, 2 * config.latent_size)
        self.register_buffer("mean_image", torch.zeros(config.image_shape))
        self.register_buffer("spread", torch.ones(height, width))

    @torch.no_grad()
    def set_statistics(self, statistics: PixelStatistics) -> None:
        """Set the mean image and the pixels' spread that surround the networks (and stay constant in training)."""
        self.mean_image.copy_(statistics.mean / 255.0)
        deviation = statistics.deviation / 255.0
        if self.config.whitening_floor > 0 and deviation.any():
            spread = deviation + self.config.whitening_floor
            same_score = ((deviation / spread).square().sum() / deviation.square().sum()).sqrt()
            self.spread.copy_(spread * same_score)

    def _gaussian(self, parameters: Tensor) -> Gaussian:
        mean, raw = parameters.chunk(2, dim=-1)
        return Gaussian(mean, F.softplus(raw) + self.config.minimum_scale)

    def residual(self, frames: Tensor) -> Tensor:
        """uint8 frames (B, T, C, H, W) -> what the networks see and explain, (frame - mean image) / spread."""
        mean, factor = self._whitening()
        return torch.sub(frames, mean).mul_(factor)

    def _whitening(self) -> tuple[Tensor, Tensor]:
        """Mean (C, H, W) and factor (H, W) under which the residual of uint8 frames is (frame - mean) factor."""
        return 255.0 * self.mean_image, 1.0 / (255.0 * self.spread)

    @property
    def _mixes(self) -> bool:
        return self.config.mixed_precision and multiplies_bfloat16(self.mean_image.device)

    def _mixed(self) -> torch.autocast:
        return torch.autocast(self.mean_image.device.type, torch.bfloat16, enabled=self._mixes)

    def embed(self, residual: Tensor) -> Tensor:
        """Residual frames (B, T, C, H, W) -> embeddings (B, T, E); one call on B*T images."""
        return self._embed(residual, *self.mean_image.new_tensor([0.0, 1.0]).unbind())

    def _embed(self, frames: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
        """Embeddings (B, T, E) of frames (B, T, C, H, W) whose residual is (frame - mean) factor."""
        _, height, width = self.config.image_shape
        padding = (0, 16 * self.grid[1] - width, 0, 16 * self.grid[0] - height)
        if any(padding):  # with the mean image, that is, with zeros
            frames, mean, factor = F.pad((frames - mean) * factor, padding), mean.new_zeros(()), mean.new_ones(())
        with self._mixed():
            patches = kernels.frame_patches(
                frames,
                mean,
                INPUT_GAIN * factor,
                patch_size=self.patch_size,
                dtype=torch.bfloat16 if self._mixes else torch.float32,
            )
            embeddings: Tensor = self.embedding(self.encoder(patches)).unflatten(0, frames.shape[:2])
        return embeddings.float()

    def decode_residual(self, hidden: Tensor, latent: Tensor) -> Tensor:
        """States (..., Hd), (..., D) -> mean residual frames (..., C, H, W)."""
        return self._decode(hidden, latent).float().unflatten(0, hidden.shape[:-1])  # type: ignore[no-any-return]

    def _decode(self, hidden: Tensor, latent: Tensor) -> Tensor:
        """States (..., Hd), (..., D) -> mean residual frames (N, C, H, W) in the dtype of the decoder's products."""
        with self._mixed():
            image: Tensor = self.decoder(self.decoder_input(torch.cat([hidden, latent], -1).flatten(0, -2)))
        _, height, width = self.config.image_shape
        return image[..., :height, :width]

    def decode(self, hidden: Tensor, latent: Tensor) -> Tensor:
        """States (..., Hd), (..., D) -> mean frames (..., C, H, W) in [0, 1], not clipped."""
        return self.decode_residual(hidden, latent) * self.spread + self.mean_image

    def initial_state(self, batch: int) -> RSSMState:
        """Zeros, as in Dreamer."""
        zeros = self.mean_image.new_zeros
        return RSSMState(zeros(batch, self.config.hidden_size), zeros(batch, self.config.latent_size))

    def _advance(self, state: RSSMState, action: Tensor) -> Tensor:
        hidden: Tensor = self.recurrent(self.recurrent_input(torch.cat([state.latent, action], -1)), state.hidden)
        return hidden

    def observe(self, frames: Tensor, actions: Tensor, generator: torch.Generator | None = None) -> RSSMSequence:
        """Filter uint8 frames (B, T, C, H, W) with actions (B, T, A), a_t taken after frame t; a_{T-1} is not used."""
        return self._filter(self._embed(frames, *self._whitening()), actions, generator)

    def _filter(self, embeddings: Tensor, actions: Tensor, generator: torch.Generator | None) -> RSSMSequence:
        batch, length = embeddings.shape[:2]
        size = self.config.latent_size
        noise = torch.randn(batch, length, size, generator=generator, device=embeddings.device)  # (B, T, D)
        state = self.initial_state(batch)
        no_action = torch.zeros_like(actions[:, 0])
        # Of the posterior's first layer, the embeddings' part is one product over all frames.
        sizes = [self.config.hidden_size, self.config.embedding_size]
        by_hidden, by_embedding = self.posterior_input.weight.split(sizes, dim=1)
        seen = F.linear(embeddings, by_embedding, self.posterior_input.bias).unbind(1)
        hiddens, latents, parameters = [], [], []
        for t in range(length):  # the one recurrence; everything else is batched over time
            hidden = self._advance(state, actions[:, t - 1] if t else no_action)
            raw = self.posterior_output(F.silu(seen[t] + F.linear(hidden, by_hidden)))
            posterior = self._gaussian(raw)
            state = RSSMState(hidden, torch.addcmul(posterior.mean, posterior.scale, noise[:, t]))
            hiddens.append(hidden)
            latents.append(state.latent)
            parameters.append(raw)
        hidden = torch.stack(hiddens, 1)  # (B, T, Hd)
        return RSSMSequence(
            hidden,
            torch.stack(latents, 1),
            self._gaussian(torch.stack(parameters, 1)),
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
        """Negative ELBO per frame (nats up to the likelihood's constant) and its parts."""
        config = self.config
        mean, factor = self._whitening()
        states = self._filter(self._embed(frames, mean, factor), actions, generator)
        hidden, latent = states.hidden, states.latent
        if config.decoded_share < 1.0:
            length = frames.shape[1]
            count = max(1, round(config.decoded_share * length))
            times = torch.randperm(length, generator=generator)[:count].to(frames.device)
            frames, hidden, latent = frames[:, times], hidden[:, times], latent[:, times]
        decoded = self._decode(hidden, latent)  # (B n, C, H, W)
        squared = kernels.frame_error(decoded, frames.flatten(0, 1), mean, factor).mean()  # of an image
        negative_log_likelihood = squared / (2.0 * config.observation_scale**2)
        dynamics = states.posterior.detach().kl_divergence(states.prior).mean()
        representation = states.posterior.kl_divergence(states.prior.detach()).mean()
        kl = config.dynamics_weight * dynamics.clamp_min(config.free_nats)
        kl = kl + config.representation_weight * representation.clamp_min(config.free_nats)
        mse = squared / decoded[0].numel()
        return negative_log_likelihood + kl, {"mse": mse.detach(), "kl": representation.detach()}
