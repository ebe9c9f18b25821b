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
class TokenFrames:
    """Token frames as the readout of the next ones sees them.

    Attributes:
        context: (B, T, Cc).
        latents: (B, T, N_l, C).
        embedded: (B, T, Ht * Wt, 2 C) embedded tokens, and what their neighbourhood shows; (B, T, Ht * Wt, C) embedded
            tokens alone of a predictor without one.
        ids: (B, T, Ht, Wt), or (B, T, Ht, Wt, Q) with several codebooks.
    """

    context: Tensor
    latents: Tensor
    embedded: Tensor
    ids: Tensor

    def __getitem__(self, time: slice) -> TokenFrames:
        """Some of the frames."""
        return TokenFrames(self.context[:, time], self.latents[:, time], self.embedded[:, time], self.ids[:, time])


@dataclass(frozen=True)
class PredictorMemory:
    """What the predictor keeps of earlier frames: per-layer keys and values, and which of them exist.

    Attributes:
        layers: one memory a temporal layer.
        valid: (B, W - 1) bool.
        codes: (B, n - 1, Ht, Wt, D) of the last frames, for the neighbourhood of n frames.
    """

    layers: tuple[AttentionMemory, ...]
    valid: Tensor
    codes: Tensor


@accepts_documented_names()
class PerceiverTokenPredictor(nn.Module):
    """Token frames to latents, a context vector and logits of the next token frame: Perceiver IO, causal in time.

    Each frame's Ht x Wt codes are read by N_l learned latents (cross-attention, Jaegle et al. 2021, Perceiver IO).
    Latents of a frame then exchange information with each other and, causally, with the same latents of the last
    ``window`` frames. Everything at frame t depends on frames <= t alone. On the output side one query a position,
    made of the token that is there now, of the 3 x 3 tokens around it in the last frames and of the action, attends to
    the latents, the context and the action: what is near comes straight, what is far through the latents.

    Args:
        code_dim: D, size of a code.
        num_codes: V, size of the token vocabulary.
        grid: token rows and columns.
        context_dim: Cc, size of the context vector.
        num_latents: N_l.
        num_latent_channels: C, channels of a latent.
        num_self_attention_layers: layers of (temporal attention, latent attention, perceptron).
        num_heads: attention heads.
        window: frames seen by each temporal layer, the present one included.
        num_context_queries: learned queries that read the context from the latents.
        num_codebooks: Q, ids a position; their distributions are independent given the query (factorised).
        action_dim: A, actions that the next frame may depend on; 0 for none.
        reads_latents: let the queries attend to the latents, too.
        neighbourhood_frames: n, frames whose 3 x 3 tokens around a position its query is made of; 0 for a query of the
            present token alone, into which not even the action enters.
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
        num_codebooks: int = 1,
        action_dim: int = 0,
        reads_latents: bool = True,
        neighbourhood_frames: int = 3,
    ) -> None:
        super().__init__()
        channels, positions = num_latent_channels, grid[0] * grid[1]
        self.window, self.positions, self.reads_latents = window, positions, reads_latents
        self.num_codes, self.num_codebooks = num_codes, num_codebooks
        self.latents = nn.Parameter(0.02 * torch.randn(num_latents, channels))
        self.position_embedding = nn.Parameter(0.02 * torch.randn(positions, channels))
        self.code_embedding = nn.Linear(code_dim, channels)
        self.grid, self.neighbourhood_frames = grid, neighbourhood_frames
        self.neighbourhood: nn.Conv2d | None = None
        self.action_query: nn.Linear | None = None
        if neighbourhood_frames:
            self.neighbourhood = nn.Conv2d(neighbourhood_frames * code_dim, channels, 3, padding=1)
            self.action_query = nn.Linear(action_dim, channels, bias=False) if action_dim else None
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
        self.action_embedding = nn.Linear(action_dim, channels) if action_dim else None
        self.write = Attention(channels, channels, num_heads)
        self.write_feed_forward = FeedForward(channels)
        self.logits = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, num_codebooks * num_codes))
        self.stay = nn.Linear(channels, num_codebooks)
        nn.init.zeros_(self.stay.weight)
        nn.init.constant_(self.stay.bias, INITIAL_STAY_LOGIT)

    def embed(self, codes: Tensor) -> Tensor:
        """Embedded tokens (B, T, Ht * Wt, C) of codes (B, T, Ht, Wt, D)."""
        embedded: Tensor = self.code_embedding(codes.flatten(2, 3)) + self.position_embedding
        return embedded

    def forward(self, codes: Tensor, memory: PredictorMemory | None = None) -> tuple[Tensor, Tensor, PredictorMemory]:
        """Read token frames.

        Args:
            codes: (B, T, Ht, Wt, D) code vectors.
            memory: of the frames before, as returned by the call before.

        Returns:
            latents (B, T, N_l, C), embedded tokens with their neighbourhood (B, T, Ht * Wt, 2 C), see
            :class:`TokenFrames`, and the memory to continue with.
        """
        batch, frames = codes.shape[:2]
        tokens = self.embed(codes)  # (B, T, Ht*Wt, C)
        around, last = self._look_around(codes, None if memory is None else memory.codes)
        queries = self.latents.expand(batch * frames, -1, -1)
        seen = tokens if around is None else tokens + around  # (B, T, Ht*Wt, C)
        latents = (queries + self.read(queries, seen.flatten(0, 1))).unflatten(0, (batch, frames))
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
        embedded = tokens if around is None else torch.cat([tokens, around], -1)  # (B, T, Ht*Wt, 2 C)
        return latents, embedded, PredictorMemory(tuple(kept), valid, last)

    def _look_around(self, codes: Tensor, before: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """What the 3 x 3 codes around a position show in the last n frames, (B, T, Ht * Wt, C), and the codes to keep.

        Frames before the first are zeros, and so is what lies outside the grid, which tells border from middle.
        """
        batch, frames = codes.shape[:2]
        count = max(self.neighbourhood_frames - 1, 0)
        if before is None:
            before = codes.new_zeros(batch, count, *codes.shape[2:])
        padded = torch.cat([before.to(codes.dtype), codes], 1)  # (B, n - 1 + T, Ht, Wt, D)
        kept = padded[:, frames:]
        if self.neighbourhood is None:
            return None, kept
        stacked = torch.cat([padded[:, k : k + frames] for k in range(count + 1)], -1)  # (B, T, Ht, Wt, n D)
        maps = self.neighbourhood(stacked.flatten(0, 1).permute(0, 3, 1, 2))  # (B T, C, Ht, Wt)
        around: Tensor = maps.flatten(2).transpose(1, 2).unflatten(0, (batch, frames))
        return around, kept

    def empty_memory(self, batch: int) -> PredictorMemory:
        """Memory of B videos of which nothing was seen yet."""
        latents, channels = self.latents.shape
        kept, layers = self.window - 1, []
        for layer in self.temporal:
            assert isinstance(layer, TemporalAttention)
            empty = self.latents.new_zeros(batch, latents, layer.heads, kept, channels // layer.heads)
            layers.append(AttentionMemory(empty, empty))
        valid = torch.zeros(batch, kept, dtype=torch.bool, device=self.latents.device)
        before = max(self.neighbourhood_frames - 1, 0)
        codes = self.latents.new_zeros(batch, before, *self.grid, self.code_embedding.in_features)
        return PredictorMemory(tuple(layers), valid, codes)

    def context(self, latents: Tensor) -> Tensor:
        """Context vectors (B, T, Cc) from latents (B, T, N_l, C)."""
        batch, frames = latents.shape[:2]
        queries = self.context_queries.expand(batch * frames, -1, -1)
        read = queries + self.read_context(queries, latents.flatten(0, 1))
        context: Tensor = self.context_out(read.flatten(1))
        context = context.unflatten(0, (batch, frames))
        return context

    def predict(
        self,
        now: TokenFrames,
        actions: Tensor | None = None,
        *,
        sees_latents: Tensor | None = None,
        known: Tensor | None = None,
        is_known: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, Ht * Wt, V), or (B, T, Ht * Wt, Q, V), of the token frame AFTER each frame.

        The token now at a position is the best guess of the next one, so it is the query, and an amount that is read
        from the query is added to its own logit: what does not move is predicted from the start, and all capacity goes
        to what does.

        Args:
            now: the frames.
            actions: (B, T, A) taken after each of them; none are as if they were 0.
            sees_latents: (T,) bool, the frames at which latents and neighbourhood may be read; all when absent.
                Elsewhere all that is known of the rest of the video passes through the context: were the latents always
                read, nothing would ask it to hold anything, and it went constant within 400 steps.
            known: (B, T, Ht * Wt, C) embedded tokens of the next frame, read where ``is_known``.
            is_known: (B, T, Ht * Wt) bool, required with ``known``.
        """
        batch, frames = now.context.shape[:2]
        sources, seen = self._sources(now, actions, sees_latents)
        if known is not None and is_known is not None:
            sources.append(known)
            seen.append(is_known)
        keys = torch.cat(sources, 2).flatten(0, 1)  # (B T, M, C)
        visible = torch.cat(seen, 2).flatten(0, 1) if known is not None or sees_latents is not None else None
        queries = self._queries(now, actions, sees_latents).flatten(0, 1)  # (B T, Ht Wt, C)
        queries = queries + self.write(queries, keys, visible)
        queries = queries + self.write_feed_forward(queries)
        logits: Tensor = self.logits(queries).unflatten(-1, (self.num_codebooks, -1))  # (B T, Ht Wt, Q, V)
        present = now.ids.reshape(batch * frames, self.positions, self.num_codebooks, 1).long()
        logits = logits.scatter_add(-1, present, self.stay(queries).unsqueeze(-1).to(logits.dtype))
        logits = logits.unflatten(0, (batch, frames))
        return logits if self.num_codebooks > 1 else logits.squeeze(-2)

    def _queries(self, now: TokenFrames, actions: Tensor | None, sees_latents: Tensor | None) -> Tensor:
        """One query a position, (B, T, Ht * Wt, C)."""
        if self.neighbourhood is None:
            return now.embedded
        own, around = now.embedded.chunk(2, -1)  # (B, T, Ht * Wt, C) each
        queries = own + (around if sees_latents is None else around * sees_latents[:, None, None])
        if self.action_query is not None and actions is not None:
            queries = queries + self.action_query(actions.to(now.context.dtype)).unsqueeze(2)
        return queries

    def _sources(
        self, now: TokenFrames, actions: Tensor | None, sees_latents: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the queries attend to, (B, T, m, C) each, and which of it they see, (B, T, m)."""
        spread = self.spread_context(now.context).unflatten(-1, (len(self.context_queries), -1))  # (B, T, n, C)
        sources = [spread]
        if self.action_embedding is not None:
            given = now.context.new_zeros(self.action_embedding.in_features) if actions is None else actions
            embedded = self.action_embedding(given.to(now.context.dtype))
            sources.append(embedded.expand(*now.context.shape[:2], -1).unsqueeze(2))  # (B, T, 1, C)
        seen = [source.new_ones(source.shape[:3], dtype=torch.bool) for source in sources]
        if self.reads_latents:
            sources.append(now.latents)  # (B, T, N_l, C)
            shown = now.latents.new_ones(now.latents.shape[:3], dtype=torch.bool)
            seen.append(shown if sees_latents is None else shown & sees_latents[:, None])
        return sources, seen
