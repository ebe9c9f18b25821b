"""What validation shows: held-out windows beside their reconstruction, an open-loop rollout and the attention map."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aime.data import Batch
from aime.nn import images_to_float, images_to_uint8
from aime.training.protocol import SequenceModel

ENLARGED = 2
"""Each pixel is drawn as so many along each side."""


@dataclass(frozen=True)
class Pictures:
    """Films by name, each (N, T, C, H, W) uint8."""

    films: dict[str, Tensor]


@torch.no_grad()
def draw(model: SequenceModel, batch: Batch, count: int, seed: int = 0) -> Pictures:
    """Films of the first windows of a batch.

    Random numbers come from a generator of its own: drawing changes nothing of a run.

    Args:
        model: what its outputs do not hold is left out.
        batch: held-out windows (B, T, ...).
        count: windows.
        seed: of latents.

    Returns:
        rollout: truth | reconstruction | open loop from the middle of the window on, side by side;
        attention: truth | truth under the attention map. Empty where the model gives neither.
    """
    frames, actions = batch.observations[:count], batch.actions[:count]
    generator = torch.Generator(frames.device).manual_seed(seed)
    before = model.training
    model.eval()
    try:
        _, outputs = model.compute_total_loss(frames, actions, None, None, beta=1.0, generator=generator)
        rolled = roll_out(model, frames, actions, generator)
    finally:
        model.train(before)
    truth = images_to_float(frames)  # (n, T, C, H, W) in [-1, 1]
    films: dict[str, Tensor] = {}
    panels = [truth]
    if "reconstructions" in outputs:
        panels.append(outputs["reconstructions"].float())
    if rolled is not None:
        panels.append(rolled)
    if len(panels) > 1:
        films["rollout"] = side_by_side(panels)
    if "attention_maps" in outputs:
        films["attention"] = side_by_side([truth, under_map(truth, outputs["attention_maps"].float())])
    return Pictures(films)


def roll_out(model: Any, frames: Tensor, actions: Tensor, generator: torch.Generator) -> Tensor | None:
    """The first half of the frames as it is, the rest imagined (n, T, C, H, W); None where a model cannot imagine."""
    seen = frames.shape[1] // 2
    if seen == 0 or not (hasattr(model, "observe") and hasattr(model, "imagine")):
        return None
    states = model.observe(frames[:, :seen], actions[:, :seen], generator=generator)
    imagined = model.imagine(states.at(-1), actions[:, seen:], generator=generator)["observations"]  # (n, T', C, H, W)
    return torch.cat([images_to_float(frames[:, :seen]), imagined.float()], 1)


def under_map(images: Tensor, maps: Tensor) -> Tensor:
    """Images (n, T, C, H, W) in [-1, 1], dark where a map (n, T, R, R) is small beside its largest value."""
    height, width = images.shape[-2:]
    share = maps / maps.amax((-2, -1), keepdim=True).clamp_min(1e-12)
    share = F.interpolate(share.flatten(0, 1)[:, None], (height, width), mode="bilinear", align_corners=False)
    light = 0.25 + 0.75 * share.unflatten(0, images.shape[:2])  # (n, T, 1, H, W)
    seen: Tensor = (images + 1.0) * light - 1.0
    return seen


def side_by_side(panels: list[Tensor]) -> Tensor:
    """Panels (n, T, C, H, W) in [-1, 1] to one film (n, T, C, 2 H, 2 W panels) uint8."""
    film = images_to_uint8(torch.cat(panels, -1))
    return film.repeat_interleave(ENLARGED, -1).repeat_interleave(ENLARGED, -2)


def encode_gif(film: Tensor, milliseconds: int = 125) -> bytes:
    """A film (T, C, H, W) uint8, C of 1 or 3, as an endless GIF; ValueError for other channels."""
    from PIL import Image

    if film.shape[1] not in (1, 3):
        raise ValueError(f"film: expected 1 or 3 channels, found {film.shape[1]}")
    frames = film.permute(0, 2, 3, 1).cpu().numpy()  # (T, H, W, C)
    images = [Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame) for frame in frames]
    into = io.BytesIO()
    images[0].save(into, "GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
    return into.getvalue()
