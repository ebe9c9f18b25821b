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
from aime.perceiver_io.quantizer import VectorQuantizer


@dataclass(frozen=True)
class Tokens:
    """Tokens of a video.

    Attributes:
        ids: (B, T, Ht, Wt) int32.
        quantized: (B, T, Ht, Wt, D) codes, differentiable towards the encoder (straight-through).
        encodings: (B, T, Ht, Wt, D) vectors before quantisation.
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
    T >= 1 and any H, W. Each frame is seen together with ``temporal_kernel - 1`` frames before it and with none after
    it (``use_3d_conv=True``), or alone (``use_3d_conv=False``).

    Args:
        in_channels: image channels.
        code_dim: D, size of a code.
        num_codes: V, codes in the book.
        downsample: pixels to tokens along each side; a power of two >= 2.
        base_channels: channels of the first stage; doubled at each halving of the resolution.
        use_3d_conv: let tokens depend on earlier frames.
        patch_size: largest side of the patches of the first convolution, in pixels; what is left of ``downsample`` is
            done by halvings.
        temporal_kernel: frames a token sees, itself included.
        decay: of the codebook's moving averages.
        feature_channels: F, channels of the feature maps that are given in place of videos, (B, T, F, Ht, Wt) with
            Ht = H / downsample, by a trunk that others use too; None for an encoder of its own.

    Raises:
        ValueError: ``downsample`` is not a power of two >= 2.
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
    ) -> None:
        super().__init__()
        if downsample < 2 or downsample & (downsample - 1):
            raise ValueError(f"downsample: expected a power of two >= 2, found {downsample}")
        self.downsample, self.in_channels = downsample, in_channels
        self.temporal_kernel = temporal_kernel if use_3d_conv else 1
        # One strided patch convolution first: at full resolution even a thin 3x3 layer costs more than all the rest.
        patch = min(downsample, patch_size)
        widths = [base_channels * 2**i for i in range(int(math.log2(downsample // patch)) + 1)]
        encoder: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], patch, stride=patch), ResidualCell(widths[0])]
        decoder: list[nn.Module] = [nn.Conv2d(code_dim, widths[-1], 3, padding=1), ResidualCell(widths[-1])]
        for narrow, wide in pairwise(widths):
            encoder += [nn.Conv2d(narrow, wide, 2, stride=2), ResidualCell(wide)]
        for wide, narrow in pairwise(widths[::-1]):
            decoder += [nn.ConvTranspose2d(wide, narrow, 2, stride=2), ResidualCell(narrow)]
        self.frame_encoder = nn.Sequential(*encoder) if feature_channels is None else None
        self.memory_channels = widths[-1] if feature_channels is None else feature_channels
        self.temporal = nn.Conv2d(self.temporal_kernel * self.memory_channels, code_dim, 1)
        # A trunk's maps come constant: PyTorch 2.13's GroupNorm crashes in the backward pass of a channels-last input
        # without gradient, and they are in the range that a linear map takes as they are.
        self.temporal_norm = normalisation(self.memory_channels) if feature_channels is None else nn.Identity()
        self.quantizer = VectorQuantizer(num_codes, code_dim, decay=decay)
        self.decoder = nn.Sequential(*decoder, PatchesToImage(widths[0], in_channels, patch))

    @property
    def memory_frames(self) -> int:
        """Earlier frames whose features a new frame needs."""
        return self.temporal_kernel - 1

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token rows and columns of an image."""
        return -(-height // self.downsample), -(-width // self.downsample)

    def encode(self, videos: Tensor, memory: Tensor | None = None) -> tuple[Tokens, Tensor]:
        """Tokenise a video.

        Args:
            videos: (B, T, C, H, W) in [-1, 1] (or any range the model was trained on), T >= 1; feature maps
                (B, T, F, Ht, Wt) where the tokenizer was made for them.
            memory: (B, temporal_kernel - 1, F, Ht, Wt) features of the frames before, as returned by the call before;
                zeros (no frames before) when absent.

        Returns:
            the tokens, and the memory to continue with.
        """
        if self.frame_encoder is None:
            expect_shape(videos, "B T F Ht Wt", "features", F=self.memory_channels)
            features = videos.flatten(0, 1)
        else:
            expect_shape(videos, "B T C H W", "videos", C=self.in_channels)
            flat = pad_to_multiple(videos.flatten(0, 1), self.downsample)
            features = self.frame_encoder(flat.contiguous(memory_format=torch.channels_last))
        batch, frames = videos.shape[:2]
        features = self.temporal_norm(features)  # (B T, F, Ht, Wt)
        rows, columns = features.shape[-2:]
        features = features.unflatten(0, (batch, frames))  # (B, T, F, Ht, Wt)
        if memory is None:
            memory = features.new_zeros(batch, self.memory_frames, self.memory_channels, rows, columns)
        extended = torch.cat([memory, features], 1)
        # The causal temporal convolution as one 1x1 convolution over the stacked frames t - k + 1 .. t.
        stacked = torch.cat([extended[:, k : k + frames] for k in range(self.temporal_kernel)], 2).flatten(0, 1)
        encodings = self.temporal(stacked).permute(0, 2, 3, 1).unflatten(0, (batch, frames))  # (B, T, Ht, Wt, D)
        found = self.quantizer(encodings)
        return Tokens(found.indices, found.values, encodings, found.commitment), extended[:, frames:]

    def decode(self, quantized: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
        """Codes (B, T, Ht, Wt, D) to frames (B, T, C, H, W), cropped to height and width when given."""
        batch, frames, rows, columns, _ = quantized.shape
        codes = quantized.flatten(0, 1).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        images: Tensor = self.decoder(codes)
        images = images[..., : height or rows * self.downsample, : width or columns * self.downsample]
        images = images.unflatten(0, (batch, frames))
        return images

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Codes (..., D) of ids (...); ids outside the codebook raise ValueError."""
        return self.quantizer.lookup(indices)

    def reconstruction_loss(self, tokens: Tokens, videos: Tensor) -> Tensor:
        """Mean squared error between the decoded tokens and the video (B, T, C, H, W)."""
        return F.mse_loss(self.decode(tokens.quantized, *videos.shape[-2:]).float(), videos.float())
