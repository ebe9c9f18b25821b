"""Small world models and batches for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig

SMALL = {
    "image_size": 32,
    "action_size": 2,
    "latent_dim": 6,
    "hidden_dim": 24,
    "context_dim": 12,
    "max_components": 4,
    "prior_hidden_dim": 16,
    "kl_samples": 2,
    "num_latents": 4,
    "latent_channels": 16,
    "perceiver_layers": 2,
    "perceiver_heads": 2,
    "context_window": 3,
    "num_codes": 16,
    "code_dim": 8,
    "downsample": 8,
    "tokenizer_channels": 8,
    "encoder_channels": (8, 16, 16),
    "decoder_channels": (16, 16, 8),
    "cells_per_level": 1,
    "mlp_hidden_dim": 16,
    "squeeze_excitation": False,
    "likelihood": "gaussian",
    "num_slots": 3,
    "slot_iterations": 2,
    "attention_resolution": 8,
    "attention_channels": 16,
    "attention_prior_channels": 8,
    "gram_frames": 0,
}


@dataclass(frozen=True)
class Sequences:
    """Random sequences."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    continues: Tensor

    @property
    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.observations, self.actions, self.rewards, self.continues


def small_model(**options: object) -> DPGMMVariationalRecurrentAutoencoder:
    """A small model with every part of it away from its neutral initialisation."""
    torch.manual_seed(0)
    model = DPGMMVariationalRecurrentAutoencoder(WorldModelConfig.from_names(**(SMALL | options)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
        model.mean_image.copy_(0.1 * torch.randn(model.mean_image.shape, generator=generator))
        model.pixel_spread.copy_(0.5 + torch.rand(model.pixel_spread.shape, generator=generator))
    return model.eval()


def sequences(
    frames: int, batch: int = 2, size: int = 32, actions: int = 2, channels: int = 3, seed: int = 0
) -> Sequences:
    """Random sequences of a given length."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, frames, channels, size, size)
    return Sequences(
        torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        torch.randn(batch, frames, actions, generator=generator),
        torch.rand(batch, frames, generator=generator),
        (torch.rand(batch, frames, generator=generator) > 0.1).float(),
    )


@pytest.fixture
def model() -> DPGMMVariationalRecurrentAutoencoder:
    return small_model()
