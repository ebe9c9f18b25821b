"""Image encoder, decoder and mixture head with the calls of the original's documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aime import encoder_decoder

LEVELS = ("C2", "C3", "C4", "C5", "C6")
"""The documents' names of feature levels, finest first."""


class VAEEncoder(encoder_decoder.VAEEncoder):
    """`z_mean, z_logvar = encoder(observations, context)`, of images or of sequences of them."""

    def forward(self, images: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Mean and log variance, (B, D) or (B, T, D) each, of (B, C, H, W) or (B, T, C, H, W)."""
        leading = images.shape[:-3]
        flat = None if context is None else context.reshape(-1, context.shape[-1])
        found = super().forward(images.reshape(-1, *images.shape[-3:]), flat)
        return found.mean.reshape(*leading, -1), 2 * found.log_scale.reshape(*leading, -1)

    @staticmethod
    def reparameterize(mean: Tensor, logvar: Tensor) -> Tensor:
        """A sample, differentiable towards both."""
        return mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)

    def get_unet_skips(
        self, observations: Tensor, levels: Sequence[str] = LEVELS, detach: bool = False
    ) -> dict[str, Tensor]:
        """The trunk's maps (B, F, h, w) of images (B, C, H, W), finest first, by "hxw"; as many as there are levels.

        Decoders here take none: nothing leads around z.
        """
        maps = self.features(observations)
        chosen = maps[: len(levels)]
        return {f"{m.shape[-2]}x{m.shape[-1]}": m.detach() if detach else m for m in chosen}


class MDLHead(nn.Module):
    """`image = head.sample(logit_probs, means, log_scales, coeffs)` of a mixture of logistics with coupled channels."""

    @torch.no_grad()
    def sample(
        self,
        logit_probs: Tensor,
        means: Tensor,
        log_scales: Tensor,
        coeffs: Tensor,
        scale_temp: float = 1.0,
        mode: Literal["sample", "mean"] = "sample",
    ) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1].

        Args:
            logit_probs: (B, M, H, W) of the components.
            means: (B, M, 3, H, W).
            log_scales: (B, M, 3, H, W).
            coeffs: (B, M, 3, H, W), what green takes of red, and blue of red and of green.
            scale_temp: factor on the scales.
            mode: "mean" takes the most probable component's means.
        """
        gumbel = -torch.log(-torch.log(torch.rand_like(logit_probs).clamp(1e-5, 1 - 1e-5)))
        component = (logit_probs + gumbel if mode == "sample" else logit_probs).argmax(1)  # (B, H, W)
        index = component[:, None, None].expand(-1, 1, 3, -1, -1)
        mean, log_scale, coefficient = (x.gather(1, index).squeeze(1) for x in (means, log_scales, coeffs))
        if mode == "sample":
            uniform = torch.rand_like(mean).clamp(1e-5, 1 - 1e-5)
            mean = mean + scale_temp * log_scale.exp() * torch.logit(uniform)  # (B, 3, H, W)
        a, b, c = coefficient.unbind(1)  # (B, H, W) each
        red = mean[:, 0].clamp(-1, 1)
        green = (mean[:, 1] + a * red).clamp(-1, 1)
        blue = (mean[:, 2] + b * red + c * green).clamp(-1, 1)
        return torch.stack([red, green, blue], 1)


class VAEDecoder(encoder_decoder.VAEDecoder):
    """`logit_probs, means, log_scales, coeffs = decoder(z, skips=skips, attention_map=A)`, and `decoder.mdl_head`.

    Args:
        num_mixtures: M, components a pixel.
        image_channels: 3, which the mixture couples.
        names: further arguments.

    Raises:
        ValueError: images of other than 3 channels.
    """

    def __init__(self, *args: Any, num_mixtures: int = 10, image_channels: int = 3, **names: Any) -> None:
        channels = names.pop("reconstruction_channels", image_channels)
        if channels != 3:
            raise ValueError(f"image_channels: expected 3, which the mixture couples, found {channels}")
        super().__init__(*args, output_channels=10 * num_mixtures, **names)
        self.mdl_head = MDLHead()

    def forward(  # type: ignore[override]
        self,
        z: Tensor,
        skips: dict[str, Tensor] | None = None,  # noqa: ARG002
        attention_map: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Parameters of the mixture of every pixel.

        Args:
            z: (B, D).
            skips: not looked at: an image is made of z alone, as in generation, where no frame is there to skip from.
            attention_map: (B, R, R), or (B, S, R, R) of slots, whose sum is taken.

        Returns:
            logits of the components (B, M, H, W), and means, log scales and coefficients, (B, M, 3, H, W) each.
        """
        if attention_map is not None and attention_map.dim() == 4:
            attention_map = attention_map.sum(1)
        if attention_map is not None:
            attention_map = attention_map / attention_map.sum((1, 2), keepdim=True)  # (B, R, R)
        return mixture_parameters(super().forward(z, attention=attention_map))


def mixture_parameters(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a decoder's outputs (B, 10 M, H, W): logits (B, M, H, W), means, log scales, coefficients (B, M, 3, H, W)."""
    mixtures = outputs.shape[1] // 10
    means, log_scales, coefficients = outputs[:, mixtures:].unflatten(1, (mixtures, 3, 3)).unbind(2)
    apart = torch.linspace(-0.1, 0.1, mixtures, device=outputs.device)[:, None, None, None]
    return outputs[:, :mixtures], means + apart, (log_scales - 2.0).clamp_min(-7.0), torch.tanh(coefficients)
