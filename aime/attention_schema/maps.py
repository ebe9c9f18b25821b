"""Quantities of attention maps: distributions over the R x R cells of a grid. All of them in float32.

Coordinates are (x, y), x to the right and y down, in cells; cell i covers [i, i + 1), its centre is i + 0.5.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST_MASS = 1e-12


def center_of_mass(maps: Tensor) -> Tensor:
    """Mean position in cells of maps (..., R, R) that sum to 1: (..., 2) as (x, y) in (0, R)."""
    maps = maps.float()
    cells_y, cells_x = (torch.arange(size, device=maps.device, dtype=maps.dtype) + 0.5 for size in maps.shape[-2:])
    x = (maps.sum(-2) * cells_x).sum(-1)
    y = (maps.sum(-1) * cells_y).sum(-1)
    return torch.stack((x, y), -1)


def to_unit_square(centers: Tensor, resolution: int) -> Tensor:
    """Cells (0, R) to image coordinates in (-1, 1)."""
    return centers * (2.0 / resolution) - 1.0


def categorical_kl(maps: Tensor, log_maps: Tensor) -> Tensor:
    """KL(maps || exp(log_maps)) in nats over the cells: (..., R, R), (..., R, R) -> (...)."""
    maps = maps.float()
    return (maps * (maps.clamp_min(SMALLEST_MASS).log() - log_maps.float())).sum((-2, -1))


def attention_dynamics_loss(previous_maps: Tensor, maps: Tensor, movement: Tensor) -> Tensor:
    """Smooth-L1 distance in cells between predicted and observed motion of the centre, summed over x and y.

    No gradient flows into the maps: they should follow the object, not stand still to be predictable.

    Args:
        previous_maps: (..., R, R), before the motion.
        maps: (..., R, R), after it.
        movement: (..., 2), predicted (x, y) in cells.

    Returns:
        (...).
    """
    observed = center_of_mass(maps.detach()) - center_of_mass(previous_maps.detach())
    return F.smooth_l1_loss(movement.float(), observed, reduction="none").sum(-1)


def slot_diversity_loss(slot_maps: Tensor) -> Tensor:
    """Mean squared cosine between the maps of different slots: 0 when disjoint, 1 when equal. (..., S, R, R) -> (...).

    Zero for a single slot.
    """
    flat = F.normalize(slot_maps.float().flatten(-2), dim=-1)  # (..., S, R * R), cosine geometry of densities
    gram = flat @ flat.transpose(-1, -2)  # (..., S, S)
    slots = gram.shape[-1]
    off_diagonal = gram.square().sum((-2, -1)) - gram.diagonal(dim1=-2, dim2=-1).square().sum(-1)
    return off_diagonal / max(slots * (slots - 1), 1)


def precision_weights(maps: Tensor, size: tuple[int, int], floor: float = 0.2) -> Tensor:
    """Weights of pixel errors from attention: mean 1, never below `floor`, no gradient into the map.

    Without the floor the model could switch its errors off; without the stop-gradient it could move attention to where
    the errors are small.

    Args:
        maps: (..., R, R), each sums to 1.
        size: (H, W) of the image.
        floor: smallest weight, in [0, 1].

    Returns:
        (..., H, W).

    Raises:
        ValueError: `floor` outside [0, 1].
    """
    if not 0 <= floor <= 1:
        raise ValueError(f"floor: expected in [0, 1], found {floor}")
    density = maps.detach().float().flatten(0, -3).unsqueeze(1) if maps.dim() > 2 else maps.detach().float()[None, None]
    upsampled = F.interpolate(density, size, mode="bilinear", align_corners=False)
    relative = upsampled / upsampled.mean((-2, -1), keepdim=True).clamp_min(SMALLEST_MASS)
    return (floor + (1 - floor) * relative).reshape(*maps.shape[:-2], *size)
