"""Image to the parameters of q(z | x, c)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aime.nn import ResidualCell, expect_shape, mlp, normalisation, pad_to_multiple


@dataclass(frozen=True)
class Posterior:
    """Diagonal Gaussian q(z | x, c).

    Attributes:
        mean: (N, D).
        log_scale: (N, D), natural logarithm of the standard deviation.
        features: finest-to-coarsest feature maps (N, F_i, H_i, W_i), for the Gram loss.
    """

    mean: Tensor
    log_scale: Tensor
    features: tuple[Tensor, ...]

    def rsample(self, noise: Tensor) -> Tensor:
        """A sample from standard normal noise (N, D)."""
        return self.mean + noise * self.log_scale.exp()


class VAEEncoder(nn.Module):
    """NVAE-style residual encoder (Vahdat & Kautz 2020) of single frames, conditioned on a context vector.

    A patch convolution brings the image down by ``patch_size``, each further level halves it. Any H, W >= 32.

    Args:
        latent_size: D.
        height, width: of the images, in pixels.
        context_dim: Cc, size of the context vector; 0 for none.
        channels: channels of each level, finest first.
        cells_per_level: residual cells a level.
        mlp_hidden_size: hidden units of the head.
        input_channels: image channels.
        patch_size: side of the patches of the first convolution, in pixels.
        squeeze_excitation: channel gates in the residual cells.
        min_log_scale: smooth lower bound of log_scale.

    Raises:
        ValueError: an image side under 32.
    """

    def __init__(
        self,
        latent_size: int,
        height: int,
        width: int,
        context_dim: int = 0,
        channels: tuple[int, ...] = (64, 128, 192),
        cells_per_level: int = 2,
        mlp_hidden_size: int = 512,
        input_channels: int = 3,
        *,
        patch_size: int = 4,
        squeeze_excitation: bool = True,
        min_log_scale: float = -5.0,
    ) -> None:
        super().__init__()
        if min(height, width) < 32:
            raise ValueError(f"height, width: expected at least 32 pixels, found {height} x {width}")
        self.stride = patch_size * 2 ** (len(channels) - 1)
        self.image_shape = (input_channels, height, width)
        self.context_dim, self.min_log_scale = context_dim, min_log_scale
        levels: list[nn.Module] = []
        inner = input_channels
        for i, outer in enumerate(channels):
            size = patch_size if i == 0 else 2
            cells = [ResidualCell(outer, squeeze_excitation=squeeze_excitation) for _ in range(cells_per_level)]
            levels.append(nn.Sequential(nn.Conv2d(inner, outer, size, stride=size), *cells))
            inner = outer
        self.levels = nn.ModuleList(levels)
        self.norm = nn.Sequential(normalisation(inner), nn.SiLU())
        rows, columns = -(-height // self.stride), -(-width // self.stride)
        self.head = mlp((inner * rows * columns + context_dim, mlp_hidden_size, 2 * latent_size))

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of each level for images (N, C, H, W)."""
        channels, height, width = self.image_shape
        expect_shape(images, "N C H W", "images", C=channels, H=height, W=width)
        x = pad_to_multiple(images, self.stride).contiguous(memory_format=torch.channels_last)
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return tuple(maps)

    def forward(self, images: Tensor, context: Tensor | None = None) -> Posterior:
        """q(z | x, c) of images (N, C, H, W) and context (N, Cc)."""
        maps = self.features(images)
        flat = self.norm(maps[-1]).flatten(1)
        if self.context_dim:
            if context is None:
                raise ValueError(f"context: expected (N, {self.context_dim}), found None")
            expect_shape(context, "N Cc", "context", N=images.shape[0], Cc=self.context_dim)
            flat = torch.cat([flat, context], 1)
        mean, raw = self.head(flat).float().chunk(2, -1)
        # softplus keeps a gradient where a clamp would not. The scale starts near .14, below the spread of the means:
        # with latents that are mostly noise the decoder stays at the mean image for hundreds of steps.
        log_scale = self.min_log_scale + torch.nn.functional.softplus(raw - self.min_log_scale - 2.0)
        return Posterior(mean, log_scale, maps)
