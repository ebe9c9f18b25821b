"""Configuration of the world model: every size and switch, the presets, and the names older documents use."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from aime.ranges import SHARE, OptionError, Range, check_ranges

Count = Annotated[int, Range(1, 65536)]
Share = Annotated[float, SHARE]


@dataclass(frozen=True)
class WorldModelConfig:
    """Sizes and switches of :class:`~aime.world_model.DPGMMVariationalRecurrentAutoencoder`.

    ``context_in_posterior`` and ``attention_in_posterior`` are off in the laptop preset alone (docs/ablations.md).

    The defaults are those of tier 2 but for the likelihood. Symbols are those of docs/tensor_shapes.md.
    """

    action_size: Annotated[int, Range(1, 1024)] = 1
    """A, size of an action."""
    image_size: Annotated[int, Range(32, 1024)] = 84
    """H = W, side of the images in pixels; any side >= 32."""
    image_channels: Annotated[int, Range(1, 64)] = 3
    """C."""
    latent_dim: Count = 36
    """D, size of z."""
    latent_groups: Annotated[int, Range(1, 16)] = 1
    """G, groups of z, top-down: the coarsest under the mixture, finer ones Gaussian given those before."""
    hidden_dim: Count = 512
    """Hd, size of the recurrent state."""
    context_dim: Count = 256
    """Cc, size of the context vector."""
    max_components: Annotated[int, Range(1, 1024)] = 15
    """K, truncation of the Dirichlet process; 1 is a single Gaussian."""
    prior_alpha: Annotated[float, Range(above=0, to=1e6)] = 6.0
    """Shape of the Gamma hyper-prior of the concentration."""
    prior_beta: Annotated[float, Range(above=0, to=1e6)] = 2.0
    """Rate of the Gamma hyper-prior of the concentration."""
    stick_kl_weight: Annotated[float, Range(0, 1e6)] = 1.0
    """Weight of the sticks' KL: 1 charges it every frame, less leaves each state freer to weigh its components."""
    prior_hidden_dim: Annotated[int, Range(4, 65536)] = 512
    """Hidden units of the prior's networks."""
    kl_samples: Annotated[int, Range(1, 1024)] = 8
    """Monte-Carlo samples of the latent KL."""

    num_lstm_layers: Annotated[int, Range(1, 64)] = 1
    """Layers of the recurrent network."""
    orthogonal: Literal["init", "manifold"] = "init"
    """Recurrent blocks orthogonal at the start, or kept on the Stiefel manifold."""

    patch_size: Annotated[int, Range(1, 64, power_of_two=True)] = 4
    """Side in pixels of the patches by which the trunk first reduces an image."""
    frame_stack: Annotated[int, Range(1, 16)] = 2
    """Frames the trunk sees: the present one and the differences to those before it, in which motion is visible."""
    encoder_channels: tuple[Count, ...] = (64, 128, 192)
    """Channels of the trunk's levels, finest first."""
    decoder_channels: tuple[Count, ...] = (192, 128, 64)
    """Channels of the decoder's levels, coarsest first, the last at 1 / patch_size of the image's side."""
    cells_per_level: Annotated[int, Range(0, 64)] = 2
    """Residual cells a level of trunk and decoder."""
    mlp_hidden_dim: Count = 512
    """Hidden units of the posterior's head."""
    squeeze_excitation: bool = True
    """Channel gates in the residual cells."""
    decoded_share: Annotated[float, Range(above=0, to=1)] = 1.0
    """Share of the frames of a training sequence that are decoded, drawn anew for each batch."""
    likelihood: Literal["gaussian", "mixture_of_logistics"] = "mixture_of_logistics"
    """Likelihood of the images."""
    likelihood_scale: Annotated[float, Range(1e-4, 1e4)] = 0.1
    """Standard deviation of the Gaussian likelihood, in units of the [-1, 1] range, for a pixel of mean spread."""
    likelihood_components: Annotated[int, Range(1, 100)] = 10
    """Components a pixel of the mixture of logistics."""
    spread_floor: Annotated[float, Range(1e-3, 1e3)] = 0.05
    """Added to the spread of each pixel before frames and likelihood are divided by it; large: no whitening."""

    num_latents: Count = 128
    """N_l, latents of the Perceiver."""
    latent_channels: Count = 128
    """Channels of a Perceiver latent."""
    perceiver_layers: Annotated[int, Range(1, 64)] = 4
    """Layers of the Perceiver."""
    perceiver_heads: Annotated[int, Range(1, 64)] = 8
    """Attention heads of the Perceiver."""
    context_window: Annotated[int, Range(1, 4096)] = 10
    """Frames each temporal layer of the Perceiver sees."""
    num_codes: Annotated[int, Range(2, 1 << 20)] = 1024
    """V, size of the codebook."""
    num_codebooks: Annotated[int, Range(1, 64)] = 1
    """Q, codebooks, each for a part of the encoding: Q ids a position."""
    code_dim: Count = 64
    """Size of an encoding; a multiple of num_codebooks."""
    rotation_trick: bool = False
    """Rotate and rescale the gradient that passes the quantizer, in place of straight through; by itself
    it left 70 % of the codes unused."""
    downsample: Annotated[int, Range(2, 64, power_of_two=True)] = 4
    """Pixels to tokens along each side: that of one of the trunk's levels, patch_size times 1, 2, 4, ..."""
    tokenizer_channels: Count = 64
    """Channels of the tokens' decoder."""
    readout_of_latents: bool = False
    """Let the queries of the next tokens read the latents beside c_t and a_t; no full run has measured it."""
    perceiver_share: Annotated[float, Range(above=0, to=1)] = 1.0
    """Share of the sequences of a batch on which tokenizer and Perceiver are trained."""
    context_in_posterior: bool = True
    """Whether posterior and slots read c_t, and the prior its forecast; False: no Perceiver and no task of its own."""
    usage_entropy_weight: Annotated[float, Range(0, 1e6)] = 0.0
    """Weight of the bonus on the entropy of code use; dead codes are revived in any case."""

    num_slots: Annotated[int, Range(1, 64)] = 4
    """S, attention slots."""
    slot_iterations: Annotated[int, Range(1, 64)] = 3
    """Iterations of slot attention."""
    attention_resolution: Annotated[int, Range(2, 256)] = 21
    """R, side of the attention map."""
    attention_channels: Count = 64
    """Channels of the attention features and of a slot."""
    attention_prior_channels: Count = 32
    """Channels of the attention prior's ConvGRU."""
    attention_share: Annotated[float, Range(above=0, to=1)] = 1.0
    """Share of the sequences of a batch on which the attention prior is trained."""
    attention_in_posterior: bool = True
    """Whether the posterior reads the slots; False: no attention schema, maps of side 0."""
    attention_reading: Literal["slots", "map", "slots_and_map"] = "slots"
    """What the posterior reads beside the centre of the map: the slots' features, the map's cells, or both."""
    attention_balance: Share = 0.0
    """Share of the map's KL that moves the map towards its prediction, the rest the prediction; 0: the map is inferred
    for the likelihood alone."""
    precision_weighting: bool = False
    """Weight each pixel's likelihood by the (constant) attention map, floor .2, mean 1."""

    teacher_decay: Share = 0.995
    """Decay of the exponential-moving-average teacher of the Gram loss."""
    gram_frames: Annotated[int, Range(0, 4096)] = 0
    """Frames a sequence on which the Gram loss is evaluated; 0: no Gram loss and no teacher."""

    adversarial: bool = False
    """A fourth task: critics of images and videos (see `aime.adversarial`); off, since at equal CPU time it did not pay
    (docs/ablations.md)."""
    critic_channels: Count = 32
    """Channels of the first level of either critic's trunk."""
    critic_dim: Annotated[int, Range(2, 65536)] = 128
    """Width of the video critic's transformer."""
    critic_layers: Annotated[int, Range(1, 64)] = 2
    """Layers of that transformer."""
    critic_heads: Annotated[int, Range(1, 64)] = 4
    """Attention heads of that transformer."""
    critic_share: Annotated[float, Range(above=0, to=1)] = 0.25
    """Share of the sequences of a batch that critics see, and that the fourth task is computed on."""
    critic_steps: Annotated[int, Range(1, 100)] = 1
    """n_critic, steps of the critics for one of the model, on the same frames."""
    critic_rate: Annotated[float, Range(above=0, to=100)] = 0.1
    """Learning rate of the critics over that of the model."""
    gradient_penalty: Annotated[float, Range(0, 1e6)] = 10.0
    """Weight of the critics' gradient penalty."""

    def __post_init__(self) -> None:
        for name in ("encoder_channels", "decoder_channels"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        check_ranges(self)
        if self.latent_groups > self.latent_dim:
            raise OptionError(
                f"latent_groups: expected at most the {self.latent_dim} latents of latent_dim, "
                f"found {self.latent_groups}"
            )
        if self.precision_weighting and not self.attention_in_posterior:
            raise OptionError(
                "precision_weighting: expected False without attention_in_posterior, whose map it reads, found True"
            )
        if self.downsample not in self.strides:
            raise OptionError(
                f"downsample: expected the stride of a level of the trunk, one of {', '.join(map(str, self.strides))} "
                f"(patch_size {self.patch_size}, {len(self.encoder_channels)} levels), found {self.downsample}"
            )
        if self.patch_size * 2 ** (len(self.encoder_channels) - 1) > self.image_size:
            raise OptionError(
                f"encoder_channels: expected levels that leave a cell of an image of {self.image_size} pixels, found "
                f"{len(self.encoder_channels)} levels at patch_size {self.patch_size}"
            )
        if self.code_dim % self.num_codebooks:
            raise ValueError(
                f"code_dim: expected a multiple of num_codebooks = {self.num_codebooks}, found {self.code_dim}"
            )
        if self.latent_channels % self.perceiver_heads:
            raise OptionError(
                f"latent_channels: expected a multiple of perceiver_heads = {self.perceiver_heads}, "
                f"found {self.latent_channels}"
            )

        if self.critic_dim % self.critic_heads or self.critic_dim % 2:
            raise OptionError(
                f"critic_dim: expected an even multiple of critic_heads = {self.critic_heads}, found {self.critic_dim}"
            )

    @property
    def context_size(self) -> int:
        """Cc, or 0 without context."""
        return self.context_dim if self.context_in_posterior else 0

    @property
    def map_side(self) -> int:
        """R, or 0 without attention."""
        return self.attention_resolution if self.attention_in_posterior else 0

    @property
    def attention_size(self) -> int:
        """Numbers that the posterior reads of a frame's attention; 0 without."""
        slots = self.num_slots * self.attention_channels if "slots" in self.attention_reading else 0
        cells = self.attention_resolution**2 if "map" in self.attention_reading else 0
        return slots + cells + 2 if self.attention_in_posterior else 0

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels a cell of each level of the trunk, finest first."""
        return tuple(self.patch_size * 2**level for level in range(len(self.encoder_channels)))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.image_channels, self.image_size, self.image_size

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """A named configuration, with any field (or alias) overridden.

        Raises:
            ValueError: unknown preset; the message lists those there are.
            TypeError: unknown field; the message lists the near ones.
        """
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, found {name!r}")
        return cls.from_names(**{**PRESETS[name], **resolve_aliases(overrides)})

    @classmethod
    def from_names(cls, **names: Any) -> Self:
        """A configuration from field names or the aliases of :data:`ALIASES`.

        Raises:
            TypeError: unknown name; the message lists the near ones.
        """
        return cls(**resolve_aliases(names))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`."""
        return cls.from_names(**values)


ALIASES: dict[str, str] = {
    "action_dim": "action_size",
    "input_dim": "image_size",
    "img_height": "image_size",
    "input_channels": "image_channels",
    "img_perceiver_channels": "tokenizer_channels",
    "n_lstm_layers": "num_lstm_layers",
    "number_lstm_layer": "num_lstm_layers",
    "num_attention_slots": "num_slots",
    "num_semantic_slots": "num_slots",
    "attention_dim": "attention_channels",
    "slot_dim": "attention_channels",
    "num_latent_perceiver": "num_latents",
    "num_latent_channels_perceiver": "context_dim",
    "num_encoder_perceiver_layers": "perceiver_layers",
    "num_perceiver_heads": "perceiver_heads",
    "num_codebook_perceiver": "num_codes",
    "codebook_size": "num_codes",
    "perceiver_code_dim": "code_dim",
    "downsample_perceiver": "downsample",
    "context_window_size": "context_window",
    "img_disc_layers": "critic_layers",
    "disc_num_heads": "critic_heads",
    "n_critic": "critic_steps",
}
"""Constructor names of the older documents, and the fields they mean."""

DOCUMENTED_SIZES: dict[str, Any] = {"image_size": 64, "action_size": 6}
"""What the older documents mean by a model whose constructor leaves these out."""


def resolve_aliases(names: Mapping[str, Any]) -> dict[str, Any]:
    """Replace aliases by field names.

    Raises:
        TypeError: a name is neither field nor alias (the near ones are listed), or a field is given twice.
    """
    fields = {field.name for field in dataclasses.fields(WorldModelConfig)}
    resolved: dict[str, Any] = {}
    for name, value in names.items():
        field = ALIASES.get(name, name)
        if field not in fields:
            near = difflib.get_close_matches(name, [*fields, *ALIASES], n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; fields are {', '.join(sorted(fields))}"
            raise TypeError(f"unknown world model option {name!r}{hint}")
        if field in resolved:
            raise TypeError(f"world model option {field!r} is given twice, once as {name!r}")
        resolved[field] = value
    return resolved


_TIER_2: dict[str, Any] = {
    "image_size": 84,
    "latent_dim": 36,
    "hidden_dim": 512,
    "context_dim": 256,
    "max_components": 15,
    "likelihood": "gaussian",
}

_LAPTOP: dict[str, Any] = {
    "image_size": 64,
    "latent_dim": 16,
    "hidden_dim": 192,
    "context_dim": 64,
    "max_components": 6,
    "prior_hidden_dim": 192,
    "kl_samples": 2,
    "encoder_channels": (48, 64, 80),
    "decoder_channels": (80, 64, 48),
    "cells_per_level": 0,
    "mlp_hidden_dim": 256,
    "squeeze_excitation": False,
    "decoded_share": 0.5,
    "likelihood": "gaussian",
    "num_latents": 8,
    "latent_channels": 64,
    "perceiver_layers": 1,
    "perceiver_heads": 1,
    "context_window": 4,
    "num_codes": 256,
    "code_dim": 32,
    "downsample": 16,
    "perceiver_share": 0.25,
    "slot_iterations": 2,
    "attention_resolution": 8,
    "attention_channels": 32,
    "attention_prior_channels": 16,
    "attention_share": 0.25,
    "critic_channels": 16,
    "critic_dim": 64,
    "critic_layers": 1,
}

PRESETS: dict[str, dict[str, Any]] = {
    # Context and slots off: at equal CPU time the forecast is better without them (docs/ablations.md).
    "laptop": {**_LAPTOP, "context_in_posterior": False, "attention_in_posterior": False},
    "pillars": _LAPTOP,
    "tier1": {
        "image_size": 64,
        "latent_dim": 18,
        "hidden_dim": 256,
        "context_dim": 128,
        "max_components": 8,
        "prior_hidden_dim": 256,
        "num_latents": 32,
        "perceiver_layers": 2,
        "attention_resolution": 16,
        "cells_per_level": 1,
        # Under the mixture of logistics 3,500 steps learned the mean image, and nothing else (docs/tiers.md).
        "likelihood": "gaussian",
    },
    "tier2": _TIER_2,
    "tier3": {**_TIER_2, "context_window": 16},
}
"""Model part of the presets; the trainer joins them with batch sizes, lengths and rates."""
