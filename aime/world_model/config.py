"""Configuration of the world model: every size and switch, the presets, and the names older documents use."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self


@dataclass(frozen=True)
class WorldModelConfig:
    """Sizes and switches of :class:`~aime.world_model.DPGMMVariationalRecurrentAutoencoder`.

    The defaults are those of tier 3. Symbols are those of docs/tensor_shapes.md.
    """

    action_size: int = 1
    """A, size of an action."""
    image_size: int = 84
    """H = W, side of the images in pixels; any side >= 32."""
    image_channels: int = 3
    """C."""
    latent_dim: int = 36
    """D, size of z."""
    hidden_dim: int = 512
    """Hd, size of the recurrent state."""
    context_dim: int = 256
    """Cc, size of the context vector."""
    max_components: int = 15
    """K, truncation of the Dirichlet process."""
    prior_alpha: float = 6.0
    """Shape of the Gamma hyper-prior of the concentration."""
    prior_beta: float = 2.0
    """Rate of the Gamma hyper-prior of the concentration."""
    prior_hidden_dim: int = 512
    """Hidden units of the prior's networks."""
    kl_samples: int = 8
    """Monte-Carlo samples of the latent KL."""
    kl_balance: float = 0.5
    """Share of the latent KL's gradient that moves the prior, the rest moves the posterior; 0.5 is the plain ELBO."""

    num_lstm_layers: int = 1
    """Layers of the recurrent network."""
    orthogonal: Literal["init", "manifold"] = "init"
    """Recurrent blocks orthogonal at the start, or kept on the Stiefel manifold."""

    num_latents: int = 128
    """N_l, latents of the Perceiver."""
    latent_channels: int = 128
    """Channels of a Perceiver latent."""
    perceiver_layers: int = 4
    """Layers of the Perceiver."""
    perceiver_heads: int = 8
    """Attention heads of the Perceiver."""
    context_window: int = 10
    """Frames each temporal layer of the Perceiver sees."""
    num_codes: int = 1024
    """V, size of the codebook."""
    code_dim: int = 64
    """Size of a code."""
    downsample: int = 4
    """Pixels to tokens along each side; a power of two."""
    tokenizer_channels: int = 64
    """Channels of the tokenizer's first stage."""
    perceiver_share: float = 1.0
    """Share of the sequences of a batch on which tokenizer and token predictor are trained."""
    usage_entropy_weight: float = 0.0
    """Weight of the bonus on the entropy of code use; dead codes are revived in any case."""

    frame_stack: int = 2
    """Frames the encoder sees: the present one and the differences to those before it, in which motion is visible."""
    patch_size: int = 4
    """Side in pixels of the patches by which encoder and tokenizer first reduce an image; a power of two."""
    encoder_channels: tuple[int, ...] = (64, 128, 192)
    """Channels of the encoder's levels, finest first."""
    decoder_channels: tuple[int, ...] = (192, 128, 64)
    """Channels of the decoder's levels, coarsest first, the last at a quarter of the image's side."""
    cells_per_level: int = 2
    """Residual cells a level of encoder and decoder."""
    mlp_hidden_dim: int = 512
    """Hidden units of the encoder's head and the decoder's stem."""
    squeeze_excitation: bool = True
    """Channel gates in the residual cells."""
    decoded_share: float = 1.0
    """Share of the frames of a training sequence that are decoded, drawn anew for each batch."""
    likelihood: Literal["gaussian", "mixture_of_logistics"] = "mixture_of_logistics"
    """Likelihood of the images."""
    likelihood_scale: float = 0.1
    """Standard deviation of the Gaussian likelihood, in units of the [-1, 1] range."""
    likelihood_components: int = 10
    """Components a pixel of the mixture of logistics."""

    num_slots: int = 4
    """S, attention slots."""
    slot_iterations: int = 3
    """Iterations of slot attention."""
    attention_resolution: int = 21
    """R, side of the attention map."""
    attention_channels: int = 64
    """Channels of the attention features and of a slot."""
    attention_pyramid_channels: tuple[int, ...] = (32, 48, 64)
    """Channels of each level of the attention's feature pyramid, finest first."""
    attention_prior_channels: int = 32
    """Channels of the attention prior's ConvGRU."""
    attention_kl_balance: float = 1.0
    """Share of the attention KL's gradient that moves the prior map; the rest moves the posterior map."""
    attention_dropout: float = 0.5
    """Share of training frames decoded under an even map, so that latent and state alone must tell what is seen."""
    predictive_gradient: bool = True
    """Let attention and context prediction train encoder and dynamics too; off, their backward pass is short."""
    precision_weighting: bool = False
    """Weight each pixel's likelihood by the (constant) attention map, floor .2, mean 1."""

    imagined_share: float = 0.5
    """Share of training sequences whose later part runs on the model's predictions (parallel scheduled sampling)."""
    imagined_passes: int = 3
    """Passes of parallel scheduled sampling: after p passes the first p imagined frames are exact rollouts."""
    teacher_decay: float = 0.995
    """Decay of the exponential-moving-average teacher encoder."""
    gram_frames: int = 4
    """Frames a sequence on which the Gram loss is evaluated; 0 turns it off."""

    def __post_init__(self) -> None:
        for name in (
            "action_size",
            "image_channels",
            "frame_stack",
            "latent_dim",
            "hidden_dim",
            "context_dim",
            "max_components",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.image_size < 32:
            raise ValueError(f"image_size: expected at least 32 pixels, found {self.image_size}")
        for name in (
            "imagined_share",
            "kl_balance",
            "attention_kl_balance",
            "teacher_decay",
            "perceiver_share",
            "decoded_share",
            "attention_dropout",
        ):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: expected a share between 0 and 1, found {getattr(self, name)}")
        if self.likelihood not in ("gaussian", "mixture_of_logistics"):
            raise ValueError(f"likelihood: expected 'gaussian' or 'mixture_of_logistics', found {self.likelihood!r}")
        for name in ("encoder_channels", "decoder_channels", "attention_pyramid_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

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
    "img_perceiver_channels": "image_channels",
    "n_lstm_layers": "num_lstm_layers",
    "number_lstm_layer": "num_lstm_layers",
    "num_attention_slots": "num_slots",
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
}
"""Constructor names of the older documents, and the fields they mean."""


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
}

PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        "image_size": 64,
        "latent_dim": 16,
        "hidden_dim": 192,
        "context_dim": 64,
        "max_components": 6,
        "prior_hidden_dim": 192,
        "kl_samples": 2,
        "num_latents": 8,
        "latent_channels": 64,
        "perceiver_layers": 1,
        "perceiver_heads": 1,
        "context_window": 4,
        "num_codes": 256,
        "code_dim": 32,
        "downsample": 8,
        "tokenizer_channels": 64,
        "perceiver_share": 0.25,
        "predictive_gradient": False,
        "imagined_share": 0.2,
        "imagined_passes": 2,
        "patch_size": 8,
        "encoder_channels": (64, 96),
        "decoder_channels": (96, 64, 32),
        "cells_per_level": 1,
        "mlp_hidden_dim": 256,
        "squeeze_excitation": False,
        "decoded_share": 0.5,
        "likelihood": "gaussian",
        "slot_iterations": 2,
        "attention_resolution": 8,
        "attention_channels": 32,
        "attention_pyramid_channels": (32, 48),
        "attention_prior_channels": 16,
        "gram_frames": 1,
    },
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
    },
    "tier2": _TIER_2,
    "tier3": {**_TIER_2, "context_window": 16},
}
"""Model part of the presets; the trainer joins them with batch sizes, lengths and rates."""
