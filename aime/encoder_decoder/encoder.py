"""Image to the parameters of q(z | x, conditions)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aime.documented_tables import accepts_documented_names
from aime.encoder_decoder.trunk import ImageTrunk
from aime.nn import expect_shape, mlp


@dataclass(frozen=True)
class Posterior:
    """Diagonal Gaussian q(z | x, conditions); leading axes (...) are (N) or (B, T).

    Attributes:
        mean: (..., D).
        log_scale: (..., D), natural logarithm of the standard deviation.
    """

    mean: Tensor
    log_scale: Tensor

    def rsample(self, noise: Tensor) -> Tensor:
        """A sample from standard normal noise (..., D)."""
        return self.mean + noise * self.log_scale.exp()

    def split(self, time: int) -> tuple[Posterior, Posterior]:
        """(B, T, D) as its frames before ``time`` and those from it on."""
        return (
            Posterior(self.mean[:, :time], self.log_scale[:, :time]),
            Posterior(self.mean[:, time:], self.log_scale[:, time:]),
        )

    def unflatten(self, batch: int, length: int) -> Posterior:
        """(B * T, D) as (B, T, D)."""
        return Posterior(self.mean.unflatten(0, (batch, length)), self.log_scale.unflatten(0, (batch, length)))


@accepts_documented_names()
class VAEEncoder(nn.Module):
    """A convolutional trunk and a head that reads its coarsest map beside a vector of conditions.

    Args:
        latent_size: D.
        height, width: of the images, in pixels.
        context_dim: size of the vector of conditions; 0 for none.
        channels, cells_per_level, input_channels, patch_size, squeeze_excitation: of the :class:`ImageTrunk`.
        mlp_hidden_size: hidden units of the head.
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
        self.context_dim, self.min_log_scale = context_dim, min_log_scale
        self.trunk = ImageTrunk(
            height,
            width,
            input_channels,
            channels,
            patch_size=patch_size,
            cells_per_level=cells_per_level,
            squeeze_excitation=squeeze_excitation,
        )
        rows, columns = self.trunk.sizes[-1]
        self.head = mlp((channels[-1] * rows * columns + context_dim, mlp_hidden_size, 2 * latent_size))

    def features(self, images: Tensor, *, as_patches: bool = False) -> tuple[Tensor, ...]:
        """Feature maps of images (N, C, H, W), or of their patches (N, H / p, W / p, C p p), finest first."""
        maps: tuple[Tensor, ...] = self.trunk(images, as_patches=as_patches)
        return maps

    def posterior(self, features: tuple[Tensor, ...], context: Tensor | None = None) -> Posterior:
        """q(z | x, c) from the trunk's maps and conditions (N, context_dim)."""
        flat = features[-1].flatten(1)  # (N, F h w)
        if self.context_dim:
            if context is None:
                raise ValueError(f"context: expected (N, {self.context_dim}), found None")
            expect_shape(context, "N Cc", "context", N=flat.shape[0], Cc=self.context_dim)
            flat = torch.cat([flat, context.to(flat.dtype)], 1)
        mean, raw = self.head(flat).float().chunk(2, -1)  # (N, D) each
        # softplus keeps a gradient where a clamp would not. The scale starts near .14, below the spread of the means:
        # with latents that are mostly noise the decoder stays at the mean image for hundreds of steps.
        log_scale = self.min_log_scale + torch.nn.functional.softplus(raw - self.min_log_scale - 2.0)
        return Posterior(mean, log_scale)

    def forward(self, images: Tensor, context: Tensor | None = None) -> Posterior:
        """q(z | x, c) of images (N, C, H, W) and conditions (N, context_dim)."""
        return self.posterior(self.features(images), context)
