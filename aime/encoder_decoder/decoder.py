"""Latent, recurrent state and attention map to an image."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime.nn import PatchesToImage, ResidualCell, expect_shape, mlp, normalisation


class AttentionModulation(nn.Module):
    """Scale and shift features by an attention map resized to their resolution.

    The map enters as log(1 + density) with density of mean 1, so that a map as sharp as one cell stays bounded;
    gains start at zero: an untrained modulation is the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, density: Tensor) -> Tensor:
        """Features (N, F, H, W) and density (N, 1, R, R) of mean 1."""
        resized = torch.log1p(F.interpolate(density, x.shape[-2:], mode="bilinear", align_corners=False))
        # x + (x gain + shift) resized in two passes over memory; spelt out it takes five.
        return torch.addcmul(x, torch.addcmul(self.shift[:, None, None], x, self.gain[:, None, None]), resized)


class VAEDecoder(nn.Module):
    """NVAE-style residual decoder of single frames, modulated by attention at each scale.

    Args:
        latent_size: D.
        height, width: of the images, in pixels.
        hidden_dim: Hd, size of the recurrent state that conditions the image; 0 for none.
        channels: channels of each level from coarse to fine, the last at a quarter of the image's side.
        cells_per_level: residual cells a level.
        output_channels: channels of the output, those of the image or those of a likelihood's parameters.
        mlp_hidden_size: hidden units of the stem.
        squeeze_excitation: channel gates in the residual cells.
    """

    def __init__(
        self,
        latent_size: int,
        height: int,
        width: int,
        hidden_dim: int = 0,
        channels: tuple[int, ...] = (192, 128, 64),
        cells_per_level: int = 2,
        output_channels: int = 3,
        mlp_hidden_size: int = 512,
        *,
        squeeze_excitation: bool = True,
    ) -> None:
        super().__init__()
        stride = 4 * 2 ** (len(channels) - 1)
        self.size, self.latent_size, self.hidden_dim = (height, width), latent_size, hidden_dim
        self.coarse = (channels[0], -(-height // stride), -(-width // stride))
        rows = self.coarse[1] * self.coarse[2]
        self.stem = mlp((latent_size + hidden_dim, mlp_hidden_size, channels[0] * rows))
        self.modulations = nn.ModuleList(AttentionModulation(width_) for width_ in channels)
        self.levels = nn.ModuleList(
            nn.Sequential(
                *(ResidualCell(width_, squeeze_excitation=squeeze_excitation) for _ in range(cells_per_level))
            )
            for width_ in channels
        )
        self.upsamplings = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, 2, stride=2) for wide, narrow in pairwise(channels)
        )
        last = PatchesToImage(channels[-1], output_channels, 4)
        self.head = nn.Sequential(normalisation(channels[-1]), nn.SiLU(), last)
        # The first images are (nearly) zero, that is, the mean image of the data.
        nn.init.normal_(last.linear.weight, std=0.01)
        nn.init.zeros_(last.linear.bias)

    def forward(self, latent: Tensor, hidden: Tensor | None = None, attention: Tensor | None = None) -> Tensor:
        """Decode.

        Args:
            latent: (N, D).
            hidden: (N, Hd), the recurrent state before the frame.
            attention: (N, R, R), sums to 1 over positions; uniform when absent.

        Returns:
            (N, output_channels, H, W).
        """
        expect_shape(latent, "N D", "latent", D=self.latent_size)
        if self.hidden_dim:
            if hidden is None:
                raise ValueError(f"hidden: expected (N, {self.hidden_dim}), found None")
            expect_shape(hidden, "N Hd", "hidden", N=latent.shape[0], Hd=self.hidden_dim)
            latent = torch.cat([latent, hidden], 1)
        if attention is None:
            attention = latent.new_full((latent.shape[0], 1, 1), 1.0)
        density = (attention * attention.shape[-1] * attention.shape[-2])[:, None]
        x = self.stem(latent).unflatten(1, self.coarse).contiguous(memory_format=torch.channels_last)
        for i, (modulation, level) in enumerate(zip(self.modulations, self.levels, strict=True)):
            x = level(modulation(x, density))
            if i < len(self.upsamplings):
                x = self.upsamplings[i](x)
        image: Tensor = self.head(x)
        return image[..., : self.size[0], : self.size[1]]
