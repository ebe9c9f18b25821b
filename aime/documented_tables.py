"""The documented constructor arguments, one table a class, and the decorator by which a class accepts its own.

See `aime.documented_names` for what an entry means. The world model's sizes are in
`aime.world_model.config.ALIASES`, since presets and configuration files know them too.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from aime.documented_names import MOVES, Becomes, Entry, Kept, Only, Retired, Table, translate

Class = TypeVar("Class", bound=type)

NO_DROPOUT = "the networks here have no dropout"
MEMORY = "one fused call leaves nothing worth recomputing"
NUMBERED = "frames are numbered by sines and cosines"
ONE_SOFTMAX = "positions compete for slots in one softmax, without heads"


def renamed(keys: Mapping[str, str]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A nested dictionary's entries under the constructor's names; others keep theirs, and are checked there."""
    return lambda values: {keys.get(name, name): value for name, value in values.items()}


PERCEIVER_KEYS = {
    "codebook_size": "num_codes",
    "num_latent_channels": "latent_channels",
    "num_encoder_layers": "perceiver_layers",
    "num_self_attention_layers": "perceiver_layers",
    "num_attention_heads": "perceiver_heads",
    "base_channels": "tokenizer_channels",
}
ATTENTION_KEYS = {
    "slot_dim": "attention_channels",
    "num_semantic_slots": "num_slots",
    "resolution": "attention_resolution",
}


def doubled(base: int) -> tuple[int, int, int]:
    """Channels of three levels, finest first, as the documents count them from the first."""
    return base, 2 * base, 4 * base


def levels_of(values: Mapping[str, Any], field: str, *, reverse: bool) -> dict[str, Any]:
    """The entries of `encoder_config` or `decoder_config`."""
    own = dict(values)
    if "base_channels" in own:
        channels = doubled(own.pop("base_channels"))
        own[field] = channels[::-1] if reverse else channels
    return own


WORLD_MODEL: dict[str, Entry] = {
    "device": MOVES,
    "sequence_length": Kept("sequence_length"),
    "batch_size": Kept("batch_size"),
    "learning_rate": Kept("learning_rate"),
    "weight_decay": Kept("weight_decay"),
    "grad_clip": Kept("grad_clip"),
    "warmup_epochs": Kept("beta_warmup_epochs"),
    "use_rgb": Kept("balancer", lambda wanted: "rgb" if wanted else "sum"),
    "rgb_config": Kept("balancer_options", dict),
    "perceiver_config": Becomes(renamed(PERCEIVER_KEYS), "its entries, as arguments"),
    "attention_config": Becomes(renamed(ATTENTION_KEYS), "its entries, as arguments"),
    "encoder_config": Becomes(
        lambda values: levels_of(values, "encoder_channels", reverse=False),
        "its entries; `base_channels` gives `encoder_channels`",
    ),
    "decoder_config": Becomes(
        lambda values: levels_of(values, "decoder_channels", reverse=True),
        "its entries; `base_channels` gives `decoder_channels`",
    ),
    "use_orthogonal": Only(True, "recurrent blocks start orthogonal; orthogonal='manifold' keeps them so"),
    "perceiver_lr_multiplier": Only(1.5, "the multiples of the rate are in aime.world_model.training_step"),
    "dropout": Retired(NO_DROPOUT),
}

PERCEIVER: dict[str, Entry] = {
    "codebook_size": "num_codes",
    "hidden_dim": "num_latent_channels",
    "num_self_attention_layers": "num_encoder_layers",
    "num_cross_attention_heads": "num_attention_heads",
    "in_channels": Becomes(lambda channels: {"video_shape": (16, channels, 64, 64)}, "`video_shape` of 64 pixels"),
    "device": MOVES,
    "dropout": Only(0.0, NO_DROPOUT),
    "widening_factor": Only(4, "perceptrons are four times as wide as their input"),
    "kmeans_init": Only(False, "initialise_codebook(videos) does it when it is asked to"),
}

TOKENIZER: dict[str, Entry] = {
    "device": MOVES,
    "dropout": Only(0.0, NO_DROPOUT),
    "commitment_weight": Retired("CausalPerceiverIO(commitment_weight=...) weighs the losses"),
    "commitment_use_cross_entropy_loss": Only(False, "the commitment is the mean squared distance"),
    "use_cosine_sim": Only(False, "the nearest code is that at the smallest distance"),
    "kmeans_init": Only(False, "quantizer.initialise(encodings) does it when it is asked to"),
    "gate_skips": Only(False, "nothing leads around the codes"),
    "codebook_diversity_loss_weight": Retired("CausalPerceiverIO(entropy_weight=...) weighs the use of codes"),
    "codebook_diversity_temperature": Only(1.0, "the entropy of code use has no temperature"),
}

PREDICTOR: dict[str, Entry] = {
    "tokenizer": Becomes(
        lambda made: {
            "code_dim": made.quantizer.code_dim,
            "num_codes": made.quantizer.num_codes,
            "grid": made.grid(64, 64),
        },
        "its `code_dim`, `num_codes`, and `grid` for 64 pixels",
    ),
    "num_cross_attention_heads": "num_heads",
    "num_self_attention_heads": "num_heads",
    "sequence_length": "window",
    "device": MOVES,
    "dropout": Only(0.0, NO_DROPOUT),
    "widening_factor": Only(4, "perceptrons are four times as wide as their input"),
}

ATTENTION_POSTERIOR: dict[str, Entry] = {
    "num_slots": "num_semantic_slots",
    "slot_dim": "feature_channels",
    "attention_dim": "feature_channels",
    "slot_iters": "iters",
    "device": MOVES,
    "num_heads": Retired(ONE_SOFTMAX),
    "attention_fusion_mode": Only("weighted", "the map is the mixture of the slots' maps"),
    "enforce_diversity": Only(True, "diversity_loss is there in any case; its weight is lambda_diversity"),
    "expected_fused": Only(False, "trunk_channels says that feature maps come in place of images"),
    "use_checkpoint": Retired(MEMORY),
    "ckpt_preserve_rng": Retired(MEMORY),
    "ckpt_use_reentrant": Retired(MEMORY),
    "dropout_p": Only(0.0, NO_DROPOUT),
    "coord_noise_std": Only(0.0, "coordinates carry no noise"),
}

ATTENTION_PRIOR: dict[str, Entry] = {
    "feature_dim": "condition_width",
    "convgru_hidden_size": "state_channels",
    "convgru_kernel_size": "kernel_size",
    "device": MOVES,
    "motion_kernels": Retired("motion is a transport of the map's mass; motion_radius says how far"),
    "num_heads": Retired("the map is moved by convolutions, without attention over positions"),
    "use_relative_position_bias": Retired("the map is moved by convolutions, without attention over positions"),
    "use_checkpoint": Retired(MEMORY),
    "dropout": Only(0.0, NO_DROPOUT),
}

IMAGES: dict[str, Entry] = {
    "latent_dim": "latent_size",
    "use_se": "squeeze_excitation",
    "device": MOVES,
    "image_size": Becomes(lambda side: {"height": side, "width": side}, "`height` and `width`"),
    "dropout": Only(0.0, NO_DROPOUT),
    "downsample": Only(4, "patch_size and the number of levels in channels say how far"),
    "channel_size_per_layer": Retired("channels has one width a level"),
    "layers_per_block_per_layer": Retired("cells_per_level says how deep a level is"),
    "num_layers_per_resolution": Retired("cells_per_level says how deep a level is"),
}

TABLES: dict[str, Table] = {
    "DPGMMVariationalRecurrentAutoencoder": Table(WORLD_MODEL),
    "CausalPerceiverIO": Table(PERCEIVER, {"video_shape": (16, 3, 64, 64)}),
    "VQPTTokenizer": Table(TOKENIZER),
    "PerceiverTokenPredictor": Table(PREDICTOR, {"context_dim": 256}),
    "DPGMMPrior": Table({"device": MOVES}),
    "AdaptiveStickBreaking": Table(
        {
            "device": MOVES,
            "dkl_taylor_order": Retired("the divergence is sampled, or integrated: kl(sticks, quadrature=32)"),
        }
    ),
    "KumaraswamyNetwork": Table({"device": MOVES, "K": "max_components"}),
    "GammaPosterior": Table({"device": MOVES, "eps": Retired("softplus keeps both parameters away from 0")}),
    "LSTMLayer": Table(
        {"device": MOVES, "num_layers": "n_lstm_layers", "hidden_dim": "hidden_size", "input_dim": "input_size"}
    ),
    "SlotAttention": Table({"device": MOVES, "num_iterations": "iters"}),
    "AttentionPosterior": Table(ATTENTION_POSTERIOR),
    "AttentionPrior": Table(ATTENTION_PRIOR),
    "AttentionSchema": Table(
        {
            "device": MOVES,
            "attention_dim": "feature_channels",
            "slot_dim": "feature_channels",
            "num_slots": "num_semantic_slots",
        }
    ),
    "ConvGRUCell": Table(
        {
            "input_size": "input_channels",
            "hidden_size": "hidden_channels",
            "cuda_flag": Retired(".to(device) says where it lies"),
        }
    ),
    "VAEEncoder": Table(
        {
            **IMAGES,
            "image_channels": "input_channels",
            "base_channels": Becomes(
                lambda base: {"channels": doubled(base)}, "`channels`: that, twice and four times that"
            ),
            "channel_size": Retired("channels has one width a level"),
        },
        {"height": 64, "width": 64},
    ),
    "VAEDecoder": Table(
        {
            **IMAGES,
            "image_channels": "output_channels",
            "reconstruction_channels": "output_channels",
            "base_channels": Becomes(
                lambda base: {"channels": doubled(base)[::-1]}, "`channels`: four times, twice and once that"
            ),
            "num_mixtures": Retired(
                "make_likelihood('mixture_of_logistics', ...) says how many output_channels it reads"
            ),
        },
        {"height": 64, "width": 64},
    ),
    "RGB": Table({"num_tasks": "task_num"}),
    "TemporalDiscriminator": Table(
        {
            "device": MOVES,
            "max_sequence_length": Retired("videos of any length are scored"),
            "patch_size": Retired("the trunk halves a frame until 4 to 7 cells are left a side"),
            "use_rope_temporal": Retired(NUMBERED),
            "rope_base": Retired(NUMBERED),
        }
    ),
    "ImageDiscriminator": Table(
        {"device": MOVES, "use_actnorm": Only(False, "a normalisation over the batch would spoil the gradient penalty")}
    ),
    "DMCVBDataset": Table(
        {
            "root": "data_dir",
            "data_path": "data_dir",
            "domain": "domain_name",
            "task": "task_name",
            "video_length": "sequence_length",
            "image_height": "img_height",
            "image_width": "img_width",
            "image_size": Becomes(lambda side: {"img_height": side, "img_width": side}, "`img_height` and `img_width`"),
        }
    ),
    "ParallelEnvironment": Table(
        {
            "num_spare_envs": Retired("the next episodes begin while environments step, without spare ones"),
            "batch_size_per_env": Only(1, "each environment has one row"),
            "batched": Only(True, "rows are batched over environments"),
            "action_spec": Retired("the task has its own: action_minimum and action_maximum"),
            "timestep_spec": Retired("the task has its own, see TimeStep"),
            "name": Retired("domain and task name it; nothing is shared by name"),
        }
    ),
}


def accepts_documented_names(also: Collection[str] = ()) -> Callable[[Class], Class]:
    """Class decorator: the constructor takes the documented names of the class's table in `TABLES` too.

    Args:
        also: names beyond its signature that a constructor with ``**names`` knows itself.
    """

    def decorate(cls: Class) -> Class:
        table, constructor = TABLES[cls.__name__], vars(cls)["__init__"]
        parameters = {p.name: p for p in list(inspect.signature(constructor).parameters.values())[1:]}
        by_place = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        native = [*(name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD), *also]
        asked = {name for name, p in parameters.items() if p.default is p.empty}

        @functools.wraps(constructor)
        def construct(self: Any, *args: Any, **names: Any) -> None:
            placed = dict(zip(by_place, args, strict=False))
            if len(args) > len(by_place) or placed.keys() & names.keys():
                constructor(self, *args, **names)  # which says what is wrong
                return
            given = {**placed, **names}
            found = translate(cls.__name__, table.entries, given, native, open_ended=open_ended)
            if any(name not in native for name in names):  # called as the documents call it
                missing = asked & table.assumed.keys() - found.own.keys()
                found.own |= {name: table.assumed[name] for name in missing}
            constructor(self, **found.own)
            if found.kept:
                self.training_options = {**getattr(self, "training_options", {}), **found.kept}
            if found.device is not None:
                self.to(found.device)

        setattr(cls, "__init__", construct)  # noqa: B010 - assigned otherwise, it is taken for an instance's
        return cls

    return decorate
