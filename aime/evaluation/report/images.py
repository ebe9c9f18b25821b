"""Frames as PNG and GIF data URIs, heat maps and overlays."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ERROR_CEILING = 96.0
"""Mean absolute error (of 255) that is drawn in the brightest colour of an error map."""

FULL_ATTENTION = 4.0

_HEAT_ANCHORS = np.array(
    [
        [0, 0, 4],
        [40, 11, 84],
        [101, 21, 110],
        [159, 42, 99],
        [212, 72, 66],
        [245, 125, 21],
        [250, 193, 39],
        [252, 255, 164],
    ]
)  # the inferno map at eight even steps
_SLOT_COLORS = np.array(
    [
        [37, 99, 235],
        [234, 88, 12],
        [22, 163, 74],
        [147, 51, 234],
        [219, 39, 119],
        [13, 148, 136],
        [202, 138, 4],
        [100, 116, 139],
    ]
)


def heat(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] (...,) -> colours uint8 (..., 3)."""
    position = np.clip(values, 0.0, 1.0) * (len(_HEAT_ANCHORS) - 1)
    below = np.minimum(position.astype(int), len(_HEAT_ANCHORS) - 2)
    share = (position - below)[..., None]
    colors = _HEAT_ANCHORS[below] * (1.0 - share) + _HEAT_ANCHORS[below + 1] * share
    return np.asarray(colors.round(), dtype=np.uint8)


def to_image(frame: Tensor) -> np.ndarray:
    """(..., C, H, W) on [0, 255] -> uint8 (..., H, W, 3); one channel is repeated, of more the first three show."""
    frame = frame.float().clamp(0, 255).round().to(torch.uint8).movedim(-3, -1)
    if frame.shape[-1] < 3:
        frame = frame[..., :1].expand(*frame.shape[:-1], 3)
    return np.asarray(frame[..., :3].contiguous().numpy())


def error_map(prediction: Tensor, target: Tensor) -> np.ndarray:
    """Mean absolute error over channels of (..., C, H, W) frames as a heat map uint8 (..., H, W, 3)."""
    error = (prediction.float().clamp(0, 255) - target.float()).abs().mean(-3)
    return heat((error / ERROR_CEILING).numpy())


def resize_maps(maps: Tensor, height: int, width: int) -> np.ndarray:
    """(..., R, R) -> (..., H, W) float32, bilinear."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:]).float()
    sized = torch.nn.functional.interpolate(flat, (height, width), mode="bilinear", align_corners=False)
    result: np.ndarray = sized.reshape(*maps.shape[:-2], height, width).numpy()
    return result


def attention_overlay(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """A frame (H, W, 3) dimmed where the map (H, W) is low and tinted where it is high.

    Full strength is ``FULL_ATTENTION`` times the density of a uniform map, or its own peak where that is higher, so
    that a map that looks everywhere alike is seen to do so.
    """
    density = attention / max(float(attention.mean()), 1e-12)
    strength = density / max(float(density.max()), FULL_ATTENTION)
    tint = heat(0.25 + 0.75 * strength).astype(np.float32)
    share = (0.75 * strength)[..., None]
    mixed: np.ndarray = (image * (1 - share) * (0.5 + 0.5 * strength[..., None]) + tint * share).clip(0, 255)
    return mixed.astype(np.uint8)


def slot_overlay(image: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """A frame (H, W, 3) coloured by the slot (S, H, W) with the largest relative density at each pixel."""
    density = slots / np.maximum(slots.sum((1, 2), keepdims=True), 1e-12)
    colors = _SLOT_COLORS[density.argmax(0) % len(_SLOT_COLORS)]
    mixed: np.ndarray = (0.55 * image + 0.45 * colors).clip(0, 255)
    return mixed.astype(np.uint8)


def side_by_side(panels: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Panels (T, H, W, 3) next to one another with a grey gap: (T, H, W', 3)."""
    spacer = np.full((*panels[0].shape[:2], gap, 3), 128, dtype=np.uint8)
    parts: list[np.ndarray] = []
    for panel in panels:
        parts += [panel, spacer]
    return np.concatenate(parts[:-1], axis=2)


def with_progress(frames: np.ndarray, context: int, thickness: int = 2) -> np.ndarray:
    """Add a bar under (T, H, W, 3) frames: how far the clip is, grey while observed, blue while imagined."""
    length, _, width, _ = frames.shape
    bar = np.full((length, thickness, width, 3), 40, dtype=np.uint8)
    edge = round(width * context / length)
    for t in range(length):
        reached = round(width * (t + 1) / length)
        bar[t, :, : min(reached, edge)] = (150, 150, 150)
        bar[t, :, edge:reached] = (37, 99, 235)
    return np.concatenate([frames, bar], axis=1)


def enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    """Nearest-neighbour enlargement of (..., H, W, 3)."""
    return frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def encode(frames: np.ndarray, extension: str, frames_per_second: float = 12.0) -> bytes:
    """PNG of (H, W, 3) or endless GIF of (T, H, W, 3)."""
    import imageio.v3 as iio

    if extension == ".png":
        return bytes(iio.imwrite("<bytes>", frames, extension=".png", plugin="pillow"))
    duration = 1000.0 / frames_per_second
    return bytes(iio.imwrite("<bytes>", frames, extension=".gif", plugin="pillow", duration=duration, loop=0))


def data_uri(frames: np.ndarray, extension: str = ".png", frames_per_second: float = 12.0) -> str:
    """An image that needs no file beside the page."""
    payload = base64.b64encode(encode(frames, extension, frames_per_second)).decode("ascii")
    return f"data:image/{extension[1:]};base64,{payload}"


def write_video(path: Path, frames: np.ndarray, frames_per_second: float = 12.0) -> None:
    """Write (T, H, W, 3) uint8 as GIF or MP4, by the suffix of ``path``.

    Raises:
        ValueError: for another suffix.
        ModuleNotFoundError: for MP4 without PyAV (``pip install av``).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        path.write_bytes(encode(frames, ".gif", frames_per_second))
        return
    if path.suffix != ".mp4":
        raise ValueError(f"expected an output path that ends in .gif or .mp4, found {path.name!r}")
    from importlib.util import find_spec

    if find_spec("av") is None:
        raise ModuleNotFoundError("writing MP4 needs PyAV: pip install av (a .gif path needs nothing more)")
    import imageio.v3 as iio

    even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]  # H.264 wants even sides
    iio.imwrite(path, even, plugin="pyav", codec="libx264", fps=round(frames_per_second))
