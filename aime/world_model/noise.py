"""Every random number of one pass over a sequence, drawn ahead, so that two implementations can be compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aime.ranks import Ranks
from aime.world_model.config import WorldModelConfig


@dataclass(frozen=True)
class SequenceNoise:
    """Noise of one pass.

    Attributes:
        latent: (B, T, D) standard normal, of the posterior sample z_t.
        sticks: (B, T, K - 1) uniform, of the prior's sticks.
        kl: (S, B, T, D) standard normal, of the Monte-Carlo KL.
    """

    latent: Tensor
    sticks: Tensor
    kl: Tensor

    @staticmethod
    def draw(
        config: WorldModelConfig,
        batch: int,
        frames: int,
        like: Tensor,
        generator: torch.Generator | None = None,
        ranks: Ranks | None = None,
    ) -> SequenceNoise:
        """Noise for B sequences of T frames, on the device and of the dtype of ``like``.

        With ``ranks`` every process draws that of the global batch and takes its own rows: each sequence gets what it
        would get from one process, and the generators of all ranks stay alike.
        """
        if ranks is not None:
            everyone = SequenceNoise.draw(config, batch * ranks.size, frames, like, generator)
            return SequenceNoise(ranks.own(everyone.latent), ranks.own(everyone.sticks), ranks.own(everyone.kl, 1))
        device, dtype = like.device, like.dtype

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, generator=generator).to(dtype)

        uniform = torch.rand(batch, frames, config.max_components - 1, device=device, generator=generator)
        return SequenceNoise(
            normal(batch, frames, config.latent_dim),
            uniform.clamp(2**-24, 1.0 - 2**-24),
            normal(config.kl_samples, batch, frames, config.latent_dim),
        )

    def at(self, start: int, stop: int) -> SequenceNoise:
        """Noise of frames start..stop - 1."""
        return SequenceNoise(self.latent[:, start:stop], self.sticks[:, start:stop], self.kl[:, :, start:stop])
