"""Causal VQ video tokenizer: a grid of discrete tokens a frame, no path around the bottleneck."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime.documented_tables import accepts_documented_names
from aime.nn import PatchesToImage, ResidualCell, expect_shape, normalisation, pad_to_multiple
from aime.perceiver_io.quantizer import Gradient, VectorQuantizer
from aime.perceiver_io.temporal_convolution import (
    CausalTemporalCell,
    count_groups,
    group_frames,
    stack_frames,
    ungroup_frames,
)


@dataclass(frozen=True)
class Tokens:
    """Tokens of a video.

    Attributes:
        ids: (B, T', Ht, Wt) int32; (B, T', Ht, Wt, Q) with several codebooks. T' = T without temporal down-sampling.
        quantized: (B, T', Ht, Wt, D) codes, differentiable towards the encoder.
        encodings: (B, T', Ht, Wt, D) vectors before quantisation.
        commitment: () commitment loss.
    """

    ids: Tensor
    quantized: Tensor
    encodings: Tensor
    commitment: Tensor

    def first(self, count: int) -> Tokens:
        """Those of the first videos; the commitment loss is theirs alone."""
        encodings, quantized = self.encodings[:count], self.quantized[:count]
        commitment = (encodings - quantized.detach()).float().square().mean()
        return Tokens(self.ids[:count], quantized, encodings, commitment)


@accepts_documented_names()
class VQPTTokenizer(nn.Module):
    """Video to tokens and back.

    Every frame becomes a grid of ceil(H / downsample) x ceil(W / downsample) tokens, for any number of frames
    T >= 1 and any H, W. With ``use_3d_conv=True`` each scale of encoder and decoder sees time by a causal convolution:
    a frame together with ``temporal_kernel - 1`` frames before it and with none after it; otherwise every frame stands
    alone. With ``temporal_downsample`` s > 1 there are T' = 1 + ceil((T - 1) / s) token frames: the first is that of
    the first frame alone, the j-th ends at frame s j, and decoding gives T frames back.

    Args:
        in_channels: image channels.
        code_dim: D, size of an encoding.
        num_codes: V, codes in a book.
        downsample: pixels to tokens along each side; a power of two >= 2.
        base_channels: channels of the first stage; doubled at each halving of the resolution.
        use_3d_conv: let tokens depend on earlier frames.
        patch_size: largest side of the patches of the first convolution, in pixels; what is left of ``downsample`` is
            done by halvings.
        temporal_kernel: frames that a convolution over time sees, the present one included.
        decay: of the codebook's moving averages.
        feature_channels: F, channels of the feature maps that are given in place of videos, (B, T, F, Ht, Wt) with
            Ht = H / downsample, by a trunk that others use too; None for an encoder of its own. Time is then seen by
            one convolution over the maps, and frames are decoded one by one.
        temporal_downsample: s, frames to a token frame; 1 or False for none, True for 2.
        num_quantizers: Q, codebooks, each for D / Q of the encoding: Q ids a position.
        gradient: how it passes the quantizer, see :class:`VectorQuantizer`.

    Raises:
        ValueError: ``downsample`` is not a power of two >= 2; a temporal down-sampling below 1, or of a trunk's maps.
    """

    def __init__(
        self,
        in_channels: int = 3,
        code_dim: int = 256,
        num_codes: int = 1024,
        downsample: int = 4,
        base_channels: int = 64,
        *,
        use_3d_conv: bool = True,
        patch_size: int = 4,
        temporal_kernel: int = 2,
        decay: float = 0.99,
        feature_channels: int | None = None,
        temporal_downsample: int = 1,
        num_quantizers: int = 1,
        gradient: Gradient = "straight_through",
    ) -> None:
        super().__init__()
        if downsample < 2 or downsample & (downsample - 1):
            raise ValueError(f"downsample: expected a power of two >= 2, found {downsample}")
        if isinstance(temporal_downsample, bool):
            temporal_downsample = 1 + temporal_downsample
        if temporal_downsample < 1 or (temporal_downsample > 1 and feature_channels is not None):
            allowed = "at least 1" if feature_channels is None else "1 for maps of a trunk"
            raise ValueError(f"temporal_downsample: expected {allowed}, found {temporal_downsample}")
        self.downsample, self.in_channels = downsample, in_channels
        self.temporal_kernel = temporal_kernel if use_3d_conv else 1
        self.temporal_downsample = temporal_downsample
        # One strided patch convolution first: at full resolution even a thin 3x3 layer costs more than all the rest.
        patch = min(downsample, patch_size)
        widths = [base_channels * 2**i for i in range(int(math.log2(downsample // patch)) + 1)]
        own = feature_channels is None
        seen = self.temporal_kernel if own else 1
        self.memory_channels = widths[-1] if feature_channels is None else feature_channels
        self.encoder = nn.ModuleList(_encoder(in_channels, widths, patch, seen) if own else [])
        self.temporal = nn.Conv2d(self.temporal_kernel * self.memory_channels, code_dim, 1)
        self.group = nn.Conv2d(temporal_downsample * code_dim, code_dim, 1) if temporal_downsample > 1 else None
        self.ungroup = nn.Conv2d(code_dim, temporal_downsample * code_dim, 1) if temporal_downsample > 1 else None
        # A trunk's maps come constant: PyTorch 2.13's GroupNorm crashes in the backward pass of a channels-last input
        # without gradient, and they are in the range that a linear map takes as they are.
        self.temporal_norm = normalisation(self.memory_channels) if own else nn.Identity()
        self.quantizer = VectorQuantizer(num_codes, code_dim, decay=decay, heads=num_quantizers, gradient=gradient)
        self.decoder = nn.ModuleList(_decoder(in_channels, code_dim, widths, patch, seen))

    def memory_sizes(self, height: int, width: int, grid: tuple[int, int]) -> list[tuple[int, int, int, int]]:
        """(k - 1, F, h, w) of the frames before that each convolution over time needs, in order."""
        cells = [module for module in self.encoder if isinstance(module, CausalTemporalCell)]
        rows, columns = self.grid(height, width)
        sizes = []
        for i, cell in enumerate(cells):
            finer = 2 ** (len(cells) - 1 - i)
            sizes.append((cell.kernel - 1, cell.mix.out_channels, finer * rows, finer * columns))
        return [*sizes, (self.temporal_kernel - 1, self.memory_channels, *grid)]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token rows and columns of an image."""
        return -(-height // self.downsample), -(-width // self.downsample)

    def token_frames(self, frames: int) -> int:
        """T' of T frames."""
        return count_groups(frames, self.temporal_downsample)

    def encode(self, videos: Tensor, memory: tuple[Tensor, ...] | None = None) -> tuple[Tokens, tuple[Tensor, ...]]:
        """Tokenise a video.

        Args:
            videos: (B, T, C, H, W) in [-1, 1] (or any range the model was trained on), T >= 1; feature maps
                (B, T, F, Ht, Wt) where the tokenizer was made for them.
            memory: features of the frames before, as returned by the call before, one (B, temporal_kernel - 1, F, h, w)
                a convolution over time; zeros (no frames before) when absent.

        Returns:
            the tokens, and the memory to continue with.

        Raises:
            ValueError: a memory with temporal down-sampling, where only whole groups can be continued.
        """
        if memory is not None and self.temporal_downsample > 1:
            raise ValueError("memory: expected none with temporal down-sampling, found one")
        batch, frames = videos.shape[:2]
        convolutions = 1 + sum(isinstance(module, CausalTemporalCell) for module in self.encoder)
        before: list[Tensor | None] = [None] * convolutions if memory is None else list(memory)
        features, kept = self._features(videos, batch, before)  # (B T, F, Ht, Wt)
        # The causal temporal convolution as one 1x1 convolution over the stacked frames t - k + 1 .. t.
        stacked, last = stack_frames(self.temporal_norm(features), batch, self.temporal_kernel, before[-1])
        encodings = self.temporal(stacked)  # (B T, D, Ht, Wt)
        if self.group is not None:
            grouped = group_frames(encodings.unflatten(0, (batch, frames)), self.temporal_downsample)
            encodings = self.group(grouped.flatten(0, 1))  # (B T', D, Ht, Wt)
        encodings = encodings.permute(0, 2, 3, 1).unflatten(0, (batch, -1))  # (B, T', Ht, Wt, D)
        found = self.quantizer(encodings)
        return Tokens(found.indices, found.values, encodings, found.commitment), (*kept, last)

    def _features(self, videos: Tensor, batch: int, before: list[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        """Features (B T, F, Ht, Wt) of a video or of given maps, and the memories of the convolutions over time."""
        if not self.encoder:
            expect_shape(videos, "B T F Ht Wt", "features", F=self.memory_channels)
            return videos.flatten(0, 1), []
        expect_shape(videos, "B T C H W", "videos", C=self.in_channels)
        x = pad_to_multiple(videos.flatten(0, 1), self.downsample).contiguous(memory_format=torch.channels_last)
        kept: list[Tensor] = []
        for module in self.encoder:
            if isinstance(module, CausalTemporalCell):
                x, last = module(x, batch, before[len(kept)])
                kept.append(last)
            else:
                x = module(x)
        return x, kept

    def decode(
        self, quantized: Tensor, height: int | None = None, width: int | None = None, frames: int | None = None
    ) -> Tensor:
        """Codes (B, T', Ht, Wt, D) to frames (B, T, C, H, W).

        Args:
            quantized: codes.
            height: H, rows to crop to when given.
            width: W, columns to crop to when given.
            frames: T; that of full groups, 1 + (T' - 1) s, when absent.

        Raises:
            ValueError: T frames do not make T' token frames.
        """
        batch, count, rows, columns, _ = quantized.shape
        x = quantized.flatten(0, 1).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        if self.ungroup is not None:
            groups = self.ungroup(x).unflatten(0, (batch, count))  # (B, T', s D, Ht, Wt)
            x = ungroup_frames(groups, self.temporal_downsample, frames).flatten(0, 1)  # (B T, D, Ht, Wt)
        for module in self.decoder:
            x = module(x, batch)[0] if isinstance(module, CausalTemporalCell) else module(x)
        images: Tensor = x[..., : height or rows * self.downsample, : width or columns * self.downsample]
        videos: Tensor = images.unflatten(0, (batch, -1))
        return videos

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Codes (..., D) of ids (...), or (..., Q); ids outside the codebook raise ValueError."""
        return self.quantizer.lookup(indices)

    def reconstruction_loss(self, tokens: Tokens, videos: Tensor) -> Tensor:
        """Mean squared error between the decoded tokens and the video (B, T, C, H, W)."""
        frames, _, height, width = videos.shape[1:]
        return F.mse_loss(self.decode(tokens.quantized, height, width, frames).float(), videos.float())


def _encoder(channels: int, widths: list[int], patch: int, kernel: int) -> list[nn.Module]:
    """Frames to features, a residual cell and a convolution over time at each scale."""
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], patch, stride=patch), *_scale(widths[0], kernel)]
    for narrow, wide in pairwise(widths):
        layers += [nn.Conv2d(narrow, wide, 2, stride=2), *_scale(wide, kernel)]
    return layers


def _decoder(channels: int, code_dim: int, widths: list[int], patch: int, kernel: int) -> list[nn.Module]:
    """Codes to frames, the encoder's mirror image."""
    layers: list[nn.Module] = [nn.Conv2d(code_dim, widths[-1], 3, padding=1), *_scale(widths[-1], kernel)]
    for wide, narrow in pairwise(widths[::-1]):
        layers += [nn.ConvTranspose2d(wide, narrow, 2, stride=2), *_scale(narrow, kernel)]
    return [*layers, PatchesToImage(widths[0], channels, patch)]


def _scale(channels: int, kernel: int) -> list[nn.Module]:
    cell = ResidualCell(channels)
    return [cell, CausalTemporalCell(channels, kernel)] if kernel > 1 else [cell]
