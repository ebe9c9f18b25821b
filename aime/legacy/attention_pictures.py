"""Pictures of slots over the frames that they attend to, as the original's documents ask for them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PICTURES = ("slot_overlays", "semantic_segmentation", "combined_with_contours")
STRENGTH = 0.6
"""Share of the colour where a slot is strongest."""
MARK = 1
"""Pixels that a centre's mark reaches to each side."""


def slot_pictures(observation: Tensor, maps: Tensor, centers: Tensor, assignments: Tensor) -> dict[str, Tensor]:
    """Frames coloured by slot.

    Args:
        observation: (B, 3, H, W) in [-1, 1].
        maps: (B, S, R, R) slot maps.
        centers: (B, S, 2) as (x, y) in (-1, 1).
        assignments: (B, R, R, S), how much of each cell is each slot's.

    Returns:
        in [-1, 1]: slot_overlays (B * S, 3, H, W), each slot's map over the frame; semantic_segmentation (B, 3, H, W),
        each pixel in the colour of its slot; combined_with_contours (B, 3, H, W), where one slot meets another, and
        the centres.
    """
    batch, slots = maps.shape[:2]
    size = observation.shape[-2:]
    frames = observation.float().clamp(-1, 1)
    colours = slot_colours(slots).to(frames)  # (S, 3)

    peaks = maps.amax((-2, -1), keepdim=True)
    strength = F.interpolate(maps.float() / peaks, size, mode="bilinear", align_corners=False)[
        :, :, None
    ]  # (B,S,1,H,W)
    overlays = torch.lerp(frames[:, None], colours[:, :, None, None].expand(batch, -1, -1, *size), STRENGTH * strength)

    owners = F.interpolate(assignments.argmax(-1)[:, None].float(), size, mode="nearest")[:, 0].long()  # (B, H, W)
    painted = colours[owners].movedim(-1, 1)  # (B, 3, H, W)
    border = torch.zeros_like(owners, dtype=torch.bool)
    border[:, :, 1:] |= owners[:, :, 1:] != owners[:, :, :-1]
    border[:, 1:] |= owners[:, 1:] != owners[:, :-1]
    combined = torch.where(border[:, None], painted, frames)
    for slot in range(slots):
        marked = near(centers[:, slot], size)  # (B, 1, H, W)
        combined = torch.where(marked, colours[slot][:, None, None], combined)
    return dict(zip(PICTURES, (overlays.flatten(0, 1), torch.lerp(frames, painted, STRENGTH), combined), strict=True))


def slot_colours(count: int) -> Tensor:
    """(S, 3) saturated colours in [-1, 1], their hues evenly spaced."""
    hues = torch.arange(count)[:, None] / count  # (S, 1)
    place = (torch.tensor([5.0, 3.0, 1.0]) + 6 * hues) % 6  # (S, 3)
    return 1 - 2 * torch.minimum(place, 4 - place).clamp(0, 1)


def near(centers: Tensor, size: torch.Size) -> Tensor:
    """(B, 1, H, W): whether a pixel is within `MARK` of a centre (B, 2), (x, y) in (-1, 1), along both axes."""
    height, width = size
    scale = centers.new_tensor([width, height])
    pixel = ((centers + 1) / 2 * scale).floor().clamp_min(0).minimum(scale - 1)  # (B, 2)
    columns = (torch.arange(width, device=centers.device) - pixel[:, :1]).abs() <= MARK  # (B, W)
    rows = (torch.arange(height, device=centers.device) - pixel[:, 1:]).abs() <= MARK  # (B, H)
    return (rows[:, :, None] & columns[:, None])[:, None]
