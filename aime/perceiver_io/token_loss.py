"""Cross-entropy and accuracy of the next token frame."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from aime.nn import source_device
from aime.perceiver_io.predictor import TokenFrames
from aime.perceiver_io.protocol import TokenVideoModel


@dataclass(frozen=True)
class TokenScores:
    """How well next tokens are predicted, scalars.

    Attributes:
        cross_entropy: nats a token.
        accuracy: share of tokens predicted, constant.
        copied: share of tokens that stay as they are.
    """

    cross_entropy: Tensor
    accuracy: Tensor
    copied: Tensor

    @classmethod
    def none(cls, like: Tensor) -> TokenScores:
        """Those of a single token frame: zeros."""
        return cls(*(like.new_zeros(()) for _ in range(3)))


def score_next_tokens(
    perceiver: TokenVideoModel, frames: TokenFrames, actions: Tensor | None, generator: torch.Generator | None
) -> TokenScores:
    """Score the tokens of frames 2 .. T' (of all Q books) as predicted from the frames before each.

    In training the queries read latents and neighbourhood of every other frame alone, so that the context has to hold
    what the next tokens need; and of ``masked_share`` of the frames part of the next tokens is given, those that are
    not are scored.
    """
    model, now = perceiver.model, frames[slice(None, -1)]
    targets = frames.ids[:, 1:].flatten(2, 3).long()  # (B, T' - 1, P) or (B, T' - 1, P, Q)
    acted = None if actions is None else actions[:, :-1]
    sees = None
    if model.training and (model.reads_latents or model.neighbourhood_frames):
        sees = torch.arange(now.context.shape[1], device=now.context.device) % 2 == 1
    known = is_known = None
    if model.training and perceiver.masked_share > 0:
        batch, count, positions = targets.shape[:3]
        is_known = draw_known(batch, count, positions, perceiver.masked_share, generator).to(targets.device)
        known = model.embed(perceiver.tokenizer.get_codes_from_indices(frames.ids[:, 1:]))
    logits = model.predict(now, acted, sees_latents=sees, known=known, is_known=is_known)
    entropies = F.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), reduction="none")
    hits = (logits.detach().argmax(-1) == targets).float()
    if is_known is None:
        cross_entropy, accuracy = entropies.mean(), hits.mean()
    else:
        hidden = (~is_known).reshape(*is_known.shape, *[1] * (targets.dim() - 3)).expand_as(targets).float()
        cross_entropy = (entropies * hidden.flatten()).sum() / hidden.sum().clamp_min(1.0)
        accuracy = (hits * hidden).sum() / hidden.sum().clamp_min(1.0)
    copied = (frames.ids[:, :-1].flatten(2, 3) == targets).float().mean()
    return TokenScores(cross_entropy, accuracy, copied)


def draw_known(batch: int, frames: int, positions: int, share: float, generator: torch.Generator | None) -> Tensor:
    """(B, T, P) bool: which next tokens are given, none in 1 - share of the frames.

    In the others the share that is hidden is cos(pi u / 2), u uniform in [0, 1) (Chang et al. 2022, MaskGIT, cosine
    schedule), and at least one token is.
    """
    home = source_device(generator)
    chosen = torch.rand(batch, frames, 1, device=home, generator=generator) < share
    hidden = torch.cos(0.5 * math.pi * torch.rand(batch, frames, 1, device=home, generator=generator))
    count = (hidden * positions).ceil().clamp_min(1.0)
    rank = torch.rand(batch, frames, positions, device=home, generator=generator).argsort(-1).argsort(-1)
    return chosen & (rank >= count)
