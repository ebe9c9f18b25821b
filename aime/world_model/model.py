"""The world model: five pillars joined into one recurrent variational autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from aime.adversarial import CriticPlayer
from aime.documented_names import advise
from aime.documented_tables import accepts_documented_names
from aime.files import DamagedFileError, check_written, read_json, write_json
from aime.generative_prior import PriorParameters
from aime.multi_task_learning import LossAggregator
from aime.multi_task_learning.balancer import GradientBalancer
from aime.multi_task_learning.losses.task_loss import LossWeights
from aime.nn import expect_shape
from aime.ranks import Ranks
from aime.tensor_files import check_tensors, read_tensors, write_tensors
from aime.world_model import generation, inference, sequence, training_step
from aime.world_model.config import ALIASES, DOCUMENTED_SIZES, WorldModelConfig, resolve_aliases
from aime.world_model.documented_training import move_after_backward
from aime.world_model.noise import SequenceNoise
from aime.world_model.outputs import SequenceOutputs
from aime.world_model.parts import WorldModelParts
from aime.world_model.rehearsal import RememberedSequences
from aime.world_model.state import WorldModelState

CRITICS_PATCH = "beside img_disc_layers it is the older critic's; beside critic_layers it is the trunk's"


@accepts_documented_names(also=[*ALIASES, *WorldModelConfig.__dataclass_fields__])
class DPGMMVariationalRecurrentAutoencoder(WorldModelParts):
    """Hierarchical variational world model with a Dirichlet-process mixture prior.

    Index discipline: h_t has absorbed everything up to and including z_t and a_t; a_t is taken after o_t.

    Args:
        config: sizes and switches; the defaults when absent.
        names: fields of :class:`WorldModelConfig`, or the names older documents use for them; images of 64 pixels and
            actions of 6 numbers, as those have them, where they are not named. Among these, what belongs to training
            (learning_rate, grad_clip, ...) is kept in ``training_options``, and ``device`` is where the model goes.

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

    def __init__(self, config: WorldModelConfig | None = None, **names: Any) -> None:
        if config is not None and names:
            raise TypeError(f"expected either a config or names, found a config and {', '.join(sorted(names))}")
        if "img_disc_layers" in names and "patch_size" in names:  # a call of older code, where both are its critic's
            advise(type(self).__name__, "patch_size", names.pop("patch_size"), CRITICS_PATCH)
        super().__init__(config or WorldModelConfig(**(DOCUMENTED_SIZES | resolve_aliases(names) if names else {})))
        self.loss_aggregator = LossAggregator()
        self.training_options: dict[str, Any] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._balancer: GradientBalancer | None = None
        self.opponent: CriticPlayer | None = None

    # ------------------------------------------------------------------ training

    static_step = True
    """Steps on batches of one shape run the same kernels on the same memory, so that one of them can be captured."""

    @property
    def compilable_methods(self) -> tuple[tuple[nn.Module, str], ...]:
        """Modules and methods that torch.compile can be given as wholes: trunk, posterior head and decoder.

        The rest of a step is the recurrence, fused operators that inductor cannot look into, the balancer, and what a
        rehearsal calls in a thread of its own.
        """
        return (self.encoder, "features"), (self.encoder, "posterior"), (self.decoder, "forward")

    def forward_sequence(
        self,
        observations: Tensor,
        actions: Tensor | None = None,
        rewards: Tensor | None = None,
        continues: Tensor | None = None,
        *,
        noise: SequenceNoise | None = None,
        generator: torch.Generator | None = None,
        ranks: Ranks | None = None,
    ) -> SequenceOutputs:
        """Run the model over whole sequences in parallel over time.

        Arguments as in :func:`aime.world_model.sequence.forward_sequence`, the results by name as in
        :class:`SequenceOutputs`, and as dataclasses in its ``result``. In training mode a backward pass through the
        Perceiver's loss moves the codebook (and the teacher), one through the adversarial loss lets the critics take
        their steps, as :meth:`training_step_sequence` does after its own.
        """
        result = sequence.forward_sequence(
            self, observations, actions, rewards, continues, noise=noise, generator=generator, ranks=ranks
        )
        if self.training and torch.is_grad_enabled():
            move_after_backward(self, result, self._configured_opponent)
        return SequenceOutputs(self, result, ranks)

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
        lambda_img: float = 1.0,
        noise: SequenceNoise | None = None,
        generator: torch.Generator | None = None,
        ranks: Ranks | None = None,
    ) -> tuple[dict[str, Tensor], SequenceOutputs]:
        """Losses by name (those of docs/losses, ``total_loss`` among them) and the outputs they came from."""
        outputs = self.forward_sequence(
            observations, actions, rewards, continues, noise=noise, generator=generator, ranks=ranks
        )
        losses, _ = self.loss_aggregator.compute_losses(
            outputs,
            beta=beta,
            entropy_weight=entropy_weight,
            lambda_recon=lambda_recon,
            lambda_att_dyn=lambda_att_dyn,
            lambda_gram=lambda_gram,
            lambda_diversity=lambda_diversity,
            lambda_img=lambda_img,
        )
        return losses, outputs

    def configure_optimizer(
        self, learning_rate: float = 3e-4, weight_decay: float = 1e-5, balancer: str = "rgb", **options: Any
    ) -> None:
        """Give the model its AdamW optimizer and gradient balancer (which takes the options), the critics theirs."""
        self._optimizer, self._balancer = training_step.make_optimizer(
            self, learning_rate, weight_decay, balancer, self.get_share_params, **options
        )
        self.opponent = training_step.make_opponent(self, learning_rate)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The AdamW optimizer; made with the constructor's options, or the defaults, where none was configured."""
        return self._configured()[0]

    @property
    def rgb_optimizer(self) -> GradientBalancer:
        """The gradient balancer; made like :attr:`optimizer`."""
        return self._configured()[1]

    def get_share_params(self) -> list[nn.Parameter]:
        """What the balancer moves: all that is trainable."""
        return self.trainable

    def parameter_groups(self, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """AdamW groups: perceiver 1.5x, heads and attention 1.2x, initial states .1x; no decay on vectors."""
        return training_step.parameter_groups(self, learning_rate, weight_decay)

    def training_step_sequence(
        self,
        observations: Tensor,
        actions: Tensor | None = None,
        rewards: Tensor | None = None,
        continues: Tensor | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """One optimisation step; options and results as in :func:`aime.world_model.training_step.training_step`.

        The weights of the losses (beta, lambda_recon, ...) may be given by their names, instead of as ``weights``.
        ``n_critic`` is, from this step on, how many steps the critics take for one of the model.
        """
        optimizer, balancer = self._configured()
        steps = options.pop("n_critic", None)
        if steps is not None and self.opponent is not None:
            self.opponent.steps = steps
        named = {name: options.pop(name) for name in LossWeights.__dataclass_fields__ if name in options}
        weights = replace(options.pop("weights", training_step.STEP_WEIGHTS), **named)
        options = {"weights": weights, "opponent": self.opponent, **options}
        if "grad_clip" in self.training_options:
            options.setdefault("grad_clip", self.training_options["grad_clip"])
        return training_step.training_step(
            self, optimizer, balancer, self.loss_aggregator, observations, actions, rewards, continues, **options
        )

    def rehearse(
        self,
        sequences: RememberedSequences,
        seen: int,
        rolled: int | None = None,
        *,
        ranks: Ranks | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """One optimizer step of recurrence and prior on remembered posteriors, ``rolled`` of them from frame ``seen``.

        Options (autocast, generator) as in :func:`aime.world_model.training_step.rehearsal_gradient`.
        """
        return self.rehearsal_update(self.rehearsal_gradient(sequences, seen, rolled, **options), ranks)

    def rehearsal_gradient(
        self, sequences: RememberedSequences, seen: int, rolled: int | None = None, **options: Any
    ) -> training_step.RehearsalGradient:
        """The first half of :meth:`rehearse`, which only reads the parameters."""
        return training_step.rehearsal_gradient(self, sequences, seen, rolled, **options)

    def rehearsal_update(self, found: training_step.RehearsalGradient, ranks: Ranks | None = None) -> dict[str, Tensor]:
        """The second half of :meth:`rehearse`: one optimizer step along that gradient."""
        return training_step.rehearsal_update(self, self._configured()[0], found, ranks)

    def _configured(self) -> tuple[torch.optim.Optimizer, GradientBalancer]:
        if self._optimizer is None or self._balancer is None:
            given = self.training_options
            known = {name: given[name] for name in ("learning_rate", "weight_decay", "balancer") if name in given}
            self.configure_optimizer(**known, **given.get("balancer_options", {}))
        assert self._optimizer is not None
        assert self._balancer is not None
        return self._optimizer, self._balancer

    def _configured_opponent(self) -> CriticPlayer | None:
        self._configured()
        return self.opponent

    # ------------------------------------------------------------------ use

    def perceive(self, observations: Tensor) -> inference.Perceived:
        """Features, tokens, context, slots and posterior of frames (B, T, C, H, W)."""
        return inference.perceive(self, observations)

    def observe(
        self,
        observations: Tensor,
        actions: Tensor,
        state: WorldModelState | None = None,
        *,
        noise: SequenceNoise | None = None,
        generator: torch.Generator | None = None,
    ) -> WorldModelState:
        """Posterior states of a sequence.

        Args:
            observations: (B, T, C, H, W) uint8, or float in [-1, 1].
            actions: (B, T, A), each taken after the frame of its index.
            state: (B, ...) after the frames before these; the initial state when absent.
            noise: randomness of the latents; drawn when absent.
            generator: source of randomness.

        Returns:
            trajectory (B, T, ...); its last state continues to observe or imagine, the others to imagine.

        Raises:
            ValueError: a shape that does not fit, or a state that cannot observe further frames.
        """
        channels, height, width = self.config.image_shape
        sizes = expect_shape(observations, "B T C H W", "observations", C=channels, H=height, W=width)
        batch, length = sizes["B"], sizes["T"]
        expect_shape(actions, "B T A", "actions", B=batch, T=length, A=self.config.action_size)
        state = state or self.initial_state(batch)
        expect_shape(state.hidden, "B Hd", "state.hidden", B=batch, Hd=self.config.hidden_dim)
        if state.memory is None:
            raise ValueError(
                "state: expected one that remembers the frames before it (the initial state, or the last of a "
                "trajectory), found one from imagination or from inside a trajectory"
            )
        noise = noise or SequenceNoise.draw(self.config, batch, length, self.mean_image, generator)
        return inference.observe(self, observations, actions, state, noise.latent)

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
        states = self.observe(observation[:, None], action[:, None], state, noise=noise, generator=generator)
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
    ) -> dict[str, Tensor]:
        """Roll the model forward on its own predictions; see :func:`aime.world_model.generation.imagine`."""
        return generation.imagine(
            self, state, actions, horizon, temperature, generator=generator, forced_latents=forced_latents
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
        return self.expected_images(latent, state.hidden)

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

    # ------------------------------------------------------------------ disk

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "config.json", self.config.to_dict())
        write_tensors(directory / "model.safetensors", self.state_dict())

    @classmethod
    def from_pretrained(cls, directory: str | Path, device: torch.device | str = "cpu") -> Self:
        """Load what :meth:`save_pretrained` wrote; nothing is unpickled.

        Raises:
            FileNotFoundError: a file is missing.
            aime.files.DamagedFileError: a file is cut, changed or of another kind.
            ValueError: the configuration is none, or the weights are not exactly its tensors; file and field are named.
        """
        directory = Path(directory)
        for name in ("config.json", "model.safetensors"):
            if not (directory / name).is_file():
                raise FileNotFoundError(f"{directory}: expected a directory with {name}, written by save_pretrained")
        check_written(directory)
        try:
            model = cls(WorldModelConfig.from_dict(read_json(directory / "config.json")))
        except (TypeError, ValueError) as error:
            named = isinstance(error, DamagedFileError)
            raise error if named else ValueError(f"{directory / 'config.json'}: {error}") from error
        weights = read_tensors(directory / "model.safetensors")
        check_tensors(directory / "model.safetensors", weights, model.state_dict())
        model.load_state_dict(weights)
        return model.to(device).eval()
