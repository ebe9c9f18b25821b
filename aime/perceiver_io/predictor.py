"""Perceiver IO over video tokens, causal in time: context vectors and next-frame token prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime.documented_tables import accepts_documented_names
from aime.perceiver_io.attention import Attention, AttentionMemory, FeedForward, TemporalAttention

INITIAL_STAY_LOGIT = 4.0
"""Added to the logit of the token that is there now: at 256 codes it starts with a probability of .18."""


@dataclass(frozen=True)
class PredictorMemory:
    """What the predictor keeps of earlier frames: per-layer keys and values, and which of them exist.

    Attributes:
        layers: one memory a temporal layer.
        valid: (B, W - 1) bool.
    """

    layers: tuple[AttentionMemory, ...]
    valid: Tensor


@accepts_documented_names()
class PerceiverTokenPredictor(nn.Module):
    """Token frames to latents, a context vector and logits of the next token frame.

    Each frame's Ht x Wt codes are read by N_l learned latents (cross-attention, Jaegle et al. 2021, Perceiver IO).
    Latents of a frame then exchange information with each other and, causally, with the same latents of the last
    ``window`` frames. Everything at frame t depends on frames <= t alone.

    Args:
        code_dim: D, size of a code.
        num_codes: V, size of the token vocabulary.
        grid: token rows and columns.
        context_dim: Cc, size of the context vector.
        num_latents: N_l.
        num_latent_channels: channels of a latent.
        num_self_attention_layers: layers of (temporal attention, latent attention, perceptron).
        num_heads: attention heads.
        window: frames seen by each temporal layer, the present one included.
        num_context_queries: learned queries that read the context from the latents.
    """

    def __init__(
        self,
        *,
        code_dim: int,
        num_codes: int,
        grid: tuple[int, int],
        context_dim: int,
        num_latents: int = 128,
        num_latent_channels: int = 128,
        num_self_attention_layers: int = 4,
        num_heads: int = 4,
        window: int = 10,
        num_context_queries: int = 4,
    ) -> None:
        super().__init__()
        channels, positions = num_latent_channels, grid[0] * grid[1]
        self.window, self.positions = window, positions
        self.latents = nn.Parameter(0.02 * torch.randn(num_latents, channels))
        self.position_embedding = nn.Parameter(0.02 * torch.randn(positions, channels))
        self.code_embedding = nn.Linear(code_dim, channels)
        self.read = Attention(channels, channels, num_heads)
        self.temporal = nn.ModuleList(
            TemporalAttention(channels, num_heads, window) for _ in range(num_self_attention_layers)
        )
        self.spatial = nn.ModuleList(Attention(channels, None, num_heads) for _ in range(num_self_attention_layers))
        self.feed_forward = nn.ModuleList(FeedForward(channels) for _ in range(num_self_attention_layers))
        self.context_queries = nn.Parameter(0.02 * torch.randn(num_context_queries, channels))
        self.read_context = Attention(channels, channels, num_heads)
        self.context_out = nn.Sequential(
            nn.Linear(num_context_queries * channels, context_dim), nn.LayerNorm(context_dim)
        )
        self.spread_context = nn.Linear(context_dim, num_context_queries * channels)
        self.write = Attention(channels, channels, num_heads)
        self.write_feed_forward = FeedForward(channels)
        self.logits = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, num_codes))
        self.stay = nn.Parameter(torch.tensor(INITIAL_STAY_LOGIT))

    def forward(self, codes: Tensor, memory: PredictorMemory | None = None) -> tuple[Tensor, Tensor, PredictorMemory]:
        """Read token frames.

        Args:
            codes: (B, T, Ht, Wt, D) code vectors.
            memory: of the frames before, as returned by the call before.

        Returns:
            latents (B, T, N_l, C), embedded tokens (B, T, Ht * Wt, C), and the memory to continue with.
        """
        batch, frames = codes.shape[:2]
        tokens = self.code_embedding(codes.flatten(2, 3)) + self.position_embedding  # (B, T, Ht*Wt, C)
        queries = self.latents.expand(batch * frames, -1, -1)
        latents = (queries + self.read(queries, tokens.flatten(0, 1))).unflatten(0, (batch, frames))
        kept: list[AttentionMemory] = []
        for i, (temporal, spatial, feed_forward) in enumerate(
            zip(self.temporal, self.spatial, self.feed_forward, strict=True)
        ):
            layer_memory = None if memory is None else memory.layers[i]
            attended, layer_memory = temporal(latents, layer_memory, None if memory is None else memory.valid)
            kept.append(layer_memory)
            latents = latents + attended
            latents = latents + spatial(latents.flatten(0, 1)).unflatten(0, (batch, frames))
            latents = latents + feed_forward(latents)
        before = codes.new_zeros(batch, self.window - 1, dtype=torch.bool) if memory is None else memory.valid
        valid = F.pad(before, (0, frames), value=True)[:, frames:]
        return latents, tokens, PredictorMemory(tuple(kept), valid)

    def empty_memory(self, batch: int) -> PredictorMemory:
        """Memory of B videos of which nothing was seen yet."""
        latents, channels = self.latents.shape
        kept, layers = self.window - 1, []
        for layer in self.temporal:
            assert isinstance(layer, TemporalAttention)
            empty = self.latents.new_zeros(batch, latents, layer.heads, kept, channels // layer.heads)
            layers.append(AttentionMemory(empty, empty))
        return PredictorMemory(tuple(layers), torch.zeros(batch, kept, dtype=torch.bool, device=self.latents.device))

    def context(self, latents: Tensor) -> Tensor:
        """Context vectors (B, T, Cc) from latents (B, T, N_l, C)."""
        batch, frames = latents.shape[:2]
        queries = self.context_queries.expand(batch * frames, -1, -1)
        read = queries + self.read_context(queries, latents.flatten(0, 1))
        context: Tensor = self.context_out(read.flatten(1))
        context = context.unflatten(0, (batch, frames))
        return context

    def predict(self, context: Tensor, tokens: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, T, Ht * Wt, V) of the token frame AFTER each frame.

        The token now at a position is the best guess of the next one, so it is the query, and a learned amount is added
        to its own logit: what does not move is predicted from the start, and all capacity goes to what does. All else
        that is known of the rest of the video passes through the context vector: were the latents read here, nothing
        would ask the context to hold anything, and it went constant within 400 steps.

        Args:
            context: (B, T, Cc), of each frame.
            tokens: (B, T, Ht * Wt, C), embedded tokens of each frame.
            ids: (B, T, Ht, Wt) or (B, T, Ht * Wt), ids of the same tokens.
        """
        batch, frames = context.shape[:2]
        queries = tokens.flatten(0, 1)  # (B T, Ht Wt, C)
        spread = self.spread_context(context.flatten(0, 1)).unflatten(1, (len(self.context_queries), -1))
        queries = queries + self.write(queries, spread)
        queries = queries + self.write_feed_forward(queries)
        logits: Tensor = self.logits(queries)  # (B T, Ht Wt, V)
        present = ids.reshape(batch * frames, -1, 1).long()
        logits = logits.scatter_add(-1, present, self.stay.to(logits.dtype).expand(present.shape))
        logits = logits.unflatten(0, (batch, frames))
        return logits
