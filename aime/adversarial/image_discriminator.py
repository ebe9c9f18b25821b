"""A critic of single images, patch by patch."""

from __future__ import annotations

from torch import Tensor, nn

from aime.adversarial.trunk import ConvolutionalTrunk
from aime.documented_tables import accepts_documented_names
from aime.nn import expect_shape


@accepts_documented_names()
class ImageDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): a score for every patch of an image, no normalisation (see `ConvolutionalTrunk`).

    Args:
        input_nc: C.
        ndf: channels of the first level.
        n_layers: levels at most.
        image_size: H = W in pixels.

    Example:
        >>> import torch
        >>> ImageDiscriminator(ndf=8)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 1, 4, 4])
    """

    def __init__(self, input_nc: int = 3, ndf: int = 16, n_layers: int = 5, *, image_size: int = 64) -> None:
        super().__init__()
        self.input_nc, self.image_size = input_nc, image_size
        self.trunk = ConvolutionalTrunk(input_nc, image_size, ndf, n_layers)
        self.score = nn.Conv2d(self.trunk.channels, 1, 1)

    def get_features(self, images: Tensor) -> Tensor:
        """Features (N, F, h, w) of images (N, C, H, W); ValueError for another shape."""
        size = self.image_size
        expect_shape(images, "N C H W", "images", C=self.input_nc, H=size, W=size)
        features: Tensor = self.trunk(images)
        return features

    def score_of(self, features: Tensor) -> Tensor:
        """Scores (N, 1, h, w) of features (N, F, h, w)."""
        scores: Tensor = self.score(features)
        return scores

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, 1, h, w) of images (N, C, H, W); higher is more like the data."""
        return self.score_of(self.get_features(images))
