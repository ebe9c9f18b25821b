"""A critic of videos: a convolutional trunk on each frame, a transformer over the frames."""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime.adversarial.trunk import ConvolutionalTrunk
from aime.documented_tables import accepts_documented_names
from aime.nn import expect_shape


class VideoScores(TypedDict):
    """Scores of videos; higher is more like the data.

    temporal_score (B, 1) of the frames in their order, spatial_score (B, 1) of the frames each by itself,
    per_frame_scores (B, T, 1) of each frame among the others, final_score (B, 1) the sum of the first two and of the
    mean of the third; features (B, T, d), what the transformer says of each frame.
    """

    temporal_score: Tensor
    spatial_score: Tensor
    per_frame_scores: Tensor
    final_score: Tensor
    features: Tensor


@accepts_documented_names()
class TemporalDiscriminator(nn.Module):
    """Wasserstein critic of videos (B, T, C, H, W), optionally given a latent of each frame.

    The latent scales and shifts what the transformer reads (FiLM, Perez et al. 2018). Whoever trains a generator hands
    it over detached: else its encoder learns to please the critic whatever the image is.

    Args:
        input_channels: C.
        image_size: H = W in pixels.
        hidden_dim: d, width of the transformer, a multiple of n_heads.
        n_layers: of the transformer.
        n_heads: of the transformer.
        z_dim: D, size of the latent of a frame; 0: none.
        film_scale: how far a latent may move the scale of a feature, in (0, 1].
        trunk_channels: of the trunk's first level; a quarter of hidden_dim by default.

    Example:
        >>> import torch
        >>> critic = TemporalDiscriminator(image_size=32, hidden_dim=16, n_layers=1, n_heads=2, z_dim=4)
        >>> critic(torch.zeros(2, 5, 3, 32, 32), torch.zeros(2, 5, 4))["final_score"].shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        input_channels: int = 3,
        image_size: int = 64,
        hidden_dim: int = 512,
        n_layers: int = 6,
        n_heads: int = 8,
        z_dim: int = 32,
        film_scale: float = 0.5,
        *,
        trunk_channels: int | None = None,
    ) -> None:
        super().__init__()
        if hidden_dim % n_heads or hidden_dim % 2:
            raise ValueError(f"hidden_dim: expected an even multiple of n_heads = {n_heads}, found {hidden_dim}")
        self.input_channels, self.image_size, self.z_dim, self.film_scale = (
            input_channels,
            image_size,
            z_dim,
            film_scale,
        )
        self.trunk = ConvolutionalTrunk(input_channels, image_size, trunk_channels or max(hidden_dim // 4, 1))
        self.to_token = nn.Linear(self.trunk.channels * self.trunk.side**2, hidden_dim)
        self.film = nn.Linear(z_dim, 2 * hidden_dim) if z_dim else None
        self.blocks = nn.ModuleList(TransformerBlock(hidden_dim, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(hidden_dim)
        self.spatial_head = nn.Linear(hidden_dim, 1)
        self.frame_head = nn.Linear(hidden_dim, 1)
        self.temporal_head = nn.Linear(hidden_dim, 1)

    def forward(self, x: Tensor, z: Tensor | None = None, sequence_lengths: Tensor | None = None) -> VideoScores:
        """Score videos.

        Args:
            x: (B, T, C, H, W), T >= 1, of any length.
            z: (B, T, D) or (B, D), required where ``z_dim`` is not 0.
            sequence_lengths: (B,) frames of each video that count, at least 1; all of them when absent.

        Raises:
            ValueError: a shape that does not fit, or a latent that is missing or not wanted.
        """
        size = self.image_size
        sizes = expect_shape(x, "B T C H W", "x", C=self.input_channels, H=size, W=size)
        batch, length = sizes["B"], sizes["T"]
        tokens = self.to_token(self.trunk(x.flatten(0, 1)).flatten(1))  # (B T, d)
        tokens = F.leaky_relu(tokens, 0.2).unflatten(0, (batch, length))  # (B, T, d)
        counts = self._counts(x, sequence_lengths)  # (B, T)
        spatial = _masked_mean(self.spatial_head(tokens), counts)  # (B, 1)
        hidden = tokens if self.film is None and z is None else self._film(tokens, z)  # (B, T, d)
        hidden = hidden + time_encoding(length, hidden.shape[-1], hidden)
        for block in self.blocks:
            hidden = block(hidden, counts)
        hidden = self.norm(hidden)
        frames = self.frame_head(hidden)  # (B, T, 1)
        temporal = self.temporal_head(_masked_mean(hidden, counts))  # (B, 1)
        final = temporal + spatial + _masked_mean(frames, counts)
        return VideoScores(
            temporal_score=temporal,
            spatial_score=spatial,
            per_frame_scores=frames,
            final_score=final,
            features=hidden,
        )

    def _film(self, tokens: Tensor, z: Tensor | None) -> Tensor:
        batch, length = tokens.shape[:2]
        if self.film is None or z is None:
            wanted = "no latent (z_dim 0)" if self.film is None else f"z (B, T, D={self.z_dim}) or (B, D={self.z_dim})"
            raise ValueError(f"z: expected {wanted}, found {'none' if z is None else tuple(z.shape)}")
        if z.dim() == 2:
            z = z[:, None].expand(-1, length, -1)
        expect_shape(z, "B T D", "z", B=batch, T=length, D=self.z_dim)
        gain, shift = self.film(z.to(tokens.dtype)).chunk(2, -1)  # (B, T, d) each
        moved: Tensor = tokens * (1.0 + self.film_scale * gain.tanh()) + shift
        return moved

    @staticmethod
    def _counts(x: Tensor, lengths: Tensor | None) -> Tensor:
        batch, length = x.shape[:2]
        if lengths is None:
            return x.new_ones(batch, length)
        expect_shape(lengths, "B", "sequence_lengths", B=batch)
        return (torch.arange(length, device=x.device) < lengths[:, None]).to(x.dtype)


class TransformerBlock(nn.Module):
    """Pre-norm attention and perceptron, each with a residual.

    Attention is written out: the gradient penalty differentiates it twice, which fused kernels do not offer.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """(B, T, d) to (B, T, d); frames whose entry of ``counts`` (B, T) is 0 are not attended to."""
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        logits = q @ k.mT / math.sqrt(q.shape[-1])  # (B, heads, T, T)
        logits = logits.masked_fill(counts[:, None, None] == 0, -math.inf)
        read = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)  # (B, T, d)
        x = x + self.out(read)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


def time_encoding(length: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines of the frame's number (T, d), d even: bounded for any length (Vaswani et al. 2017)."""
    times = torch.arange(length, device=like.device, dtype=like.dtype)[:, None]
    rates = torch.exp(torch.arange(0, width, 2, device=like.device, dtype=like.dtype) * (-math.log(1e4) / width))
    angles = times * rates  # (T, d / 2)
    return torch.cat([angles.sin(), angles.cos()], -1)


def _masked_mean(values: Tensor, counts: Tensor) -> Tensor:
    """(B, T, n) to (B, n) over the frames that count (B, T)."""
    return (values * counts[..., None]).sum(1) / counts.sum(1, keepdim=True)
