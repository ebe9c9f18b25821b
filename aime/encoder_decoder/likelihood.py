"""Likelihoods of an image given a decoder's output; nats, summed over pixels and channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from aime import kernels


@dataclass(frozen=True)
class PixelStatistics:
    """What is known of every pixel before training, from the training frames.

    Attributes:
        mean: (C, H, W), the mean image in [-1, 1].
        spread: (1, H, W) or (C, H, W), by how much a pixel varies, up to a common factor; ones for no whitening.
    """

    mean: Tensor
    spread: Tensor

    def whitening(self, frames: torch.dtype, contrast: float = 1.0) -> tuple[Tensor, Tensor]:
        """Mean (C, H, W) and factor (1 or C, H, W) under which contrast (x - mean) / spread is (frame - mean) factor.

        Args:
            frames: dtype of the frames, uint8 in 0..255 or floating point in [-1, 1].
            contrast: a common factor.
        """
        factor = contrast / self.spread
        if frames == torch.uint8:
            return (self.mean + 1.0) * 127.5, factor / 127.5
        return self.mean, factor


class Likelihood(Protocol):
    """What the world model asks of a likelihood of images (N, C, H, W) in [-1, 1]."""

    output_channels: int

    def mean(self, parameters: Tensor, pixels: PixelStatistics) -> Tensor:
        """Expected image (N, C, H, W), differentiable, from the decoder's output (N, output_channels, H, W)."""
        ...

    def nll(self, parameters: Tensor, pixels: PixelStatistics, images: Tensor, weights: Tensor | None = None) -> Tensor:
        """Negative log-likelihood (N,) in nats, pixels weighted by weights (N, H, W) if given."""
        ...


class GaussianLikelihood(nn.Module):
    """Independent Gaussians, x ~ N(mean + spread * decoded, (scale * spread)^2) a pixel.

    Dividing by the spread is what lets a small body be learned: in cartpole the rows of the cart hold 64 % of the
    variance of all pixels, and under one scale for all the pole is not drawn before they are explained.

    Args:
        channels: image channels.
        scale: standard deviation of a pixel of spread 1, in units of the [-1, 1] image range.
    """

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise ValueError(f"scale: expected a positive standard deviation, found {scale}")
        self.output_channels, self.scale = channels, scale

    def mean(self, parameters: Tensor, pixels: PixelStatistics) -> Tensor:
        """The mean image plus the decoded image times the spread."""
        return torch.addcmul(pixels.mean, parameters.float(), pixels.spread)

    def nll(self, parameters: Tensor, pixels: PixelStatistics, images: Tensor, weights: Tensor | None = None) -> Tensor:
        """(x - mean)^2 / (2 (scale spread)^2) + log(scale spread sqrt(2 pi)) a channel and pixel, summed: (N,)."""
        return self.whitened_nll(parameters, pixels, (images - pixels.mean) / pixels.spread, weights)

    def whitened_nll(
        self, parameters: Tensor, pixels: PixelStatistics, target: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """:meth:`nll` (N,) of images given as target = (x - mean) / spread (N, C, H, W)."""
        squared = functional.mse_loss(parameters.float(), target, reduction="none")  # one pass forward, one backward
        if weights is not None:
            squared = squared * weights[:, None]
        return squared.sum((1, 2, 3)) / (2 * self.scale**2) + self._constant(pixels, target.shape[1:])

    def frame_nll(
        self, parameters: Tensor, pixels: PixelStatistics, frames: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """:meth:`nll` (N,) of frames (N, C, H, W) as they are stored, uint8 or float in [-1, 1]: one pass over both."""
        mean, factor = pixels.whitening(frames.dtype)
        squared = kernels.frame_error(parameters, frames, mean, factor, weights)  # (N,)
        return squared / (2 * self.scale**2) + self._constant(pixels, frames.shape[1:])

    def _constant(self, pixels: PixelStatistics, image: torch.Size) -> Tensor:
        """() nats of an image (C, H, W) that is decoded without error."""
        spreads = pixels.spread.log().expand(image).sum()
        return spreads + image.numel() * math.log(self.scale * math.sqrt(2 * math.pi))


class MixtureOfLogistics(nn.Module):
    """Discretised mixture of logistics with coupled channels (Salimans et al. 2017, PixelCNN++), 8-bit RGB.

    Its scales are learned a pixel, so the pixels' spread is not used.

    Args:
        channels: image channels, 3.
        components: mixture components a pixel.
    """

    def __init__(self, channels: int = 3, components: int = 10) -> None:
        super().__init__()
        if channels != 3:
            raise ValueError(
                f"channels: the mixture of logistics couples red, green and blue; expected 3, found {channels}"
            )
        self.components = components
        self.output_channels = 10 * components

    def _split(self, parameters: Tensor, pixels: PixelStatistics) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, _, height, width = parameters.shape
        parameters, mixtures = parameters.float(), self.components
        logits = parameters[:, :mixtures]
        rest = parameters[:, mixtures:].reshape(batch, mixtures, 9, height, width)
        # Without the shift all components would start alike at the mean image and learn as one.
        spread = torch.linspace(-0.1, 0.1, mixtures, device=parameters.device)[:, None, None, None]
        means = rest[:, :, 0:3] + spread + pixels.mean
        return logits, means, rest[:, :, 3:6] - 2.0, rest[:, :, 6:9]

    def mean(self, parameters: Tensor, pixels: PixelStatistics) -> Tensor:
        """Expected image under the mixture."""
        black = parameters.new_zeros(1).expand(len(parameters), 3, *parameters.shape[-2:])
        return self._nll_and_mean(parameters, pixels, black)[1]

    def nll(self, parameters: Tensor, pixels: PixelStatistics, images: Tensor, weights: Tensor | None = None) -> Tensor:
        """Negative log of the mass of each 2/255-wide bin, summed over pixels and channels: (N,)."""
        return self._nll_and_mean(parameters, pixels, images, weights)[0]

    def _nll_and_mean(
        self, parameters: Tensor, pixels: PixelStatistics, images: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        logits, means, log_scales, coefficients = self._split(parameters, pixels)
        nll, mean = kernels.mixture_logistics_nll(images, logits, means, log_scales, coefficients, weights=weights)
        return nll, mean


def make_likelihood(name: str, channels: int, scale: float, components: int) -> GaussianLikelihood | MixtureOfLogistics:
    """Likelihood by name: ``gaussian`` or ``mixture_of_logistics``.

    Raises:
        ValueError: unknown name.
    """
    if name == "gaussian":
        return GaussianLikelihood(channels, scale)
    if name == "mixture_of_logistics":
        return MixtureOfLogistics(channels, components)
    raise ValueError(f"likelihood: expected 'gaussian' or 'mixture_of_logistics', found {name!r}")
