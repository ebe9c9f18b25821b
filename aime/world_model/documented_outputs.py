"""The original AIME's keys of `forward_sequence`: views of the entries there are, and where others went."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from aime.world_model.parts import CONTRAST, WorldModelParts

Outputs = Mapping[str, Any]
View = Callable[[Outputs], Any]

VIEWS: dict[str, tuple[tuple[str, ...], View]] = {
    # documented key: the entries it is made of, and how
    "context": (("context_sequence",), lambda outputs: outputs["context_sequence"]),  # (B, T, Cc)
    "context_states": (("context_sequence",), lambda outputs: frames(outputs["context_sequence"])),  # T of (B, Cc)
    "h_t": (("hidden_states",), lambda outputs: outputs["hidden_states"][:, -1]),  # (B, Hd)
    "z_logvars": (("z_log_scales",), lambda outputs: 2 * outputs["z_log_scales"]),  # (B, T, D)
    "posterior_params": (
        ("z_means", "z_log_scales"),
        lambda outputs: [
            {"mean": mean, "logvar": 2 * scale}  # (B, D) each
            for mean, scale in zip(frames(outputs["z_means"]), frames(outputs["z_log_scales"]), strict=True)
        ],
    ),
    "dpgmm_weights": (("prior_params",), lambda outputs: outputs["prior_params"]["pi"][:, -1]),  # (B, K)
    "tokens": (("token_ids",), lambda outputs: outputs["token_ids"]),  # (B, T, Ht, Wt)
    "attention_map": (("attention_maps",), lambda outputs: outputs["attention_maps"][:, -1]),  # (B, R, R)
    "group_assignments": (
        ("slot_attention_maps",),
        lambda outputs: shares(outputs["slot_attention_maps"]).movedim(2, -1),  # (B, T, R, R, S)
    ),
    "attention_entropy": (("attention_maps",), lambda outputs: map_entropy(outputs["attention_maps"])),  # ()
    "mean_attention_entropy": (("attention_maps",), lambda outputs: map_entropy(outputs["attention_maps"])),  # ()
    "attention_concentration": (("attention_maps",), lambda outputs: outputs["attention_maps"].amax((-1, -2)).mean()),
    "slot_usage": (("slot_fusion_weights",), lambda outputs: slots_in_use(outputs["slot_fusion_weights"])),  # ()
    "kl_losses": (
        ("kl_latents", "kumaraswamy_kl_losses"),
        lambda outputs: outputs["kl_latents"] + outputs["kumaraswamy_kl_losses"],  # (T,)
    ),
    "vq_perplexity": (("perceiver_perplexity",), lambda outputs: outputs["perceiver_perplexity"]),  # ()
    "vq_commitment_loss": (("perceiver_commitment_loss",), lambda outputs: outputs["perceiver_commitment_loss"]),
    "vq_reconstruction_loss": (
        ("perceiver_reconstruction_loss",),
        lambda outputs: outputs["perceiver_reconstruction_loss"],
    ),
}

GONE = {
    "attention_states": "slots, map and context go into the posterior of z_t: read slot_features, or hidden_states for "
    "the recurrence",
    "attention_features": "read slot_features (B, T, S, d) and slot_centers (B, T, S, 2)",
    "mdl_params": "read result.decoded.parameters (the likelihood's), or reconstructions for the expected images",
    "perceiver_perceptual_loss": "no network's weights are downloaded: read perceiver_reconstruction_loss",
    "z_prior": "sample it: model.prior.sample(outputs['prior_params'])",
    "z_posterior": "read latents",
    "dynamics_loss": "read attention_dynamics_loss",
    "diversity_loss": "read attention_diversity_losses",
}
"""Documented keys without an entry, and what to read instead."""


def documented_views(parts: WorldModelParts, outputs: Outputs) -> dict[str, Callable[[], Any]]:
    """Entries under the documents' keys, for those whose sources the outputs have; made when asked for, like all."""
    views: dict[str, Callable[[], Any]] = {
        name: functools.partial(view, outputs)
        for name, (sources, view) in VIEWS.items()
        if all(source in outputs for source in sources)
    }
    if "token_ids" in outputs:
        views["perceiver_reconstructed_img"] = lambda: decoded_tokens(parts, outputs["token_ids"])
    return views


def frames(sequence: Tensor) -> list[Tensor]:
    """(B, T, ...) as T tensors (B, ...), without a copy."""
    return list(sequence.unbind(1))


def shares(maps: Tensor) -> Tensor:
    """(B, T, S, R, R) each slot's share of every position's density, sums to 1 over S."""
    return maps / maps.sum(2, keepdim=True)


def map_entropy(maps: Tensor) -> Tensor:
    """() mean entropy in nats of maps (B, T, R, R)."""
    entropy: Tensor = torch.special.entr(maps).sum((-1, -2))  # (B, T)
    return entropy.mean()


def slots_in_use(weights: Tensor) -> Tensor:
    """() exp of the entropy of the mean weights (B, T, S) of the slots, in slots."""
    return torch.exp(torch.special.entr(weights.mean((0, 1))).sum())


@torch.no_grad()
def decoded_tokens(parts: WorldModelParts, ids: Tensor) -> Tensor:
    """Images (B, T, C, H, W) in [-1, 1], up to the tokenizer's error, of token ids (B, T, Ht, Wt)."""
    tokenizer, (_, height, width) = parts.perceiver.tokenizer, parts.config.image_shape
    whitened: Tensor = tokenizer.decode(tokenizer.get_codes_from_indices(ids), height, width)  # (B, T, C, H, W)
    return whitened * (parts.pixels.spread / CONTRAST) + parts.pixels.mean
