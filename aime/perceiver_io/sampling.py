"""Drawing tokens from logits: temperature, top-k, nucleus."""

from __future__ import annotations

import torch
from torch import Tensor


def filter_logits(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Logits (..., V) with all but the k most probable, and all outside the nucleus of mass p, at minus infinity.

    Both may be given: the nucleus is taken of what top-k leaves. The first token whose cumulative mass passes p stays
    (Holtzman et al. 2020, The curious case of neural text degeneration), so that one is always left.

    Raises:
        ValueError: k < 1, or p outside (0, 1].
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected at least 1 token, found {top_k}")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p: expected a mass in (0, 1], found {top_p}")
    if top_k is not None and top_k < logits.shape[-1]:
        kept = logits.topk(top_k, -1)  # exactly k, also among equals
        logits = torch.full_like(logits, float("-inf")).scatter(-1, kept.indices, kept.values)
    if top_p is not None and top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        shares = ordered.softmax(-1)
        outside = shares.cumsum(-1) - shares >= top_p  # the mass before a token has passed p
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))
    return logits


def sample_tokens(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw ids (...) int64 from logits (..., V); temperature 0 takes the most probable.

    Raises:
        ValueError: a negative temperature, k < 1, or p outside (0, 1].
    """
    if temperature < 0:
        raise ValueError(f"temperature: expected at least 0, found {temperature}")
    filtered = filter_logits(logits.float() if temperature == 0 else logits.float() / temperature, top_k, top_p)
    if temperature == 0:
        return filtered.argmax(-1)
    shares = filtered.softmax(-1).flatten(0, -2)  # (N, V)
    return torch.multinomial(shares, 1, generator=generator).reshape(logits.shape[:-1])
