"""Random changes of a batch of windows on the device where it is: shift, zoom, colours. All are off by default.

Every frame of a window is changed alike, so that its motion stays what it was, and masks and ids of bodies follow the
pixels. The few numbers that decide a change are drawn on the CPU: the same generator gives the same change on every
device, and of a batch that several processes share each can take its own rows (`Draws.rows`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from aime.data.window import Batch

ZOOM_AREA = (0.6, 0.85)  # of the frame that a zoom keeps
ZOOM_CORNER = (0.70, 0.85)  # where in it the subject comes to lie, of its side from one of two ends
_CUBIC = -0.75  # parameter of the cubic convolution (Keys 1981), that of torch's and OpenCV's bicubic
_STREAM = 0x5A  # apart from other streams of a run's seed


@dataclass(frozen=True)
class Draws:
    """What is drawn for each of B windows; float32 or int64 on the CPU."""

    shift: Tensor
    """(B, 2) pixels down and to the right"""
    colour: Tensor
    """(B, 3) factors of brightness, contrast and saturation"""
    zoomed: Tensor
    """(B,) bool"""
    side: Tensor
    """(B,) of a zoom's crop, in shares of the frame's"""
    corner: Tensor
    """(B, 2) where the subject is to lie in it, in shares of its side"""

    def rows(self, first: int, every: int) -> Self:
        """Those of rows first, first + every, ... of the batch."""
        values = {field.name: getattr(self, field.name)[first::every] for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **values)


@dataclass(frozen=True)
class Augmentation:
    """Random shift, zoom towards the subject, and colour jitter of whole windows.

    Args:
        shift: pixels that frames are moved by at most, up or down and to either side; what comes in repeats the edge
            (Kostrikov et al. 2021, DrQ).
        jitter: brightness, contrast and saturation are multiplied with factors from 1 - jitter to 1 + jitter.
        zoom: probability that a window is zoomed: a crop of the frames' own proportions, of .6 to .85 of their area, is
            enlarged to the frame by bicubic interpolation, placed so that the subject (the middle of what the body
            masks show over the window, or of the frame without masks) lies near one of its corners, as far as the frame
            reaches.

    Raises:
        ValueError: a value out of its range.

    Example:
        >>> batch = Batch(torch.zeros(2, 3, 3, 8, 8, dtype=torch.uint8), *(torch.zeros(2, 3) for _ in range(3)))
        >>> Augmentation(shift=2, zoom=0.5)(batch, torch.Generator().manual_seed(0)).observations.shape
        torch.Size([2, 3, 3, 8, 8])
    """

    shift: int = 0
    jitter: float = 0.0
    zoom: float = 0.0

    def __post_init__(self) -> None:
        if self.shift < 0 or not 0 <= self.jitter < 1 or not 0 <= self.zoom <= 1:
            raise ValueError(f"expected shift >= 0, jitter in [0, 1) and zoom in [0, 1], found {self}")

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return bool(self.shift or self.jitter or self.zoom)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """What is done to each of `count` windows; every number is drawn whether it is used or not."""
        uniform = torch.rand(count, 9, generator=generator)  # (B, 9)
        low, high = ZOOM_CORNER
        near = low + (high - low) * uniform[:, 5:7]  # (B, 2)
        area = ZOOM_AREA[0] + (ZOOM_AREA[1] - ZOOM_AREA[0]) * uniform[:, 8]  # (B,)
        return Draws(
            shift=(uniform[:, :2] * (2 * self.shift + 1)).long().clamp(max=2 * self.shift) - self.shift,
            colour=1 + self.jitter * (2 * uniform[:, 2:5] - 1),
            zoomed=uniform[:, 7] < self.zoom,
            side=area.sqrt(),
            corner=torch.where(torch.rand(count, 2, generator=generator) < 0.5, near, 1 - near),
        )

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch, changed by what is drawn from the generator, a CPU one."""
        return self.apply(batch, self.draw(len(batch), generator))

    def apply(self, batch: Batch, draws: Draws) -> Batch:
        """The batch, changed by these draws; what is not changed is shared with it.

        Raises:
            ValueError: colour jitter of frames whose channels are not triples of red, green and blue.
        """
        device = batch.observations.device
        moved = {
            field.name: getattr(draws, field.name).to(device, non_blocking=True) for field in dataclasses.fields(draws)
        }
        draws = Draws(**moved)
        if self.zoom:
            batch = _zoom(batch, draws)
        if self.shift:
            batch = _shift(batch, draws.shift)
        if self.jitter:
            batch = dataclasses.replace(batch, observations=_jitter(batch.observations, draws.colour))
        return batch


def batch_generator(seed: int, number: int) -> torch.Generator:
    """The generator of batch `number` of a run: a function of both alone, so that a resumed run draws the same."""
    state = np.random.SeedSequence((seed, number, _STREAM)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


def _take(planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, ..., H', W') of planes (B, ..., H, W): rows (B, H') and columns (B, W') of each window."""
    shape = (len(planes), *[1] * (planes.dim() - 3))
    height, width = rows.shape[1], columns.shape[1]
    inner = planes.shape[1:-2]
    index = rows.view(*shape, height, 1).expand(len(planes), *inner, height, planes.shape[-1])
    picked = planes.gather(-2, index)  # (B, ..., H', W)
    return picked.gather(-1, columns.view(*shape, 1, width).expand(len(planes), *inner, height, width))


def _with_masks(batch: Batch, observations: Tensor, rows: Tensor, columns: Tensor) -> Batch:
    """The batch with new frames, and masks and ids that take these rows (B, H) and columns (B, W)."""
    masks, ids = batch.body_masks, batch.body_ids
    return dataclasses.replace(
        batch,
        observations=observations,
        body_masks=None if masks is None else _take(masks, rows, columns),
        body_ids=None if ids is None else _take(ids, rows, columns),
    )


def _shift(batch: Batch, shift: Tensor) -> Batch:
    """Frames moved by shift (B, 2), edges repeated."""
    indices = []
    for axis, size in enumerate(batch.observations.shape[-2:]):
        steps = torch.arange(size, device=shift.device)
        indices.append((steps - shift[:, axis, None]).clamp(0, size - 1))  # (B, size)
    return _with_masks(batch, _take(batch.observations, *indices), *indices)


def _jitter(frames: Tensor, colour: Tensor) -> Tensor:
    """Frames (B, T, C, H, W) of uint8 with other brightness, contrast and saturation, (B, 3) factors."""
    if frames.shape[2] % 3:
        raise ValueError(f"colour jitter: expected channels in threes (red, green, blue), found {frames.shape[2]}")
    brightness, contrast, saturation = (colour[:, i].view(-1, 1, 1, 1, 1, 1) for i in range(3))
    pixels = frames.float().unflatten(2, (-1, 3)) * brightness  # (B, T, C / 3, 3, H, W)
    weights = torch.tensor([0.299, 0.587, 0.114], device=frames.device).view(3, 1, 1)  # luma of ITU-R BT.601
    mean = (pixels * weights).sum(3, keepdim=True).mean((1, 2, 4, 5), keepdim=True)  # (B, 1, 1, 1, 1, 1)
    pixels = mean + contrast * (pixels - mean)
    grey = (pixels * weights).sum(3, keepdim=True)  # (B, T, C / 3, 1, H, W)
    return _bytes(grey + saturation * (pixels - grey)).flatten(2, 3)  # (B, T, C, H, W)


def _zoom(batch: Batch, draws: Draws) -> Batch:
    """Frames of the windows that are zoomed, their crops enlarged to the frame."""
    centre, pixels = subject_centre(batch), batch.observations.float()  # (B, 2), (B, T, C, H, W)
    nearest = []
    for axis in (0, 1):  # rows, then columns
        size = pixels.shape[axis - 2]
        side = torch.where(draws.zoomed, (draws.side * size).round(), size).long()  # (B,)
        begin = (centre[:, axis] - draws.corner[:, axis] * side).round().long()
        begin = torch.minimum(begin.clamp(min=0), size - side)  # (B,), 0 where the side is the frame's
        pixels = _resampled(pixels, *_cubic_taps(begin, side, size), axis - 2)
        steps = torch.arange(size, device=side.device)
        nearest.append(begin[:, None] + (steps * 2 + 1) * side[:, None] // (2 * size))  # (B, size)
    return _with_masks(batch, _bytes(pixels), *nearest)


def subject_centre(batch: Batch) -> Tensor:
    """(B, 2) row and column: the middle of what masks show, over each window; of the frame where they show nothing."""
    height, width = batch.observations.shape[-2:]
    middle = torch.tensor([height / 2, width / 2], device=batch.observations.device)
    if batch.body_masks is None:
        return middle.expand(len(batch), 2)
    counts = batch.body_masks.float().sum(1)  # (B, H, W)
    total = counts.sum((1, 2))  # (B,)
    places = [torch.arange(size, device=counts.device) + 0.5 for size in (height, width)]
    sums = torch.stack([counts.sum(2) @ places[0], counts.sum(1) @ places[1]], 1)  # (B, 2)
    return torch.where(total[:, None] > 0, sums / total.clamp(min=1)[:, None], middle)


def _cubic_taps(begin: Tensor, side: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Indices and weights (B, 4, size) with which a crop of `side` from `begin` is enlarged to `size` along an axis."""
    place = (torch.arange(size, device=side.device) + 0.5) * (side[:, None] / size) - 0.5  # (B, size)
    floor = place.floor()
    part = place - floor  # (B, size)
    taps, weights = [], []
    for offset in range(-1, 3):
        index = torch.minimum((floor.long() + offset).clamp(min=0), side[:, None] - 1)  # the crop's edge is repeated
        taps.append(begin[:, None] + index)
        weights.append(_cubic((part - offset).abs()))
    return torch.stack(taps, 1), torch.stack(weights, 1)


def _cubic(distance: Tensor) -> Tensor:
    """The kernel of cubic convolution at distances from 0 to 2."""
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, far)


def _resampled(pixels: Tensor, taps: Tensor, weights: Tensor, axis: int) -> Tensor:
    """The sum over four taps (B, 4, size) along the rows (-2) or columns (-1) of pixels (B, T, C, H, W)."""
    shape = [len(pixels), 1, 1, 1, 1]
    shape[axis] = pixels.shape[axis]
    total = torch.zeros_like(pixels)
    for tap in range(4):
        index = taps[:, tap].view(shape).expand_as(pixels)
        total += pixels.gather(axis, index) * weights[:, tap].view(shape)
    return total


def _bytes(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)
