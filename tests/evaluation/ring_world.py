"""A world small enough to be known exactly: a square that the action moves along a ring, and a model that knows it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aime.data import EpisodeSpec, JointSpec, Window

SIDE = 32
SQUARE = 6
BACKGROUND, BODY = 40, 220


def draw(position: np.ndarray) -> np.ndarray:
    """Frames uint8 (..., 3, H, W) of a square whose left edge is at integer ``position`` (...,) modulo the width."""
    inside = (np.arange(SIDE) - position[..., None]) % SIDE < SQUARE  # (..., W)
    rows = (np.arange(SIDE) >= 12) & (np.arange(SIDE) < 12 + SQUARE)
    mask = inside[..., None, :] & rows[:, None]
    frame = np.where(mask, BODY, BACKGROUND).astype(np.uint8)
    return np.repeat(frame[..., None, :, :], 3, axis=-3)


class RingWorld:
    """An `EpisodeSource` in memory: position += action, modulo the width."""

    def __init__(self, episodes: int = 10, length: int = 40, masks: bool = True, physics: bool = True) -> None:
        generator = np.random.default_rng(0)
        self.spec = EpisodeSpec(
            image_shape=(3, SIDE, SIDE),
            action_size=1,
            domain="ring",
            task="walk",
            joints=(JointSpec("cart", "slide"), JointSpec("turn", "hinge")) if physics else (),
        )
        self.lengths = np.full(episodes, length, dtype=np.int64)
        self.splits: dict[str, Any] | None = None
        self.masks = masks
        self.actions = generator.choice([-2.0, -1.0, 1.0, 2.0], (episodes, length)).astype(np.float32)  # it never rests
        start = generator.integers(0, SIDE, (episodes, 1))
        self.positions = (start + np.cumsum(self.actions, axis=1) - self.actions).astype(np.int64) % SIDE

    def window(self, episode: int, start: int, length: int) -> Window:
        steps = slice(start, start + length)
        position, action = self.positions[episode, steps], self.actions[episode, steps]
        frames = draw(position)
        angle = position * 2 * math.pi / SIDE
        physics = np.stack([position / 10.0, angle, action, action * 2], axis=1).astype(np.float32)
        return Window(
            observations=frames,
            actions=action[:, None],
            rewards=-action,
            continues=np.ones(length, dtype=np.float32),
            body_masks=frames[:, 0] == BODY if self.masks else None,
            physics=physics if self.spec.joints else None,
            episode=episode,
            start=start,
        )


@dataclass(frozen=True)
class RingState:
    """(B, T, ...) or (B, ...); ``hidden`` has absorbed the action: position of the next frame and the action."""

    hidden: Tensor
    latent: Tensor
    memory: None = None

    def at(self, time: int) -> RingState:
        return RingState(self.hidden[:, time], self.latent[:, time])

    def flatten_time(self) -> RingState:
        return RingState(self.hidden.flatten(0, 1), self.latent.flatten(0, 1))


@dataclass(frozen=True)
class RingPrior:
    log_pi: Tensor
    means: Tensor
    log_scales: Tensor


@dataclass(frozen=True)
class RingConfig:
    image_shape: tuple[int, int, int] = (3, SIDE, SIDE)
    action_size: int = 1
    num_codes: int = SIDE


class RingModel(nn.Module):
    """Knows the ring exactly. ``late`` makes imagination one frame late; ``noise`` blurs single rollouts."""

    def __init__(self, late: bool = False, noise: float = 0.0, bare: bool = False) -> None:
        super().__init__()
        self.late, self.noise, self.bare = late, noise, bare
        self.config = RingConfig()
        self.unused = nn.Parameter(torch.zeros(3))

    @staticmethod
    def locate(frames: Tensor) -> Tensor:
        """Left edge of the square in uint8 frames (..., 3, H, W)."""
        bright = frames[..., 0, 14, :] > 128
        return (bright & ~bright.roll(1, -1)).float().argmax(-1)

    @staticmethod
    def render(position: Tensor) -> Tensor:
        frames = draw(position.round().long().cpu().numpy())
        return torch.from_numpy(frames).float() / 127.5 - 1.0

    def observe(self, observations: Tensor, actions: Tensor, state: None = None, *, generator: Any = None) -> RingState:
        position = self.locate(observations).float()
        angle = position * 2 * math.pi / SIDE
        following = (position + actions[..., 0]) % SIDE
        return RingState(
            torch.stack([following, actions[..., 0]], -1), torch.stack([position, angle.sin(), angle.cos()], -1)
        )

    def imagine(self, state: RingState, actions: Tensor, horizon: int, *, generator: Any = None) -> dict[str, Tensor]:
        assert actions.shape[1] == horizon
        position = state.hidden[:, 0]
        frames = []
        for k in range(horizon):
            shown = (position + actions[:, k, 0]) % SIDE if self.late else position
            frames.append(self.render(shown))
            position = (position + actions[:, k, 0]) % SIDE
        observations = torch.stack(frames, 1)
        if self.noise:
            draws = torch.randn(observations.shape[:2], generator=generator)
            observations = observations + self.noise * draws[..., None, None, None]
        maps = torch.full((*observations.shape[:2], 4, 4), 1 / 16)
        return {"observations": observations, "rewards": -actions[..., 0], "attention_maps": maps}

    def forward_sequence(self, observations: Tensor, actions: Tensor, *, generator: Any = None) -> dict[str, Any]:
        states = self.observe(observations, actions)
        outputs: dict[str, Any] = {"hidden_states": states.hidden, "latents": states.latent}
        if self.bare:
            return outputs
        batch, length = observations.shape[:2]
        means = torch.stack([states.latent, states.latent + 50.0], -2)  # the first component explains every frame
        maps = torch.rand(batch, length, 4, 4, generator=torch.Generator().manual_seed(0))
        slots = torch.rand(batch, length, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        return outputs | {
            "reconstructions": self.render(states.latent[..., 0]),
            "prior_params": RingPrior(
                torch.full((batch, length, 2), math.log(0.5)), means, torch.zeros(batch, length, 2, 3)
            ),
            "token_ids": states.latent[..., 0].long()[..., None, None].expand(batch, length, 2, 2),
            "attention_maps": maps / maps.sum((-2, -1), keepdim=True),
            "slot_attention_maps": slots / slots.sum(2, keepdim=True),
        }
