"""Latent, recurrent state and attention map to an image."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime.documented_tables import accepts_documented_names
from aime.nn import PatchesToImage, ResidualCell, expect_shape, mlp


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


@accepts_documented_names()
class VAEDecoder(nn.Module):
    """Decoder of single frames, the trunk's mirror image: stem, transposed convolutions, patches.

    Args:
        latent_size: D.
        height, width: of the images, in pixels.
        hidden_dim: Hd, size of the recurrent state that conditions the image; 0 for none.
        channels: channels of each level from coarse to fine, the last at 1 / patch_size of the image's side.
        cells_per_level: residual cells (Vahdat and Kautz 2020, NVAE) a level; 0 for none.
        output_channels: channels of the output, those of the image or those of a likelihood's parameters.
        mlp_hidden_size: hidden units of the stem; 0 makes it one linear map.
        patch_size: side of the patches that the finest level becomes, in pixels.
        squeeze_excitation: channel gates in the residual cells.
        modulated: let an attention map scale and shift the features of each level.
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
        patch_size: int = 4,
        squeeze_excitation: bool = True,
        modulated: bool = True,
    ) -> None:
        super().__init__()
        stride = patch_size * 2 ** (len(channels) - 1)
        self.size, self.latent_size, self.hidden_dim = (height, width), latent_size, hidden_dim
        self.coarse = (channels[0], -(-height // stride), -(-width // stride))
        cells = channels[0] * self.coarse[1] * self.coarse[2]
        hidden = (mlp_hidden_size,) if mlp_hidden_size else ()
        self.stem = mlp((latent_size + hidden_dim, *hidden, cells))
        self.modulations = nn.ModuleList(AttentionModulation(width_) for width_ in channels) if modulated else None
        self.levels = nn.ModuleList(
            nn.Sequential(
                *(ResidualCell(width_, squeeze_excitation=squeeze_excitation) for _ in range(cells_per_level))
            )
            for width_ in channels
        )
        self.upsamplings = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1) for wide, narrow in pairwise(channels)
        )
        self.last = PatchesToImage(channels[-1], output_channels, patch_size)
        # The first images are zero, that is, the mean image of the data.
        nn.init.zeros_(self.last.linear.weight)
        nn.init.zeros_(self.last.linear.bias)

    def forward(self, latent: Tensor, hidden: Tensor | None = None, attention: Tensor | None = None) -> Tensor:
        """Decode.

        Args:
            latent: (N, D).
            hidden: (N, Hd), the recurrent state before the frame.
            attention: (N, R, R), sums to 1 over positions; even when absent.

        Returns:
            (N, output_channels, H, W).

        Raises:
            ValueError: shapes that do not fit, or a map for a decoder that is not modulated.
        """
        expect_shape(latent, "N D", "latent", D=self.latent_size)
        if self.hidden_dim:
            if hidden is None:
                raise ValueError(f"hidden: expected (N, {self.hidden_dim}), found None")
            expect_shape(hidden, "N Hd", "hidden", N=latent.shape[0], Hd=self.hidden_dim)
            latent = torch.cat([latent, hidden.to(latent.dtype)], 1)  # (N, D + Hd)
        density = self._density(latent, attention)
        x = self.stem(latent).unflatten(1, self.coarse)  # (N, F, h, w)
        x = x.contiguous(memory_format=torch.channels_last)
        for i, level in enumerate(self.levels):
            if self.modulations is not None and density is not None:
                x = self.modulations[i](x, density)
            x = F.silu(level(x))
            if i < len(self.upsamplings):
                x = self.upsamplings[i](x)  # (N, F', 2 h, 2 w)
        image: Tensor = self.last(x)  # (N, C, H, W), padded to whole cells of the coarsest level
        return image[..., : self.size[0], : self.size[1]]

    def _density(self, latent: Tensor, attention: Tensor | None) -> Tensor | None:
        """Density of mean 1 (N, 1, R, R) of an attention map, None for a decoder that is not modulated."""
        if self.modulations is None:
            if attention is not None:
                raise ValueError("attention: expected None, since this decoder is not modulated by maps, found a map")
            return None
        if attention is None:
            return latent.new_ones(latent.shape[0], 1, 1, 1)
        return (attention * attention.shape[-1] * attention.shape[-2])[:, None]
