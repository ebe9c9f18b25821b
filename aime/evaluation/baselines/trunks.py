"""The image networks of the RSSM baselines: frames to features and back, on a coarse grid of a 16th of the side.

Encoders take residual frames times ``INPUT_GAIN`` as patches of their ``patch_size``
(:func:`aime.kernels.frame_patches`), sides multiples of 16, and give flat features; decoders give residual frames
(N, C, H, W) and start at zero, so that training starts exactly at the quality of the mean image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from aime.nn import PatchesToImage

PATCH = 4
INPUT_GAIN = 4.0
"""Residual frames in [0, 1] are small; an encoder gets them times this, a power of two, which rounds nothing."""


class ConvolutionEncoder(nn.Module):
    """Four stride-2 convolutions of 4 x 4 (Dreamer's encoder, narrow)."""

    patch_size = 1

    def __init__(self, image_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for narrow, wide in itertools.pairwise((image_channels, *_checked(channels, 4))):
            layers += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, patches: Tensor) -> Tensor:
        """(B, T, H, W, C) -> (B * T, F)."""
        features: Tensor = self.layers(patches.flatten(0, 1).permute(0, 3, 1, 2))
        return features


class ConvolutionDecoder(nn.Module):
    """The mirror image of :class:`ConvolutionEncoder`."""

    def __init__(self, image_channels: int, channels: tuple[int, ...], grid: tuple[int, int]) -> None:
        super().__init__()
        self.coarse = (channels[-1], *grid)
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise((image_channels, *_checked(channels, 4))[::-1]):
            layers += [nn.SiLU(), nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)
        self.last = layers[-1]
        _start_at_zero(self.last)

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> residual frames (N, C, H, W)."""
        maps = features.unflatten(-1, self.coarse).contiguous(memory_format=torch.channels_last)
        frames: Tensor = self.layers(maps)
        return frames


class PatchEncoder(nn.Module):
    """4 x 4 patches by one matrix product, then two stride-2 convolutions: no map is finer than a quarter of the side.

    Half of the product's outputs, the second bank, see the change to the frame before (none at the first): taken after
    the product, which is linear, it costs no second pass over the pixels. Movement is then seen at the first layer.
    """

    patch_size = PATCH

    def __init__(self, image_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        first, second, third = _checked(channels, 3)
        self.patches = nn.Linear(image_channels * PATCH**2, 2 * first)
        self.convolutions = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(first, second, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(second, third, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(B, T, H / 4, W / 4, 16 C) -> (B * T, F)."""
        banks = self.patches(patches)  # (B, T, H/4, W/4, 2 first)
        still, moving = banks.chunk(2, dim=-1)  # (B, T, H/4, W/4, first) each
        before = torch.cat([moving[:, :1], moving[:, :-1]], dim=1)
        maps = (still + (moving - before)).flatten(0, 1).permute(0, 3, 1, 2)  # (B * T, first, H/4, W/4)
        features: Tensor = self.convolutions(maps)
        return features


class PatchDecoder(nn.Module):
    """The mirror image of :class:`PatchEncoder`: two transposed convolutions, then each position becomes a patch."""

    def __init__(self, image_channels: int, channels: tuple[int, ...], grid: tuple[int, int]) -> None:
        super().__init__()
        first, second, third = _checked(channels, 3)
        self.coarse = (third, *grid)
        self.convolutions = nn.Sequential(
            nn.SiLU(),
            nn.ConvTranspose2d(third, second, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(second, first, 4, stride=2, padding=1),
            nn.SiLU(),
        )
        self.last = PatchesToImage(first, image_channels, PATCH)
        _start_at_zero(self.last)

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> residual frames (N, C, H, W)."""
        maps = features.unflatten(-1, self.coarse).contiguous(memory_format=torch.channels_last)
        frames: Tensor = self.last(self.convolutions(maps))
        return frames


TRUNKS: dict[str, tuple[type[ConvolutionEncoder | PatchEncoder], Callable[..., nn.Module]]] = {
    "convolutions": (ConvolutionEncoder, ConvolutionDecoder),
    "patches": (PatchEncoder, PatchDecoder),
}
"""By name, the encoder and the decoder."""


def _checked(channels: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The widths, of which there must be one for each layer: every layer halves the side, but for a patch."""
    if len(channels) != count:
        raise ValueError(f"channels: expected {count} widths for this trunk, found {channels}")
    return channels


def _start_at_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
