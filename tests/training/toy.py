"""A small model with the world model's training interface, and an in-memory source of episodes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aime.data import EpisodeSpec, Window
from aime.multi_task_learning import LossAggregator, make_balancer

IMAGE_SHAPE = (3, 8, 8)
ACTION_SIZE = 2


@dataclass(frozen=True)
class ToyConfig:
    """Sizes of the toy."""

    hidden: int = 16
    action_size: int = ACTION_SIZE
    image_shape: tuple[int, int, int] = IMAGE_SHAPE

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "image_shape": list(self.image_shape)}


class ToyModel(nn.Module):
    """Reconstructs frames and predicts the next latent. It has whatever makes resuming hard: dropout (global random
    state), sampled latents (the generator), a running buffer, channels-last weights, and balancer state.
    """

    def __init__(self, config: ToyConfig | None = None) -> None:
        super().__init__()
        self.config = config or ToyConfig()
        size = self.config.hidden
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(64, size))
        self.dropout = nn.Dropout(0.1)
        self.decoder = nn.Linear(size, 3 * 64)
        self.dynamics = nn.Linear(size + self.config.action_size, size)
        self.tokenizer = nn.Linear(size, 4)
        self.register_buffer("mean_image", torch.zeros(self.config.image_shape))
        self.register_buffer("running", torch.zeros(size))
        self.optimizer: torch.optim.Optimizer | None = None
        self.rgb_optimizer: Any = None
        self.poison_from: int | None = None  # step from which losses are NaN
        self.calls = 0
        self.to(memory_format=torch.channels_last)

    def configure_optimizer(self, learning_rate: float, weight_decay: float, balancer: str, **options: Any) -> None:
        """Two groups with rates of their own."""
        groups = [
            {"params": list(self.encoder.parameters()), "lr": 2 * learning_rate},
            {"params": [p for n, p in self.named_parameters() if not n.startswith("encoder")], "lr": learning_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)
        self.rgb_optimizer = make_balancer(balancer, **options)

    def initialise_from_data(self, frames: Tensor, generator: torch.Generator | None = None) -> None:
        """Mean image."""
        assert frames.dtype == torch.uint8 and frames.shape[1:] == IMAGE_SHAPE
        self.mean_image.copy_(frames.float().mean(0) / 127.5 - 1)

    def forward_sequence(self, observations: Tensor, actions: Tensor, generator: Any) -> dict[str, Tensor]:
        """Losses per frame."""
        x = observations.float() / 127.5 - 1
        batch, length = x.shape[:2]
        centred = (x - self.mean_image).flatten(0, 1)
        mean = self.encoder(centred.contiguous(memory_format=torch.channels_last)).unflatten(0, (batch, length))
        z = self.dropout(mean) + 0.1 * torch.randn(mean.shape, generator=generator, device=mean.device)
        reconstruction = self.decoder(z).view(x.shape) + self.mean_image
        predicted = self.dynamics(torch.cat([z, actions], -1))[:, :-1]
        tokens = self.tokenizer(z)
        return {
            "reconstruction_losses": (reconstruction - x).square().mean((0, 2, 3, 4)),
            "kl_latents": mean.square().mean((0, 2)) * 0.1,
            "perceiver_total_loss": nn.functional.cross_entropy(
                tokens.flatten(0, 1), (x.mean((2, 3, 4)) > 0).long().flatten()
            ),
            "attention_dynamics_loss": (predicted - z[:, 1:].detach()).square().mean(),
            "latents": z,
        }

    def compute_total_loss(self, observations, actions, rewards, continues, *, beta, generator=None, **weights):
        """Losses and outputs."""
        outputs = self.forward_sequence(observations, actions, generator)
        return LossAggregator().compute_losses(outputs, beta=beta, **weights)[0], outputs

    def training_step_sequence(
        self, observations, actions, rewards, continues, *, beta, grad_clip, autocast=None, generator=None, **weights
    ) -> dict[str, Tensor]:
        """As the world model's."""
        self.calls += 1
        outputs = self.forward_sequence(observations, actions, generator)
        if self.poison_from is not None and self.calls >= self.poison_from:
            outputs["reconstruction_losses"] = outputs["reconstruction_losses"] * float("nan")
        losses, tasks = LossAggregator().compute_losses(outputs, beta=beta, **weights)
        step = self.rgb_optimizer.backward(tasks, self.parameters(), max_norm=grad_clip)
        self.optimizer.found_inf, self.optimizer.grad_scale = 1 - step.finite.float(), None
        self.optimizer.step()
        self.running.lerp_(outputs["latents"].detach().mean((0, 1)), 0.1)
        return {**{k: v.detach() for k, v in losses.items()}, "grad_norm": step.grad_norm, "finite": step.finite}

    def save_pretrained(self, directory: str | Path) -> None:
        """Configuration and weights."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / "config.json").write_text(json.dumps(self.config.to_dict()))
        np.savez(Path(directory) / "model.npz", **{k: v.numpy() for k, v in self.state_dict().items()})


class ToySource:
    """Episodes of a moving bright square, in memory."""

    def __init__(self, episodes: int = 10, length: int = 20, action_size: int = ACTION_SIZE) -> None:
        self.spec = EpisodeSpec(image_shape=IMAGE_SHAPE, action_size=action_size, domain="toy", task="square")
        self.lengths = np.full(episodes, length, np.int64)
        rng = np.random.default_rng(0)
        self.actions = rng.uniform(-1, 1, (episodes, length, action_size)).astype(np.float32)
        self.frames = np.full((episodes, length, *IMAGE_SHAPE), 40, np.uint8)
        for episode in range(episodes):
            for time in range(length):
                row, column = (episode + time) % 6, (2 * time) % 6
                self.frames[episode, time, :, row : row + 2, column : column + 2] = 220

    def window(self, episode: int, start: int, length: int) -> Window:
        """A window."""
        steps = slice(start, start + length)
        return Window(
            self.frames[episode, steps],
            self.actions[episode, steps],
            np.ones(length, np.float32),
            np.ones(length, np.float32),
            episode=episode,
            start=start,
        )


def make_model(seed: int = 0) -> ToyModel:
    """A seeded toy."""
    torch.manual_seed(seed)
    return ToyModel()
