"""Figures of the video tokens: how the codebook is used, and how well the next tokens are predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from aime.evaluation.metrics import (
    Estimate,
    average_per_episode,
    jackknife,
    mean_over_episodes,
)
from aime.evaluation.protocol import Clips, EvaluationConfig
from aime.perceiver_io import TokenFrames

TOKEN_HORIZONS = (1, 5)


def token_counts(ids: Tensor, num_codes: int) -> np.ndarray:
    """How often each code occurs in ids (N, L, tokens, Q): (N, Q, V)."""
    clips, _, _, books = ids.shape
    offset = (torch.arange(clips)[:, None] * books + torch.arange(books)) * num_codes  # (N, Q)
    flat = (ids.permute(0, 3, 1, 2).flatten(2) + offset[..., None]).flatten()
    return torch.bincount(flat, minlength=clips * books * num_codes).reshape(clips, books, num_codes).numpy()


def codebook_figures(counts: np.ndarray, episodes: np.ndarray) -> dict[str, Estimate]:
    """Perplexity exp(entropy of code use) and share of codes used at all, on held-out frames.

    Pooled over episodes (both depend on how much was looked at), means over the Q codebooks, jackknife standard errors.

    Args:
        counts: (N, Q, V) per clip.
        episodes: (N,) the episode of each clip.
    """

    def perplexity(chosen: np.ndarray) -> float:
        share = counts[chosen].sum(0) / counts[chosen].sum((0, 2))[:, None]
        entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(1)
        return float(np.exp(entropy).mean())

    def usage(chosen: np.ndarray) -> float:
        return float((counts[chosen].sum(0) > 0).mean())

    return {"perplexity": jackknife(perplexity, episodes), "usage": jackknife(usage, episodes)}


@torch.no_grad()
def token_accuracy(
    model: Any, clips: Clips, config: EvaluationConfig, device: torch.device | str = "cpu"
) -> tuple[dict[int, Estimate], dict[int, Estimate]] | None:
    """Greedy autoregressive next-token accuracy after the context, at ``TOKEN_HORIZONS``.

    The token model reads the context's tokens and every action, then its own predictions; horizon 1 is thus the
    teacher-forced figure.
    Most tokens of a still camera never change, so the second result, repeating the last context frame's tokens, is the
    figure to compare with.

    Returns:
        ``(predicted, copied)`` accuracies, or ``None`` when the model has no ``perceiver``.
    """
    perceiver = getattr(model, "perceiver", None)
    if perceiver is None or not hasattr(model, "perceive"):
        return None
    reach = clips.length - config.context
    horizons = [horizon for horizon in TOKEN_HORIZONS if horizon <= reach]
    length = config.context + max(horizons, default=0)
    hits: dict[int, list[Tensor]] = {horizon: [] for horizon in horizons}
    copies: dict[int, list[Tensor]] = {horizon: [] for horizon in horizons}
    for _, batch in clips.batches(config.clips_at_once):
        tokens = model.perceive(batch.observations[:, :length].to(device)).perceiver.tokens
        truth = tokens.ids  # (B, T, Ht, Wt), or (B, T, Ht, Wt, Q)
        actions = batch.actions[:, :length].to(device)
        codes, ids = tokens.quantized[:, : config.context], truth[:, config.context - 1 : config.context]
        memory = None
        for horizon in range(1, max(horizons, default=0) + 1):
            latents, embedded, memory = perceiver.model(codes, memory)
            context = perceiver.model.context(latents[:, -1:])
            now = TokenFrames(context, latents[:, -1:], embedded[:, -1:], ids)
            taken = config.context + horizon - 2  # the action after the frame that is read last
            logits = perceiver.model.predict(now, actions[:, taken : taken + 1])
            ids = logits.argmax(-1).reshape(truth[:, :1].shape)
            codes = perceiver.tokenizer.quantizer.lookup(ids)
            if horizon in hits:
                target = truth[:, config.context + horizon - 1]
                hits[horizon].append((ids[:, 0] == target).flatten(1).double().mean(1).cpu())
                last = truth[:, config.context - 1]
                copies[horizon].append((last == target).flatten(1).double().mean(1).cpu())
    return _by_episode(hits, clips), _by_episode(copies, clips)


def _by_episode(scores: dict[int, list[Tensor]], clips: Clips) -> dict[int, Estimate]:
    figures = {horizon: Estimate.missing() for horizon in TOKEN_HORIZONS}
    for horizon, parts in scores.items():
        figures[horizon] = mean_over_episodes(average_per_episode(torch.cat(parts), clips.episodes))
    return figures
