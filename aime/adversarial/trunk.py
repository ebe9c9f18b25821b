"""The convolutional trunk that both critics read images with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2
"""Of the leaky rectifier: a critic's gradient must reach every pixel."""
FINEST = 4
"""Side of the last feature map, at least."""


class ConvolutionalTrunk(nn.Module):
    """4x4 convolutions of stride 2 with leaky rectifiers, until a side of ``FINEST`` to 7 cells or ``levels`` of them.

    Without normalisation over the batch: the penalty of WGAN-GP is on the gradient of each input by itself (Gulrajani
    et al. 2017, section 4).

    Args:
        input_channels: C.
        image_size: H = W in pixels, at least 8.
        channels: of the first level; each level has twice those of the one before, at most 8 times the first.
        levels: at most so many.
    """

    def __init__(self, input_channels: int, image_size: int, channels: int, levels: int = 16) -> None:
        super().__init__()
        if image_size < 2 * FINEST:
            raise ValueError(f"image_size: expected at least {2 * FINEST} pixels, found {image_size}")
        layers: list[nn.Module] = []
        before, side = input_channels, image_size
        while side // 2 >= FINEST and len(layers) < levels:
            width = channels * min(2 ** len(layers), 8)
            layers.append(nn.Conv2d(before, width, 4, 2, 1))
            before, side = width, side // 2
        self.layers = nn.ModuleList(layers)
        self.channels, self.side = before, side

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to features (N, F, h, w)."""
        features = images.contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            features = F.leaky_relu(layer(features), SLOPE)  # (N, F_i, H / 2^i, W / 2^i)
        return features
