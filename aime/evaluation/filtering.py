"""One pass of the model over observed clips: reconstructions, states, prior, tokens and attention maps.

Everything that does not forecast is read from ``forward_sequence`` in evaluation mode. An output that the model does
not give leaves its figure uncomputed (null), it is never replaced by something else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from aime.evaluation.forecasters import to_frames
from aime.evaluation.metrics import squared_error_sums
from aime.evaluation.mixture import (
    GaussianMixture,
    crps,
    negative_log_likelihood,
    probability_integral_transform,
    responsibilities,
)
from aime.evaluation.protocol import Clips, EvaluationConfig
from aime.evaluation.slots import foreground_ari_of_clips

PIT_BINS = 20


@dataclass(frozen=True)
class ErrorSums:
    """Squared error sums and counts (N, L') over whole frames and, with masks, over bodies; see :mod:`.metrics`."""

    whole: tuple[Tensor, Tensor]
    body: tuple[Tensor, Tensor] | None


def error_sums(prediction: Tensor, target: Tensor, mask: Tensor | None) -> ErrorSums:
    """Errors of (N, L', C, H, W) frames on [0, 255]; ``mask`` (N, L', H, W)."""
    body = None if mask is None else squared_error_sums(prediction, target, mask)
    return ErrorSums(squared_error_sums(prediction, target), body)


def join_errors(parts: list[ErrorSums]) -> ErrorSums:
    """Concatenate along N."""
    bodies = [part.body for part in parts if part.body is not None]
    return ErrorSums(
        (torch.cat([part.whole[0] for part in parts]), torch.cat([part.whole[1] for part in parts])),
        (torch.cat([body[0] for body in bodies]), torch.cat([body[1] for body in bodies])) if bodies else None,
    )


@dataclass(frozen=True)
class Filtered:
    """What filtering N clips of L frames gave, from frame ``burn_in`` on where a figure is averaged."""

    features: np.ndarray
    """(N, L, Hd + D): [h_t, z_t]."""
    reconstruction: ErrorSums | None
    mean_image: ErrorSums
    """The mean image scored on the very same frames as the reconstruction."""
    mixture: Mapping[str, Tensor]
    """(N, L'): nll, crps; (N, L', K): responsibilities; (N, L', PIT_BINS): pit counts. Empty without a prior."""
    token_ids: Tensor | None
    """(N, L, tokens, Q) int64."""
    foreground_ari: Tensor | None
    """(N,) FG-ARI of the slots, where the data tells bodies apart; NaN for a clip without two bodies in a frame."""
    shown: Mapping[str, Tensor] = field(default_factory=dict)
    """For the clips of the report: reconstructions, attention_maps, slot_attention_maps, weights (first axis: clip)."""


def mixture_of(outputs: Mapping[str, Any]) -> GaussianMixture | None:
    """The prior of an output dictionary, if it has one with ``log_pi``, ``means`` and ``log_scales``."""
    prior = outputs.get("prior_params")
    if prior is None or not all(hasattr(prior, name) for name in ("log_pi", "means", "log_scales")):
        return None
    return GaussianMixture(prior.log_pi.float(), prior.means.float(), prior.log_scales.float())


def mixture_figures(mixture: GaussianMixture, z: Tensor) -> dict[str, Tensor]:
    """Calibration of the prior at posterior draws z (N, L', D)."""
    transform = probability_integral_transform(mixture, z)
    bins = (transform * PIT_BINS).long().clamp(0, PIT_BINS - 1)
    return {
        "nll": negative_log_likelihood(mixture, z),
        "crps": crps(mixture, z),
        "responsibilities": responsibilities(mixture, z),
        "pit": torch.nn.functional.one_hot(bins, PIT_BINS).sum(-2),
    }


@torch.no_grad()
def filter_clips(
    model: Any,
    clips: Clips,
    mean_image: Tensor,
    config: EvaluationConfig,
    shown: list[int],
    device: torch.device | str = "cpu",
) -> Filtered:
    """Run ``forward_sequence`` over every clip, ``clips_at_once`` at a time.

    Args:
        model: a world model in evaluation mode.
        clips: N clips.
        mean_image: (C, H, W) of the training split, [0, 255].
        config: burn-in and batch size.
        shown: clips whose frames and maps are kept for the report.
        device: where the model is.
    """
    features, reconstruction, baseline, tokens = [], [], [], []
    slots: list[Tensor] = []
    mixtures: list[dict[str, Tensor]] = []
    kept: dict[int, dict[str, Tensor]] = {}
    settled = slice(min(config.burn_in, clips.length - 1), None)
    generator = torch.Generator(device).manual_seed(config.seed)
    for index, batch in clips.batches(config.clips_at_once):
        outputs = model.forward_sequence(batch.observations.to(device), batch.actions.to(device), generator=generator)
        latents = outputs["latents"].float().cpu()
        features.append(torch.cat([outputs["hidden_states"].float().cpu(), latents], -1).numpy())
        target = batch.observations[:, settled]
        mask = None if batch.body_masks is None else batch.body_masks[:, settled]
        baseline.append(error_sums(mean_image.expand(target.shape), target, mask))
        display = {name: outputs[name] for name in ("attention_maps", "slot_attention_maps") if name in outputs}
        if outputs.get("reconstructions") is not None:
            frames = to_frames(outputs["reconstructions"]).cpu()
            reconstruction.append(error_sums(frames[:, settled], target, mask))
            display["reconstructions"] = frames
        mixture = mixture_of(outputs)
        if mixture is not None:
            on_cpu = GaussianMixture(mixture.log_pi.cpu(), mixture.means.cpu(), mixture.log_scales.cpu())
            settled_mixture = GaussianMixture(
                on_cpu.log_pi[:, settled], on_cpu.means[:, settled], on_cpu.log_scales[:, settled]
            )
            coarsest = latents[:, settled, : on_cpu.means.shape[-1]]  # of latent groups, the one under the mixture
            mixtures.append(mixture_figures(settled_mixture, coarsest))
            display["weights"] = on_cpu.log_pi.exp()
        if outputs.get("token_ids") is not None:
            tokens.append(_flat_tokens(outputs["token_ids"].cpu()))
        if outputs.get("slot_attention_maps") is not None and batch.body_ids is not None:
            maps = outputs["slot_attention_maps"][:, settled].cpu()
            slots.append(foreground_ari_of_clips(maps, batch.body_ids[:, settled]))
        for clip in shown:
            if index.start <= clip < index.stop:
                kept[clip] = {name: value[clip - index.start].float().cpu().clone() for name, value in display.items()}
    return Filtered(
        np.concatenate(features),
        join_errors(reconstruction) if reconstruction else None,
        join_errors(baseline),
        {name: torch.cat([part[name] for part in mixtures]) for name in mixtures[0]} if mixtures else {},
        torch.cat(tokens) if tokens else None,
        torch.cat(slots) if slots else None,
        {name: torch.stack([kept[clip][name] for clip in shown]) for name in (kept[shown[0]] if shown else {})},
    )


def _flat_tokens(ids: Tensor) -> Tensor:
    """(N, L, Ht, Wt) or (N, L, Ht, Wt, Q) -> (N, L, Ht * Wt, Q)."""
    if ids.dim() == 4:
        ids = ids[..., None]
    if ids.dim() != 5:
        raise ValueError(f"token_ids must be (B, T, Ht, Wt) or (B, T, Ht, Wt, Q), found {tuple(ids.shape)}")
    return rearrange(ids.long(), "n t h w q -> n t (h w) q")


@torch.no_grad()
def score_one_step(
    model: Any, clips: Clips, config: EvaluationConfig, device: torch.device | str = "cpu"
) -> tuple[ErrorSums, Tensor]:
    """One-step prior prediction: filter up to o_t, a_t and predict o_{t+1} from the prior, all along the clip.

    Made at every ``one_step_stride``-th frame after the burn-in, each the mean over ``samples`` prior draws (one
    posterior draw): what the open loop does at horizon 1, after every length of history instead of after the context.

    Returns:
        ``(errors, times)``: error sums (N, P) and the P target frames' indices.
    """
    times = torch.arange(min(config.burn_in, clips.length - 2), clips.length - 1, config.one_step_stride)
    parts = []
    generator = torch.Generator(device).manual_seed(config.seed)
    for _, batch in clips.batches(config.clips_at_once):
        actions = batch.actions.to(device)
        states = model.observe(batch.observations.to(device), actions, generator=generator)
        flat = states.flatten_time()
        # The action handed over is a_{t+1}: it is absorbed after o_{t+1} is predicted, so it cannot change the frame.
        following = torch.cat([actions[:, 1:], actions[:, -1:]], 1).flatten(0, 1)[:, None]
        rows = (torch.arange(len(batch))[:, None] * clips.length + times).flatten().to(device)
        start = select_states(flat, rows)
        total: Tensor | None = None
        for _ in range(config.samples):
            frames = model.imagine(start, following[rows], horizon=1, generator=generator)["observations"][:, 0]
            unit = to_frames(frames)
            total = unit if total is None else total + unit
        assert total is not None
        mean = rearrange((total / config.samples).cpu(), "(n p) c h w -> n p c h w", n=len(batch))
        mask = None if batch.body_masks is None else batch.body_masks[:, times + 1]
        parts.append(error_sums(mean, batch.observations[:, times + 1], mask))
    return join_errors(parts), times + 1


def select_states(states: Any, rows: Tensor) -> Any:
    """The rows of a state dataclass with tensors (N, ...)."""
    values = {item.name: getattr(states, item.name) for item in dataclasses.fields(states)}
    return dataclasses.replace(
        states, **{name: value[rows] for name, value in values.items() if isinstance(value, Tensor)}
    )
