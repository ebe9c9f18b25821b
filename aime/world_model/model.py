"""The world model: five pillars joined into one recurrent variational autoencoder."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from aime.attention_schema import AttentionSchema
from aime.encoder_decoder import GramLoss, VAEDecoder, VAEEncoder, make_likelihood
from aime.generative_prior import DPGMMPrior, PriorParameters
from aime.multi_task_learning import LossAggregator
from aime.multi_task_learning.balancer import GradientBalancer
from aime.nn import expect_shape, images_to_float, mlp
from aime.perceiver_io import CausalPerceiverIO
from aime.temporal_dynamics import ContextPredictor, LSTMLayer
from aime.world_model import imagination, sequence, training_step
from aime.world_model.config import WorldModelConfig
from aime.world_model.noise import SequenceNoise
from aime.world_model.state import ObservationMemory, WorldModelState

CONTRAST = 4.0
"""Factor on centred frames: what differs from the mean image is a few percent of the pixels, with a small variance."""


class DPGMMVariationalRecurrentAutoencoder(nn.Module):
    """Hierarchical variational world model with a Dirichlet-process mixture prior.

    Index discipline: h_t has absorbed everything up to and including z_t, c_t and a_t; a_t is taken after o_t.

    Args:
        config: sizes and switches; the defaults when absent.
        names: fields of :class:`WorldModelConfig`, or the names older documents use for them.

    Raises:
        TypeError: an unknown name; the message lists the near ones.

    Example:
        >>> config = WorldModelConfig.preset("laptop", action_size=1)
        >>> model = DPGMMVariationalRecurrentAutoencoder(config)
        >>> frames = torch.zeros(2, 4, 3, 64, 64, dtype=torch.uint8)
        >>> states = model.observe(frames, torch.zeros(2, 4, 1))
        >>> model.imagine(states.at(-1), torch.zeros(2, 5, 1))["observations"].shape
        torch.Size([2, 5, 3, 64, 64])
    """

    mean_image: Tensor

    def __init__(self, config: WorldModelConfig | None = None, **names: Any) -> None:
        super().__init__()
        if config is not None and names:
            raise TypeError(f"expected either a config or names, found a config and {', '.join(sorted(names))}")
        self.config = config = config or WorldModelConfig.from_names(**names)
        channels, height, width = config.image_shape
        self.register_buffer("mean_image", torch.zeros(channels, height, width))
        self.perceiver = CausalPerceiverIO(
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
            patch_size=config.patch_size,
            window=config.context_window,
            entropy_weight=config.usage_entropy_weight,
        )
        self.encoder = VAEEncoder(
            config.latent_dim,
            height,
            width,
            context_dim=config.context_dim,
            channels=config.encoder_channels,
            cells_per_level=config.cells_per_level,
            mlp_hidden_size=config.mlp_hidden_dim,
            input_channels=channels * config.frame_stack,
            patch_size=config.patch_size,
            squeeze_excitation=config.squeeze_excitation,
        )
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
            mlp_hidden_size=config.mlp_hidden_dim,
            squeeze_excitation=config.squeeze_excitation,
        )
        self.dynamics = LSTMLayer(
            config.latent_dim + config.context_dim + config.action_size,
            config.hidden_dim,
            config.num_lstm_layers,
            orthogonal=config.orthogonal,
        )
        self.context_predictor = ContextPredictor(config.hidden_dim, config.context_dim)
        self.prior = DPGMMPrior(
            config.max_components,
            config.latent_dim,
            config.hidden_dim + config.context_dim,
            config.prior_alpha,
            config.prior_beta,
            stick_width=config.prior_hidden_dim // 4,
            component_width=config.prior_hidden_dim,
        )
        self.persistence = nn.Parameter(torch.ones(config.latent_dim))
        self.attention = AttentionSchema(
            config.image_size,
            config.attention_resolution,
            config.hidden_dim,
            config.latent_dim,
            config.context_dim,
            channels,
            feature_channels=config.attention_channels,
            num_semantic_slots=config.num_slots,
            pyramid_channels=config.attention_pyramid_channels,
            iters=config.slot_iterations,
            state_channels=config.attention_prior_channels,
        )
        self.reward_head = mlp((config.hidden_dim, config.hidden_dim // 2, 1))
        self.continue_head = mlp((config.hidden_dim, config.hidden_dim // 2, 1))
        self.gram_loss = GramLoss()
        self.teacher_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.loss_aggregator = LossAggregator()
        self.optimizer: torch.optim.Optimizer | None = None
        self.rgb_optimizer: GradientBalancer | None = None
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    # ------------------------------------------------------------------ parts, each one call on any number of frames

    def centre(self, observations: Tensor) -> Tensor:
        """Frames uint8 or float in [-1, 1] (B, T, C, H, W) to float with the mean image taken off, times CONTRAST.

        The result is channels-last in memory, as convolutions want it; mixing layouts made the likelihood alone cost
        a tenth of a training step.

        Raises:
            ValueError: another image shape than the configuration's.
        """
        channels, height, width = self.config.image_shape
        expect_shape(observations, "B T C H W", "observations", C=channels, H=height, W=width)
        batch, frames = observations.shape[:2]
        images = observations.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        centred: Tensor = (images_to_float(images) - self.channels_last_mean).mul(CONTRAST)
        return centred.unflatten(0, (batch, frames))  # type: ignore[no-any-return]

    def images(self, frames: Tensor) -> Tensor:
        """Inverse of :meth:`centre`: images in [-1, 1]."""
        return frames / CONTRAST + self.channels_last_mean

    @property
    def channels_last_mean(self) -> Tensor:
        """Mean image (C, H, W), channels-last in memory."""
        return self.mean_image.permute(1, 2, 0).contiguous().permute(2, 0, 1)

    def stack(self, frames: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the encoder sees of centred frames (B, T, C, H, W): each frame and the differences before it.

        Args:
            frames: centred frames.
            before: (B, frame_stack - 1, C, H, W) frames before these; the first frame stands still when absent.

        Returns:
            (B, T, frame_stack * C, H, W), and the last frame_stack - 1 frames to continue with.
        """
        earlier, length = self.config.frame_stack - 1, frames.shape[1]
        if before is None:
            before = frames[:, :1].expand(-1, earlier, -1, -1, -1)
        extended = torch.cat([before, frames], 1)
        differences = extended[:, 1:] - extended[:, :-1]  # entry i: frame i + 1 - (frame_stack - 1) less the one before
        views = [frames] + [differences[:, earlier - 1 - k : earlier - 1 - k + length] for k in range(earlier)]
        stacked = torch.cat(views, 2)
        batch = frames.shape[0]
        flat = stacked.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return flat.unflatten(0, (batch, length)), extended[:, length:]

    def initial_state(self, batch: int) -> WorldModelState:
        """State (B, ...) before the first frame: learned recurrent state, no latent, uniform attention."""
        config, device = self.config, self.mean_image.device
        recurrent = self.dynamics.initial_state(batch)
        return WorldModelState(
            hidden=self.dynamics.output(recurrent),
            lstm_hidden=recurrent.hidden,
            lstm_cell=recurrent.cell,
            latent=torch.zeros(batch, config.latent_dim, device=device),
            context=torch.zeros(batch, config.context_dim, device=device),
            attention_map=self.attention.uniform_map(batch),
            attention_hidden=self.attention.prior_net.initial_state(batch),
            memory=ObservationMemory(self.perceiver.empty_memory(batch), None),
        )

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
        """
        reach = hidden if self.config.predictive_gradient else hidden.detach()
        predicted: Tensor = self.context_predictor(reach)
        # Detached: the prior must make do with the context it will have in imagination, not bend it to its own ends.
        conditions = torch.cat([hidden, predicted.detach()], -1)
        prior = self.prior(conditions, noise=noise, generator=generator, deterministic=deterministic)
        means = prior.means + (self.persistence * previous_latent.float()).unsqueeze(-2)
        return dataclasses.replace(prior, means=means), predicted

    def decode(self, latent: Tensor, hidden: Tensor, attention: Tensor) -> Tensor:
        """Decoder output (N, channels, H, W) from z_t (N, D), h_{t-1} (N, Hd) and A_t (N, R, R)."""
        parameters: Tensor = self.decoder(latent, hidden, attention)
        return parameters

    def expected_images(self, latent: Tensor, hidden: Tensor, attention: Tensor) -> Tensor:
        """Mean images (N, C, H, W) in [-1, 1], differentiable."""
        return self.likelihood.mean(self.decode(latent, hidden, attention), self.channels_last_mean)

    def recurrent_input(self, latent: Tensor, context: Tensor, actions: Tensor) -> Tensor:
        """[z_t; c_t; a_t], the input of the recurrence."""
        expect_shape(actions, "B T A" if actions.dim() == 3 else "B A", "actions", A=self.config.action_size)
        return torch.cat([latent, context, actions.to(latent.dtype)], -1)

    # ------------------------------------------------------------------ training

    def forward_sequence(
        self,
        observations: Tensor,
        actions: Tensor | None = None,
        rewards: Tensor | None = None,
        continues: Tensor | None = None,
        *,
        noise: SequenceNoise | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """Run the model over whole sequences in parallel over time; see :mod:`aime.world_model.sequence`."""
        return sequence.forward_sequence(
            self, observations, actions, rewards, continues, noise=noise, generator=generator
        )

    def compute_total_loss(
        self,
        observations: Tensor,
        actions: Tensor | None = None,
        rewards: Tensor | None = None,
        continues: Tensor | None = None,
        *,
        beta: float = 1.0,
        entropy_weight: float = 0.0,
        lambda_recon: float = 1.0,
        lambda_att_dyn: float = 0.1,
        lambda_gram: float = 0.05,
        lambda_diversity: float = 0.01,
        noise: SequenceNoise | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Losses by name (those of docs/losses, ``total_loss`` among them) and the outputs they came from."""
        outputs = self.forward_sequence(observations, actions, rewards, continues, noise=noise, generator=generator)
        losses, _ = self.loss_aggregator.compute_losses(
            outputs,
            beta=beta,
            entropy_weight=entropy_weight,
            lambda_recon=lambda_recon,
            lambda_att_dyn=lambda_att_dyn,
            lambda_gram=lambda_gram,
            lambda_diversity=lambda_diversity,
        )
        return losses, outputs

    def training_step_sequence(
        self,
        observations: Tensor,
        actions: Tensor | None = None,
        rewards: Tensor | None = None,
        continues: Tensor | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """One optimisation step; options and results as in :func:`aime.world_model.training_step.training_step`."""
        return training_step.training_step(self, observations, actions, rewards, continues, **options)

    def configure_optimizer(
        self, learning_rate: float = 3e-4, weight_decay: float = 1e-5, balancer: str = "rgb", **options: Any
    ) -> None:
        """Give the model its AdamW optimizer and gradient balancer; options go to the balancer."""
        training_step.configure_optimizer(self, learning_rate, weight_decay, balancer, **options)

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """AdamW groups: perceiver 1.5x, heads and attention 1.2x, initial states .1x; no decay on vectors."""
        return training_step.parameter_groups(self, learning_rate, weight_decay)

    @torch.no_grad()
    def update_buffers(self, outputs: dict[str, Any], generator: torch.Generator | None = None) -> None:
        """After an optimizer step: move the codebook and the teacher."""
        self.perceiver.update_codebook(outputs["tokens"], generator)
        for teacher, student in zip(self.teacher_encoder.parameters(), self.encoder.parameters(), strict=True):
            teacher.lerp_(student, 1.0 - self.config.teacher_decay)

    @torch.no_grad()
    def initialise_from_data(self, frames: Tensor, generator: torch.Generator | None = None) -> None:
        """Before training: mean image and k-means codebook from frames (N, C, H, W) of the training split."""
        expect_shape(frames, "N C H W", "frames", C=self.config.image_channels)
        total = torch.zeros_like(self.mean_image)
        for part in frames.split(256):
            total += images_to_float(part.to(self.mean_image.device)).sum(0)
        self.mean_image.copy_(total / frames.shape[0])
        some = frames[:: max(frames.shape[0] // 256, 1)][:256].to(self.mean_image.device)
        self.perceiver.initialise_codebook(self.centre(some[:, None]), generator)

    # ------------------------------------------------------------------ use

    def observe(
        self,
        observations: Tensor,
        actions: Tensor,
        state: WorldModelState | None = None,
        *,
        noise: SequenceNoise | None = None,
        generator: torch.Generator | None = None,
    ) -> WorldModelState:
        """Posterior states (B, T, ...) of frames (B, T, C, H, W) and the actions (B, T, A) taken after each."""
        return imagination.observe(self, observations, actions, state, noise=noise, generator=generator)

    def step(
        self,
        state: WorldModelState,
        observation: Tensor,
        action: Tensor,
        *,
        noise: SequenceNoise | None = None,
        generator: torch.Generator | None = None,
    ) -> WorldModelState:
        """State after one more frame (B, C, H, W) and action (B, A); T steps equal one pass over the T frames."""
        states = imagination.observe(
            self, observation[:, None], action[:, None], state, noise=noise, generator=generator
        )
        return states.at(-1)

    def imagine(
        self,
        state: WorldModelState,
        actions: Tensor | Callable[[WorldModelState], Tensor],
        horizon: int | None = None,
        temperature: float = 1.0,
        *,
        generator: torch.Generator | None = None,
        forced_latents: Tensor | None = None,
        forced_contexts: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Roll the model forward on its own predictions; see :func:`aime.world_model.imagination.imagine`."""
        return imagination.imagine(
            self,
            state,
            actions,
            horizon,
            temperature,
            generator=generator,
            forced_latents=forced_latents,
            forced_contexts=forced_contexts,
        )

    def sample_next_latent(
        self,
        hidden: Tensor,
        previous_latent: Tensor,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, PriorParameters]:
        """A sample of z_t (B, D) from its prior given h_{t-1} (B, Hd) and z_{t-1} (B, D), and the prior."""
        prior, _ = self.prior_at(hidden, previous_latent, generator=generator)
        return self.prior.sample(prior, temperature, generator), prior

    @torch.no_grad()
    def sample(self, count: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] drawn from the prior of a first frame."""
        state = self.initial_state(count)
        latent, _ = self.sample_next_latent(state.hidden, state.latent, temperature, generator)
        attention, _ = imagination.predict_attention(self, state)
        return self.expected_images(latent, state.hidden, attention)

    @torch.no_grad()
    def generate_future_sequence(
        self,
        observations: Tensor,
        actions: Tensor,
        future_actions: Tensor,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Observe frames (B, T, C, H, W) with actions (B, T, A), then imagine under further actions (B, Hz, A)."""
        states = self.observe(observations, actions, generator=generator)
        return self.imagine(states.at(-1), future_actions, temperature=temperature, generator=generator)

    @property
    def trainable(self) -> list[nn.Parameter]:
        """Parameters that the optimizer moves (the teacher's are not among them), always in the same order."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    # ------------------------------------------------------------------ disk

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        from safetensors.torch import save_file

        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, directory / "model.safetensors")

    @classmethod
    def from_pretrained(cls, directory: str | Path, device: torch.device | str = "cpu") -> Self:
        """Load what :meth:`save_pretrained` wrote; nothing is unpickled.

        Raises:
            FileNotFoundError: a file is missing.
            RuntimeError: the weights do not fit the configuration (strict loading).
        """
        from safetensors.torch import load_file

        directory = Path(directory)
        for name in ("config.json", "model.safetensors"):
            if not (directory / name).is_file():
                raise FileNotFoundError(f"{directory}: expected a directory with {name}, written by save_pretrained")
        model = cls(WorldModelConfig.from_dict(json.loads((directory / "config.json").read_text())))
        model.load_state_dict(load_file(directory / "model.safetensors"), strict=True)
        return model.to(device).eval()
