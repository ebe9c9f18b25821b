"""Likelihoods of an image given a decoder's output; nats, summed over pixels and channels."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from aime import kernels


class Likelihood(Protocol):
    """What the world model asks of a likelihood."""

    output_channels: int

    def mean(self, parameters: Tensor, offset: Tensor) -> Tensor:
        """Expected image (N, C, H, W), differentiable."""
        ...

    def nll(self, parameters: Tensor, offset: Tensor, images: Tensor, weights: Tensor | None = None) -> Tensor:
        """Negative log-likelihood (N,) of images (N, C, H, W) in [-1, 1]."""
        ...

    def nll_and_mean(
        self, parameters: Tensor, offset: Tensor, images: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both at once."""
        ...


class GaussianLikelihood(nn.Module):
    """Independent Gaussians of fixed scale around the decoded image plus the offset (the data's mean image).

    Args:
        channels: image channels.
        scale: standard deviation, in units of the [-1, 1] image range.
    """

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"scale: expected a positive standard deviation, found {scale}")
        self.output_channels, self.scale = channels, scale

    def mean(self, parameters: Tensor, offset: Tensor) -> Tensor:
        """The decoded image plus the offset."""
        return parameters.float() + offset

    def nll(self, parameters: Tensor, offset: Tensor, images: Tensor, weights: Tensor | None = None) -> Tensor:
        """(x - mean)^2 / (2 scale^2) + log(scale sqrt(2 pi)) a channel, summed."""
        return self.nll_and_mean(parameters, offset, images, weights)[0]

    def nll_and_mean(
        self, parameters: Tensor, offset: Tensor, images: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood (N,) and expected image (N, C, H, W)."""
        mean = self.mean(parameters, offset)
        squared = functional.mse_loss(mean, images, reduction="none")  # one pass forward and one backward
        if weights is not None:
            squared = squared * weights[:, None]
        constant = math.log(self.scale * math.sqrt(2 * math.pi)) * images[0].numel()
        return squared.sum((1, 2, 3)) / (2 * self.scale**2) + constant, mean


class MixtureOfLogistics(nn.Module):
    """Discretised mixture of logistics with coupled channels (Salimans et al. 2017, PixelCNN++), 8-bit RGB.

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

    def _split(self, parameters: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, _, height, width = parameters.shape
        parameters, mixtures = parameters.float(), self.components
        logits = parameters[:, :mixtures]
        rest = parameters[:, mixtures:].reshape(batch, mixtures, 9, height, width)
        # Without the shift all components would start alike at the mean image and learn as one.
        spread = torch.linspace(-0.1, 0.1, mixtures, device=parameters.device)[:, None, None, None]
        means = rest[:, :, 0:3] + spread + offset
        return logits, means, rest[:, :, 3:6] - 2.0, rest[:, :, 6:9]

    def mean(self, parameters: Tensor, offset: Tensor) -> Tensor:
        """Expected image under the mixture."""
        return self.nll_and_mean(
            parameters, offset, parameters.new_zeros(1).expand(len(parameters), 3, *parameters.shape[-2:])
        )[1]

    def nll(self, parameters: Tensor, offset: Tensor, images: Tensor, weights: Tensor | None = None) -> Tensor:
        """Negative log of the mass of each 2/255-wide bin, summed over pixels and channels."""
        return self.nll_and_mean(parameters, offset, images, weights)[0]

    def nll_and_mean(
        self, parameters: Tensor, offset: Tensor, images: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood (N,) and expected image (N, C, H, W)."""
        logits, means, log_scales, coefficients = self._split(parameters, offset)
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
