"""The documents' names for what a pass gives: a read-only mapping over `SequencePass`, entries made when asked for."""

from __future__ import annotations

import difflib
import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from aime.generative_prior.usage import usage_entropy
from aime.ranks import Ranks
from aime.world_model.documented_outputs import GONE, documented_views
from aime.world_model.parts import CONTRAST, WorldModelParts
from aime.world_model.sequence import SequencePass

Entry = Callable[[], Any]


class SequenceOutputs(Mapping[str, Any]):
    """Outputs of ``forward_sequence`` by the names of docs/tensor_shapes.md.

    observations (B,T,C,H,W) in [-1,1], reconstructions likewise (in training the frames decoded_times alone), latents,
    z_means, z_log_scales (B,T,D), hidden_states, previous_hidden_states (B,T,Hd), context_sequence,
    predicted_contexts (B,T,Cc), attention_maps (B,T,R,R), prior_attention_maps (B',T,R,R) and predicted_movements
    (B',T,2) in cells (B' = B but for ``attention_share`` in training), slot_attention_maps (B,T,S,R,R), slot_centers
    (B,T,S,2), slot_features (B,T,S,d), slot_fusion_weights (B,T,S), prior_params (leading axes B, T), token_ids
    (B,T,Ht,Wt), reward_predictions, continue_logits (B,T), K_eff (), kl_latent_groups (n_g,) nats, and the losses that
    :class:`~aime.multi_task_learning.LossAggregator` reads; those with an entry a frame are batch means.

    The keys of older documents are views of these, see :mod:`aime.world_model.documented_outputs`.

    Without context there are no tokens and no perceiver losses, without attention no maps and slots; ``absent_tasks``
    names the tasks that lose all their terms so.

    With latent groups, z_means and z_log_scales of the finer ones are corrections of what the coarser ones say, as in
    `aime.generative_prior.hierarchical_prior`; latents are what they say they are.

    An entry is computed when it is first asked for: a training step asks for the losses alone and pays for no other.
    """

    def __init__(self, parts: WorldModelParts, result: SequencePass, ranks: Ranks | None = None) -> None:
        self.result = result
        self._made: dict[str, Any] = {}
        self._entries = _entries(parts, result, ranks)
        # Views that held this would make a circle, which keeps all activations of a pass until Python next looks for
        # circles: steps of tier 1 grew by .7 GB each, past 16 GB.
        self._entries |= documented_views(parts, weakref.proxy(self))

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            if name in GONE and name not in self._entries:
                raise KeyError(f"outputs of forward_sequence: {name!r} is gone: {GONE[name]}")
            if name not in self._entries:
                near = difflib.get_close_matches(name, self._entries, n=3)
                raise KeyError(
                    f"outputs of forward_sequence: expected one of their names, found {name!r}"
                    + (f"; did you mean {' or '.join(near)}?" if near else "")
                )
            self._made[name] = self._entries[name]()
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _entries(parts: WorldModelParts, result: SequencePass, ranks: Ranks | None) -> dict[str, Entry]:
    return (
        _states(result)
        | _images(parts, result)
        | _tokens(result)
        | _attention(result)
        | _losses(parts, result, ranks)
        | {f"perceiver_{name}": (lambda value=value: value) for name, value in result.perceiver_losses.items()}
    )


def _states(result: SequencePass) -> dict[str, Entry]:
    seen, inferred, foreseen, heads = result.perceived, result.inferred, result.foreseen, result.heads
    return {
        "device": lambda: seen.context.device,
        "latents": lambda: inferred.latent,
        "z_means": lambda: seen.posterior.mean,
        "z_log_scales": lambda: seen.posterior.log_scale,
        "hidden_states": lambda: inferred.hidden,
        "previous_hidden_states": lambda: inferred.previous_hidden,
        "context_sequence": lambda: seen.context,
        "predicted_contexts": lambda: foreseen.context,
        "prior_params": lambda: foreseen.prior,
        "reward_predictions": lambda: heads.rewards,
        "continue_logits": lambda: heads.continue_logits,
    }


def _images(parts: WorldModelParts, result: SequencePass) -> dict[str, Entry]:
    seen, decoded = result.perceived, result.decoded
    pixels = parts.pixels

    def reconstructions() -> Tensor:
        mean: Tensor = parts.likelihood.mean(decoded.parameters, pixels)
        return mean.unflatten(0, (-1, len(decoded.times)))  # type: ignore[no-any-return]

    return {
        "observations": lambda: seen.frames * (pixels.spread / CONTRAST) + pixels.mean,
        "reconstructions": reconstructions,
        "decoded_times": lambda: decoded.times,
    }


def _tokens(result: SequencePass) -> dict[str, Entry]:
    read, watched = result.perceived.perceiver, result.watched
    gone = {"perceiver": read is None, "predictive": read is None and watched is None}
    absent: dict[str, Entry] = {"absent_tasks": lambda: tuple(name for name, missing in gone.items() if missing)}
    if read is None:
        return absent
    return absent | {"tokens": lambda: read.tokens, "token_ids": lambda: read.tokens.ids}


def _attention(result: SequencePass) -> dict[str, Entry]:
    seen, watched, slots = result.perceived, result.watched, result.perceived.attention
    if watched is None or slots is None:
        return {}
    shape = seen.context.shape[:2]
    kl = watched.kl
    return {
        # The first frame has no map before it to be predicted from.
        "attention_losses": lambda: kl[:, 1:].mean(0),
        "attention_dynamics_loss": lambda: (
            watched.dynamics_loss[:, 1:].mean() if shape[1] > 1 else torch.zeros_like(kl[0, 0])
        ),
        "attention_diversity_losses": lambda: slots.diversity_loss,
        "attention_maps": lambda: seen.maps,
        "prior_attention_maps": lambda: watched.prior.maps,
        "predicted_movements": lambda: watched.prior.movement,
        "slot_attention_maps": lambda: slots.slot_maps.unflatten(0, shape),
        "slot_features": lambda: slots.slots.unflatten(0, shape),
        "slot_centers": lambda: slots.slot_centers.unflatten(0, shape),
        "slot_fusion_weights": lambda: slots.fusion_weights.unflatten(0, shape),
    }


def _losses(parts: WorldModelParts, result: SequencePass, ranks: Ranks | None) -> dict[str, Entry]:
    foreseen, heads = result.foreseen, result.heads
    entries: dict[str, Entry] = {
        "reconstruction_losses": lambda: result.decoded.nll.mean(0),
        "kl_latents": lambda: foreseen.kl.mean(0),
        "kl_latent_groups": lambda: foreseen.group_kl.mean((0, 1)),
        "kumaraswamy_kl_losses": lambda: result.stick_kl.mean(0),
        "cluster_entropies": lambda: usage_entropy(
            parts.prior.log_responsibilities(result.inferred.latent.detach(), foreseen.prior), ranks
        ),
        "gram_enc": lambda: result.gram_loss,
        "context_prediction_loss": lambda: result.context_loss,
        "K_eff": lambda: parts.prior.effective_components(foreseen.prior.log_pi).mean(),
    }
    if parts.critics is not None and result.contest is not None:
        told = functools.cache(functools.partial(parts.critics.generator_losses, result.contest))
        entries["img_adv_loss"] = lambda: told().image
        entries["temporal_adv_loss"] = lambda: told().temporal
        entries["feat_match_loss"] = lambda: told().features
    for name, loss in (("reward_loss", heads.reward_loss), ("continue_loss", heads.continue_loss)):
        if loss is not None:
            entries[name] = lambda loss=loss: loss  # type: ignore[misc]
    return entries
