"""The two critics together: what they are taught, and what a generator is told by them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aime.adversarial.image_discriminator import ImageDiscriminator
from aime.adversarial.penalty import gradient_penalty
from aime.adversarial.temporal_discriminator import TemporalDiscriminator


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """What is computed inside is no function of the module's parameters, as far as autograd is concerned."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class Contest:
    """Videos side by side.

    Attributes:
        real: (B, T, C, H, W) from the data.
        fake: (B, T, C, H, W) from the generator, differentiable.
        latent: (B, T, D) what the fake ones were made from, detached.
    """

    real: Tensor
    fake: Tensor
    latent: Tensor

    def detached(self) -> Contest:
        """The same without a graph: what the critics learn from."""
        return Contest(self.real.detach(), self.fake.detach(), self.latent.detach())


@dataclass(frozen=True)
class GeneratorLosses:
    """What the generator is told, each ().

    Attributes:
        image: minus the mean score of single frames.
        temporal: minus the mean score of the videos.
        features: mean absolute distance of the critics' features of fake and real (Salimans et al. 2016).
    """

    image: Tensor
    temporal: Tensor
    features: Tensor


class Critics(nn.Module):
    """An image critic that sees every frame by itself, and a video critic that sees them in their order.

    Args:
        input_channels: C.
        image_size: H = W in pixels.
        latent_dim: D.
        channels: of the first level of either trunk.
        hidden_dim: width of the video critic's transformer.
        n_layers: of that transformer.
        n_heads: of that transformer.
        penalty: weight of the gradient penalty.
    """

    def __init__(
        self,
        input_channels: int,
        image_size: int,
        latent_dim: int,
        *,
        channels: int = 32,
        hidden_dim: int = 128,
        n_layers: int = 2,
        n_heads: int = 4,
        penalty: float = 10.0,
    ) -> None:
        super().__init__()
        self.penalty = penalty
        self.image = ImageDiscriminator(input_channels, channels, image_size=image_size)
        self.video = TemporalDiscriminator(
            input_channels, image_size, hidden_dim, n_layers, n_heads, latent_dim, trunk_channels=channels
        )

    def generator_losses(self, contest: Contest) -> GeneratorLosses:
        """Losses of the generator; the critics' own parameters get no gradient from them, whoever differentiates."""
        real, fake = contest.real, contest.fake
        with torch.no_grad():
            wanted_image = self.image.get_features(real.flatten(0, 1)).mean((2, 3))  # (B T, F)
            wanted_video = self.video(real, contest.latent)["features"]  # (B, T, d)
        with frozen(self):
            features = self.image.get_features(fake.flatten(0, 1))  # (B T, F, h, w)
            score = self.image.score_of(features).mean()
            judged = self.video(fake, contest.latent)
        distance = (features.mean((2, 3)) - wanted_image).abs().mean()
        distance = distance + (judged["features"] - wanted_video).abs().mean()
        return GeneratorLosses(-score, -judged["final_score"].mean(), distance)

    def critic_losses(self, contest: Contest, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Losses of the critics, WGAN-GP for either: mean score of fake - mean score of real + penalty.

        Returns:
            img_disc_loss (what to descend), img_gp (the penalties, unweighted), and the mean scores real_img_score,
            fake_img_score, real_temporal_score, fake_temporal_score, each ().
        """
        contest = contest.detached()
        real, fake, latent = contest.real, contest.fake, contest.latent
        images = self.image(torch.cat([fake, real]).flatten(0, 1)).mean((1, 2, 3))  # (2 B T)
        videos = self.video(torch.cat([fake, real]), torch.cat([latent, latent]))["final_score"]  # (2 B, 1)
        fake_image, real_image = (part.mean() for part in images.chunk(2))
        fake_video, real_video = (part.mean() for part in videos.chunk(2))
        penalty = gradient_penalty(
            lambda x: self.image(x).mean((1, 2, 3)), real.flatten(0, 1), fake.flatten(0, 1), generator
        )
        penalty = penalty + gradient_penalty(lambda x: self.video(x, latent)["final_score"], real, fake, generator)
        loss = fake_image - real_image + fake_video - real_video + self.penalty * penalty
        return {
            "img_disc_loss": loss,
            "img_gp": penalty,
            "real_img_score": real_image,
            "fake_img_score": fake_image,
            "real_temporal_score": real_video,
            "fake_temporal_score": fake_video,
        }
