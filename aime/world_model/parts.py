"""The pillars as one module: built from the configuration, with the elementary maps between them and no story.

What is done with them, in which order, is told in `inference` (frames to states) and `generation` (states to frames).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from aime import kernels
from aime.adversarial import Critics
from aime.attention_schema import AttentionSchema
from aime.encoder_decoder import GramLoss, PixelStatistics, Posterior, VAEDecoder, VAEEncoder, make_likelihood
from aime.generative_prior import DPGMMPrior, HierarchicalPrior, PriorParameters
from aime.nn import expect_shape, images_to_float, mlp
from aime.perceiver_io import CausalPerceiverIO
from aime.temporal_dynamics import ContextPredictor, LSTMLayer
from aime.world_model.config import WorldModelConfig
from aime.world_model.state import ObservationMemory, WorldModelState

CONTRAST = 4.0
"""Factor on whitened frames for the networks: what differs from the mean image has a small variance."""


class WorldModelParts(nn.Module):
    """Trunk, tokenizer and Perceiver, posterior, recurrence, prior, attention, decoder, heads, teacher.

    ``perceiver`` and ``context_predictor`` exist with ``config.context_in_posterior`` only, ``attention`` with
    ``config.attention_in_posterior`` only; without them contexts (..., 0) and maps (..., 0, 0) are empty.

    Args:
        config: sizes and switches.
    """

    mean_image: Tensor
    pixel_spread: Tensor

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        channels, height, width = config.image_shape
        self.register_buffer("mean_image", torch.zeros(channels, height, width))
        self.register_buffer("pixel_spread", torch.ones(1, height, width))
        self.encoder = VAEEncoder(
            config.latent_dim,
            height,
            width,
            context_dim=config.context_size + config.attention_size,
            channels=config.encoder_channels,
            cells_per_level=config.cells_per_level,
            mlp_hidden_size=config.mlp_hidden_dim,
            input_channels=channels * config.frame_stack,
            patch_size=config.patch_size,
            squeeze_excitation=config.squeeze_excitation,
        )
        trunk = self.encoder.trunk
        self.token_level = config.strides.index(config.downsample)
        self.attention_level = trunk.level_of(config.attention_resolution)
        if config.context_in_posterior:
            self.perceiver = make_perceiver(config, trunk.channels[self.token_level], trunk.sizes[self.token_level])
        if config.attention_in_posterior:
            self.attention = make_attention(config, trunk.channels[self.attention_level])
        self.dynamics = LSTMLayer(
            config.latent_dim + config.action_size,
            config.hidden_dim,
            config.num_lstm_layers,
            orthogonal=config.orthogonal,
        )
        if config.context_in_posterior:
            self.context_predictor = ContextPredictor(config.hidden_dim, config.context_dim)
        self.prior = make_prior(config)
        self.persistence = nn.Parameter(torch.ones(config.latent_dim))
        self.likelihood = make_likelihood(
            config.likelihood, channels, config.likelihood_scale, config.likelihood_components
        )
        self.decoder = VAEDecoder(
            config.latent_dim,
            height,
            width,
            hidden_dim=config.hidden_dim,
            channels=config.decoder_channels,
            cells_per_level=config.cells_per_level,
            output_channels=self.likelihood.output_channels,
            mlp_hidden_size=0,
            patch_size=config.patch_size,
            squeeze_excitation=config.squeeze_excitation,
            modulated=False,
        )
        self.reward_head = mlp((config.hidden_dim, config.hidden_dim // 2, 1))
        self.continue_head = mlp((config.hidden_dim, config.hidden_dim // 2, 1))
        self.gram_loss = GramLoss()
        self.teacher_trunk = copy.deepcopy(trunk).requires_grad_(False) if config.gram_frames else None
        self.critics = make_critics(config) if config.adversarial else None
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    # ------------------------------------------------------------------ pixels

    @property
    def pixels(self) -> PixelStatistics:
        """Mean image (C, H, W) and spread (1, H, W) of each pixel, channels-last in memory."""
        return PixelStatistics(channels_last(self.mean_image), self.pixel_spread)

    def expect_float32(self) -> None:
        """Refuse parameters of another type: the prior's log densities lose their meaning in a narrower one.

        Raises:
            TypeError: parameters that are not float32.
        """
        if self.mean_image.dtype != torch.float32:
            raise TypeError(
                "the world model: expected float32 parameters (bfloat16 computes under torch.autocast, which the "
                f"trainer's precision option uses), found {self.mean_image.dtype}"
            )

    def whiten(self, observations: Tensor) -> Tensor:
        """Frames uint8 or float in [-1, 1] (B, T, C, H, W) to (x - mean image) / spread, times CONTRAST.

        The result is channels-last in memory, as convolutions want it; mixing layouts made the likelihood alone cost
        a tenth of a training step.

        Raises:
            ValueError: another image shape than the configuration's.
        """
        self._expect_frames(observations)
        batch, frames = observations.shape[:2]
        images = observations.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        mean, factor = self.pixels.whitening(images.dtype, CONTRAST)
        if images.dtype == torch.uint8:  # the same in two passes over memory instead of four
            whitened = images.to(torch.float32).sub_(mean).mul_(factor)
        else:
            whitened = (images_to_float(images).float() - mean) * factor
        return whitened.unflatten(0, (batch, frames))  # type: ignore[no-any-return]

    def patches(self, observations: Tensor, before: Tensor | None = None) -> Tensor:
        """What the trunk multiplies of frames (B, T, C, H, W): patches of :meth:`whiten` and :meth:`stack`, one pass.

        In bfloat16 where autocast would round them to it, else float32.

        Args:
            observations: uint8, or float in [-1, 1].
            before: (B, frame_stack - 1, C, H, W) whitened frames before these; the first stands still when absent.

        Returns:
            (B, T, H / p, W / p, frame_stack C p p).
        """
        self._expect_frames(observations)
        device = observations.device.type
        halves = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
        return kernels.frame_patches(
            observations,
            *self.pixels.whitening(observations.dtype, CONTRAST),
            before,
            patch_size=self.config.patch_size,
            stack=self.config.frame_stack,
            dtype=torch.bfloat16 if halves else torch.float32,
        )

    def _expect_frames(self, observations: Tensor) -> None:
        self.expect_float32()
        channels, height, width = self.config.image_shape
        expect_shape(observations, "B T C H W", "observations", C=channels, H=height, W=width)

    def stack(self, frames: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the trunk sees of whitened frames (B, T, C, H, W): each frame and the differences before it.

        Args:
            frames: whitened frames.
            before: (B, frame_stack - 1, C, H, W) frames before these; the first frame stands still when absent.

        Returns:
            (B, T, frame_stack * C, H, W), and the last frame_stack - 1 frames to continue with.
        """
        batch, length, channels = frames.shape[:3]
        earlier = self.config.frame_stack - 1
        kept = self.last_frames(frames, before)
        if before is None:
            before = frames[:, :1].expand(-1, earlier, -1, -1, -1)
        if earlier == 0:
            return frames, kept
        # Written in place, channels last: joining copies cost a tenth of a step.
        memory = frames.new_empty(batch, length, *frames.shape[-2:], (1 + earlier) * channels)
        stacked = memory.permute(0, 1, 4, 2, 3)  # (B, T, S C, H, W)
        stacked[:, :, :channels] = frames
        for k in range(earlier):  # change k: from frame t - k - 1 to frame t - k
            view = stacked[:, :, (1 + k) * channels : (2 + k) * channels]
            recent = torch.cat([before[:, earlier - k - 1 :], frames[:, : k + 1]], 1)  # frames -k-1 .. k
            steps = recent[:, 1:] - recent[:, :-1]
            first = min(k + 1, length)
            view[:, :first] = steps[:, :first]
            view[:, first:] = frames[:, 1 : length - k] - frames[:, : length - k - 1]
        return stacked, kept

    def last_frames(self, frames: Tensor, before: Tensor | None = None) -> Tensor:
        """The last frame_stack - 1 of whitened frames (B, T, C, H, W) and those before them, to continue with."""
        length, earlier = frames.shape[1], self.config.frame_stack - 1
        if length >= earlier:
            return frames[:, length - earlier :]
        if before is None:
            before = frames[:, :1].expand(-1, earlier, -1, -1, -1)
        return torch.cat([before, frames], 1)[:, length:]

    def expected_images(self, latent: Tensor, hidden: Tensor) -> Tensor:
        """Mean images (N, C, H, W) in [-1, 1] of z_t (N, D) and h_{t-1} (N, Hd), differentiable."""
        return self.likelihood.mean(self.decoder(latent, hidden), self.pixels)

    # ------------------------------------------------------------------ states

    def initial_state(self, batch: int) -> WorldModelState:
        """State (B, ...) before the first frame: learned recurrent state, no latent, even attention."""
        self.expect_float32()
        config = self.config
        recurrent = self.dynamics.initial_state(batch)
        nothing = self.mean_image.new_zeros(batch, 0, 0)
        attention = self.attention if config.attention_in_posterior else None
        return WorldModelState(
            hidden=self.dynamics.output(recurrent),
            lstm_hidden=recurrent.hidden,
            lstm_cell=recurrent.cell,
            latent=self.mean_image.new_zeros(batch, config.latent_dim),
            context=self.mean_image.new_zeros(batch, config.context_size),
            attention_map=nothing if attention is None else attention.uniform_map(batch),
            attention_hidden=nothing[:, None] if attention is None else attention.prior_net.initial_state(batch),
            memory=ObservationMemory(self.perceiver.empty_memory(batch) if config.context_in_posterior else None, None),
        )

    def draw(self, posterior: Posterior, noise: Tensor) -> Tensor:
        """z_t (..., D) of a posterior, coarsest group first, from standard normal noise (..., D)."""
        return self.prior.sample_posterior(posterior.mean, posterior.log_scale, noise)

    def stick_kl(self, prior: PriorParameters) -> Tensor:
        """KL (...) of the sticks in nats, times ``stick_kl_weight``."""
        return self.config.stick_kl_weight * self.prior.stick_kl(prior)

    def recurrent_input(self, latent: Tensor, actions: Tensor) -> Tensor:
        """[z_t; a_t] (..., D + A), the input of the recurrence."""
        expect_shape(actions, "B T A" if actions.dim() == 3 else "B A", "actions", A=self.config.action_size)
        return torch.cat([latent, actions.to(latent.dtype)], -1)

    def prior_at(
        self,
        hidden: Tensor,
        previous_latent: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> tuple[PriorParameters, Tensor]:
        """Prior of z_t and predicted context c^_t (..., Cc) from h_{t-1} (..., Hd) and z_{t-1} (..., D).

        h_{t-1} has absorbed z_{t-1}, but only as far as gates and normalisation let it through. Component means are
        therefore offsets from a learned multiple of z_{t-1}: a world that stands still is predicted from the start.
        The context predictor is trained on a constant h, and the prior reads a constant c^: the prior must make do with
        the context it will have in imagination, not bend it to its own ends.
        """
        predicted = self.foreseen_context(hidden)  # (..., Cc)
        conditions = torch.cat([hidden, predicted.detach()], -1)  # (..., Hd + Cc)
        prior = self.prior(conditions, noise=noise, generator=generator, deterministic=deterministic)
        return prior.moved(self.persistence * previous_latent.to(prior.means.dtype)), predicted

    def foreseen_context(self, hidden: Tensor) -> Tensor:
        """c^_t (..., Cc) from h_{t-1} (..., Hd), which it leaves alone; (..., 0) without context."""
        if not self.config.context_in_posterior:
            return hidden.new_zeros(*hidden.shape[:-1], 0)
        predicted: Tensor = self.context_predictor(hidden.detach())
        return predicted

    # ------------------------------------------------------------------ from data

    @torch.no_grad()
    def initialise_from_data(self, frames: Tensor, generator: torch.Generator | None = None) -> None:
        """Before training: mean image, spread and k-means codebook from frames (N, C, H, W) of the training split.

        The spread of a pixel is its standard deviation over the frames plus ``spread_floor``, times a common factor
        under which the mean image keeps the likelihood that it has without whitening.
        """
        expect_shape(frames, "N C H W", "frames", C=self.config.image_channels)
        device = self.mean_image.device
        parts = frames.split(256)
        mean = sum(images_to_float(part.to(device)).sum(0) for part in parts) / frames.shape[0]
        assert isinstance(mean, Tensor)
        squares = sum((images_to_float(part.to(device)) - mean).square().sum(0) for part in parts)
        assert isinstance(squares, Tensor)
        variance = squares.mean(0, keepdim=True) / frames.shape[0]  # (1, H, W)
        spread = variance.sqrt() + self.config.spread_floor
        common = ((variance / spread.square()).sum() / variance.sum()).sqrt()
        self.mean_image.copy_(mean)
        # data that never varies has nothing to be whitened by
        self.pixel_spread.copy_(torch.where(variance.sum() > 0, spread * common, torch.ones_like(spread)))
        if not self.config.context_in_posterior:
            return
        some = frames[:: max(frames.shape[0] // 256, 1)][:256].to(device)
        stacked, _ = self.stack(self.whiten(some[:, None]))
        features = self.encoder.features(stacked.flatten(0, 1))[self.token_level]
        self.perceiver.initialise_codebook(features[:, None], generator)

    @property
    def trainable(self) -> list[nn.Parameter]:
        """Parameters that the optimizer moves (neither the teacher's nor the critics'), always in the same order."""
        return [
            parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and not name.startswith("critics.")
        ]


def channels_last(image: Tensor) -> Tensor:
    """An image (C, H, W) with its channels last in memory."""
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def make_prior(config: WorldModelConfig) -> DPGMMPrior:
    """Prior of z_t given [h_{t-1}; c^_t]."""
    sizes = (config.max_components, config.latent_dim, config.hidden_dim + config.context_size)
    widths = {"stick_width": config.prior_hidden_dim // 4, "component_width": config.prior_hidden_dim}
    if config.latent_groups == 1:
        return DPGMMPrior(*sizes, config.prior_alpha, config.prior_beta, **widths)
    return HierarchicalPrior(*sizes, config.prior_alpha, config.prior_beta, groups=config.latent_groups, **widths)


def make_perceiver(config: WorldModelConfig, feature_channels: int, grid: tuple[int, int]) -> CausalPerceiverIO:
    """Tokenizer and Perceiver over feature maps of the trunk, (F, Ht, Wt)."""
    channels, height, width = config.image_shape
    return CausalPerceiverIO(
        (config.context_window, channels, height, width),
        context_dim=config.context_dim,
        num_latents=config.num_latents,
        num_latent_channels=config.latent_channels,
        num_attention_heads=config.perceiver_heads,
        num_encoder_layers=config.perceiver_layers,
        code_dim=config.code_dim,
        num_codes=config.num_codes,
        downsample=config.downsample,
        base_channels=config.tokenizer_channels,
        patch_size=config.downsample,
        window=config.context_window,
        entropy_weight=config.usage_entropy_weight,
        feature_channels=feature_channels,
        grid=grid,
        num_quantizers=config.num_codebooks,
        gradient="rotation" if config.rotation_trick else "straight_through",
        action_dim=config.action_size,
        reads_latents=config.readout_of_latents,
        masked_share=0.0,
    )


def make_attention(config: WorldModelConfig, feature_channels: int) -> AttentionSchema:
    """Slots and map from feature maps of the trunk and the context, and the prior of the map."""
    return AttentionSchema(
        config.image_size,
        config.attention_resolution,
        config.hidden_dim,
        config.latent_dim,
        config.context_size,
        feature_channels=config.attention_channels,
        num_semantic_slots=config.num_slots,
        iters=config.slot_iterations,
        state_channels=config.attention_prior_channels,
        trunk_channels=feature_channels,
        posterior_hidden_dim=0,
    )


def make_critics(config: WorldModelConfig) -> Critics:
    """The fourth task's critics of images (C, H, W) and of videos of them."""
    return Critics(
        config.image_channels,
        config.image_size,
        config.latent_dim,
        channels=config.critic_channels,
        hidden_dim=config.critic_dim,
        n_layers=config.critic_layers,
        n_heads=config.critic_heads,
        penalty=config.gradient_penalty,
    )
