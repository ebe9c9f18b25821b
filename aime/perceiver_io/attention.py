"""Attention layers of the Perceiver: cross-attention, self-attention, and sliding-window causal attention over time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class AttentionMemory:
    """Keys and values of the last W - 1 frames of one temporal layer.

    Attributes:
        keys: (B, L, heads, W - 1, Dh) for L parallel tracks (latents).
        values: like keys.
    """

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Multi-head attention of queries (N, Q, C) over a context (N, M, Ck), pre-norm, without residual."""

    def __init__(self, channels: int, context_channels: int | None = None, heads: int = 4) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"channels: expected a multiple of heads={heads}, found {channels}")
        self.heads = heads
        self.query_norm = nn.LayerNorm(channels)
        self.context_norm = nn.LayerNorm(context_channels) if context_channels is not None else None
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(context_channels or channels, 2 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """Attend from x (N, Q, C) to the context (N, M, Ck), or to itself; ``visible`` (N, M) bool hides the rest."""
        queries = self.query_norm(x)
        source = queries if context is None or self.context_norm is None else self.context_norm(context)
        q = rearrange(self.query(queries), "n q (h d) -> n h q d", h=self.heads)
        k, v = rearrange(self.key_value(source), "n m (two h d) -> two n h m d", two=2, h=self.heads)
        mask = None if visible is None else visible[:, None, None, :]  # (N, 1, 1, M)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out(rearrange(attended, "n h q d -> n q (h d)"))
        return out


class FeedForward(nn.Sequential):
    """Pre-norm perceptron with GELU, without residual."""

    def __init__(self, channels: int, widening: int = 2) -> None:
        super().__init__(
            nn.LayerNorm(channels),
            nn.Linear(channels, widening * channels),
            nn.GELU(),
            nn.Linear(widening * channels, channels),
        )


class TemporalAttention(nn.Module):
    """Causal self-attention over the last ``window`` frames with a learned bias for each distance.

    Distances, not absolute times, enter: a sequence may run on for ever and a frame is always treated alike.
    Frames can be given all at once or in pieces with the memory of the piece before; the result is the same.
    """

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"window: expected at least 1 frame, found {window}")
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(channels)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.distance_bias = nn.Parameter(torch.zeros(heads, window))

    def _bias(self, frames: int, remembered: int, valid: Tensor | None) -> Tensor:
        """Additive mask (heads, T, M + T), or (B, 1, heads, T, M + T) when the memory is only partly filled."""
        device = self.distance_bias.device
        distance = (
            torch.arange(frames, device=device)[:, None] + remembered - torch.arange(remembered + frames, device=device)
        )
        visible = (distance >= 0) & (distance < self.window)
        bias = self.distance_bias[:, distance.clamp(0, self.window - 1)]
        bias = bias.masked_fill(~visible, float("-inf"))
        if valid is None:
            return bias
        present = F.pad(valid, (0, frames), value=True)  # (B, M + T)
        return bias.masked_fill(~present[:, None, None, None, :], float("-inf"))

    def forward(
        self, x: Tensor, memory: AttentionMemory | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, AttentionMemory]:
        """Attend over time.

        Args:
            x: (B, T, L, C), L tracks attended apart.
            memory: keys and values of the W - 1 frames before.
            valid: (B, W - 1) bool, which of them exist; required with ``memory``.

        Returns:
            (B, T, L, C), and the memory to continue with.
        """
        frames = x.shape[1]
        q, k, v = rearrange(
            self.query_key_value(self.norm(x)), "b t l (three h d) -> three b l h t d", three=3, h=self.heads
        )
        if memory is not None:
            k, v = torch.cat([memory.keys, k], 3), torch.cat([memory.values, v], 3)
        bias = self._bias(frames, k.shape[3] - frames, valid).to(q.dtype)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        kept = self.window - 1
        short = max(kept - k.shape[3], 0)
        k, v = (F.pad(part, (0, 0, short, 0))[..., -kept:, :] if kept else part[..., :0, :] for part in (k, v))
        return self.out(rearrange(attended, "b l h t d -> b t l (h d)")), AttentionMemory(k, v)
