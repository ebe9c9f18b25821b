"""Pictures of what a model makes of frames: reconstructions, and where it looks, as PNG sheets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from aime.data import Batch
from aime.training.protocol import SequenceModel

Picture = NDArray[np.uint8]
GAP, SCALE, GREY = 2, 2, 128
FULL_STRENGTH = 4.0
"""Density, in multiples of an even map's, that is drawn at full strength, unless a map has no place as dense."""
TINT = torch.tensor([255.0, 140.0, 0.0])


@torch.no_grad()
def look(model: SequenceModel, batch: Batch) -> Mapping[str, Any]:
    """Outputs of a model for a batch, in evaluation mode."""
    mode = model.training
    model.eval()
    try:
        inputs = batch.observations, batch.actions, batch.rewards, batch.continues
        _, outputs = model.compute_total_loss(*inputs, beta=1.0)
    finally:
        model.train(mode)
    found: Mapping[str, Any] = outputs
    return found


def to_pixels(images: Tensor) -> Tensor:
    """Images (..., C, H, W) in [-1, 1] -> (..., 3, H, W) in [0, 255]; one channel is repeated, of more three show."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).cpu()
    if pixels.shape[-3] >= 3:
        return pixels[..., :3, :, :]
    return pixels[..., :1, :, :].expand(*pixels.shape[:-3], 3, -1, -1)


def overlaid(pixels: Tensor, maps: Tensor) -> Tensor:
    """Pixels (N, 3, H, W), dim where the map (N, R, R) is low and tinted where it is high -> (N, 3, H, W)."""
    sized = F.interpolate(maps.float().cpu()[:, None], pixels.shape[-2:], mode="bilinear", align_corners=False)
    density = sized / sized.mean((-1, -2), keepdim=True).clamp_min(1e-12)  # (N, 1, H, W), mean 1
    strength = density / density.amax((-1, -2), keepdim=True).clamp_min(FULL_STRENGTH)
    share = 0.6 * strength
    return pixels * (0.4 + 0.6 * strength) * (1 - share) + TINT[:, None, None] * share


def sheet(rows: list[list[Tensor]]) -> Picture:
    """Cells (3, H, W) in rows, enlarged, with grey gaps -> (rows, columns, 3)."""
    lines = []
    for row in rows:
        cells = [F.pad(cell.round().clamp(0, 255), (GAP, GAP, GAP, GAP), value=GREY) for cell in row]
        lines.append(torch.cat(cells, -1))
    picture: Picture = torch.cat(lines, -2).to(torch.uint8).permute(1, 2, 0).numpy()
    return picture.repeat(SCALE, 0).repeat(SCALE, 1)


def results_sheet(outputs: Mapping[str, Any], windows: int = 4) -> Picture:
    """A row a window, its last frame: truth, reconstruction, attention, attention predicted before the frame.

    Args:
        outputs: of a pass in evaluation mode, by the keys of docs/tensor_shapes.md; a column without one is left out.
        windows: rows at most.
    """
    truth = to_pixels(outputs["observations"][:windows, -1])  # (N, 3, H, W)
    columns = [truth]
    if "reconstructions" in outputs:
        columns.append(to_pixels(outputs["reconstructions"][:windows, -1]))
    maps = [name for name in ("attention_maps", "prior_attention_maps") if name in outputs]
    columns += [overlaid(truth, outputs[name][:windows, -1]) for name in maps]
    return sheet([[column[row] for column in columns] for row in range(truth.shape[0])])


def attention_sheet(outputs: Mapping[str, Any], window: int = 0, frames: int = 8) -> Picture:
    """The last frames of one window: the frames, the attention on them, and every slot's share of it, a row each."""
    truth = to_pixels(outputs["observations"][window, -frames:])  # (T, 3, H, W)
    rows = [list(truth), list(overlaid(truth, outputs["attention_maps"][window, -frames:]))]
    slots = outputs["slot_attention_maps"][window, -frames:]  # (T, S, R, R)
    rows += [list(overlaid(truth, slots[:, slot])) for slot in range(slots.shape[1])]
    return sheet(rows)


def write_png(path: Path, picture: Picture) -> Path:
    """Write a picture (H, W, 3); makes the directory."""
    import imageio.v3 as iio

    path.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(path, picture, extension=".png", plugin="pillow")
    return path
