"""Random changes of batches: what they keep, what they equal, and what decides them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aime.data import Augmentation, Batch
from aime.data.augmentation import ZOOM_AREA, Draws, batch_generator, subject_centre

B, T, SIDE = 6, 3, 20


def make_batch(seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (B, T, 3, *size), generator=generator, dtype=torch.uint8)
    ids = torch.zeros(B, T, *size, dtype=torch.uint8)
    for window in range(B):  # a body of 3 x 3 pixels somewhere in each window
        ids[window, :, window : window + 3, 9 : 9 + 3] = window + 1
    return Batch(frames, torch.zeros(B, T, 2), torch.zeros(B, T), torch.ones(B, T), body_masks=ids > 0, body_ids=ids)


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_does_nothing_unless_asked() -> None:
    batch = make_batch()
    assert not Augmentation().active
    assert Augmentation()(batch, generator()) is batch


def test_a_shift_keeps_the_pixels_and_their_masks() -> None:
    """Inside, every pixel is the one that lay `shift` away, in every frame; outside, the nearest edge's."""
    batch, augmentation = make_batch(), Augmentation(shift=4)
    draws = augmentation.draw(B, generator())
    moved = augmentation.apply(batch, draws)
    assert moved.body_ids is not None and moved.body_masks is not None and batch.body_ids is not None
    assert draws.shift.abs().max() <= 4 and len(draws.shift.unique(dim=0)) > 2
    for window, (down, right) in enumerate(draws.shift.tolist()):
        for row in range(SIDE):
            for column in range(SIDE):
                y, x = min(max(row - down, 0), SIDE - 1), min(max(column - right, 0), SIDE - 1)
                assert torch.equal(moved.observations[window, ..., row, column], batch.observations[window, ..., y, x])
                assert torch.equal(moved.body_ids[window, :, row, column], batch.body_ids[window, :, y, x])
    assert torch.equal(moved.body_masks, moved.body_ids > 0)
    assert moved.actions is batch.actions


def test_every_shift_is_as_likely() -> None:
    shifts = Augmentation(shift=1).draw(9000, generator()).shift
    values, counts = shifts.unique(return_counts=True, dim=0)
    assert len(values) == 9 and counts.min() > 850 and counts.max() < 1150  # 1000 each, a deviation of 30


@pytest.mark.parametrize("size", [(20, 20), (24, 16)])
def test_a_zoom_is_the_plain_crop_enlarged(size: tuple[int, int]) -> None:
    """Against torch's bicubic interpolation of each window's crop, one after the other on the CPU."""
    batch, augmentation = make_batch(size=size), Augmentation(zoom=0.7)
    draws = augmentation.draw(B, generator(1))
    zoomed = augmentation.apply(batch, draws)
    assert zoomed.body_ids is not None and batch.body_ids is not None
    centre = subject_centre(batch)
    assert 0 < int(draws.zoomed.sum()) < B
    for window in range(B):
        frames, ids = batch.observations[window], batch.body_ids[window]
        if draws.zoomed[window]:
            sides = [round(float(draws.side[window]) * length) for length in size]
            places = []
            for axis, (side, length) in enumerate(zip(sides, size, strict=True)):
                begin = round(float(centre[window, axis]) - float(draws.corner[window, axis]) * side)
                places.append(slice(max(0, min(begin, length - side)), max(0, min(begin, length - side)) + side))
            frames, ids = frames[..., places[0], places[1]], ids[..., places[0], places[1]]
        expected = F.interpolate(frames.float(), size, mode="bicubic", align_corners=False).round().clamp(0, 255)
        # torch sums the sixteen taps in another order: halves may round the other way
        difference = (zoomed.observations[window].float() - expected).abs()
        assert difference.max() <= 1 and (difference > 0).float().mean() < 0.002
        nearest = F.interpolate(ids[None].float(), size, mode="nearest-exact")[0]
        assert torch.equal(zoomed.body_ids[window].float(), nearest)
        if not draws.zoomed[window]:
            assert torch.equal(zoomed.observations[window], batch.observations[window])


def test_a_zoom_brings_the_subject_near_a_corner() -> None:
    """A body in the middle of a large frame, where no border is in the way."""
    frames = torch.zeros(200, 1, 3, 100, 100, dtype=torch.uint8)
    masks = torch.zeros(200, 1, 100, 100, dtype=torch.bool)
    masks[..., 48:52, 48:52] = True
    batch = Batch(frames, torch.zeros(200, 1, 1), torch.zeros(200, 1), torch.ones(200, 1), body_masks=masks)
    augmentation = Augmentation(zoom=1.0)
    draws = augmentation.draw(200, generator())
    share = draws.side**2
    assert share.min() >= ZOOM_AREA[0] - 1e-6 and share.max() <= ZOOM_AREA[1] + 1e-6
    zoomed = augmentation.apply(batch, draws)
    centre = subject_centre(zoomed) / 100
    away = (centre - 0.5).abs()
    # the crop cannot leave the frame: a side of .77 to .92 lets the middle come to .5 / side of it at the least
    reach = torch.minimum(draws.corner.sub(0.5).abs(), (1 - 0.5 / draws.side[:, None] - 0.5).abs())
    assert (away - reach).abs().max() < 0.03
    corners = {(bool(row > 0.5), bool(column > 0.5)) for row, column in centre.tolist()}
    assert len(corners) == 4
    assert torch.equal(subject_centre(dataclasses.replace(batch, body_masks=None)), torch.full((200, 2), 50.0))


def test_colours_change_alike_in_a_window_and_stay_what_they_are_at_1() -> None:
    batch, augmentation = make_batch(), Augmentation(jitter=0.3)
    draws = augmentation.draw(B, generator())
    assert draws.colour.min() >= 0.7 and draws.colour.max() <= 1.3
    same = dataclasses.replace(draws, colour=torch.ones(B, 3))
    assert torch.equal(augmentation.apply(batch, same).observations, batch.observations)
    brighter = dataclasses.replace(draws, colour=torch.tensor([[1.3, 1.0, 1.0]]).expand(B, 3))
    expected = (batch.observations.float() * 1.3).round().clamp(0, 255)
    assert (augmentation.apply(batch, brighter).observations.float() - expected).abs().max() <= 1
    grey = dataclasses.replace(draws, colour=torch.tensor([[1.0, 1.0, 0.0]]).expand(B, 3))
    pixels = augmentation.apply(batch, grey).observations
    assert torch.equal(pixels[:, :, 0], pixels[:, :, 1]) and torch.equal(pixels[:, :, 1], pixels[:, :, 2])
    flat = dataclasses.replace(draws, colour=torch.tensor([[1.0, 0.0, 1.0]]).expand(B, 3))
    pixels = augmentation.apply(batch, flat).observations
    assert pixels.flatten(1).unique(dim=1).shape[1] == 1  # one value a window, the mean of its frames
    still = dataclasses.replace(batch, observations=batch.observations[:, :1].expand(B, T, 3, SIDE, SIDE))
    out = augmentation.apply(still, draws).observations
    assert torch.equal(out[:, 0], out[:, 1]) and not torch.equal(out, still.observations)
    with pytest.raises(ValueError, match="expected channels in threes .*, found 4"):
        augmentation(dataclasses.replace(batch, observations=torch.zeros(B, T, 4, 8, 8)), generator())


def test_the_generator_decides() -> None:
    batch, augmentation = make_batch(), Augmentation(shift=3, jitter=0.2, zoom=0.5)

    def changed(source: torch.Generator) -> Tensor:
        return augmentation(batch, source).observations

    assert torch.equal(changed(generator(5)), changed(generator(5)))
    assert not torch.equal(changed(generator(5)), changed(generator(6)))
    assert torch.equal(changed(batch_generator(1, 7)), changed(batch_generator(1, 7)))
    different = {
        tuple(changed(batch_generator(seed, number)).flatten().tolist()) for seed in (1, 2) for number in (0, 1)
    }
    assert len(different) == 4


def test_two_processes_change_their_rows_as_one_would() -> None:
    batch, augmentation = make_batch(), Augmentation(shift=3, jitter=0.2, zoom=0.5)
    draws: Draws = augmentation.draw(B, generator())
    whole = augmentation.apply(batch, draws).observations
    for rank in range(2):
        part = dataclasses.replace(
            batch,
            **{
                field.name: value[rank::2]
                for field in dataclasses.fields(batch)
                if (value := getattr(batch, field.name)) is not None
            },
        )
        assert torch.equal(augmentation.apply(part, draws.rows(rank, 2)).observations, whole[rank::2])


@pytest.mark.parametrize("values", [{"shift": -1}, {"jitter": 1.0}, {"zoom": 1.5}])
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected shift >= 0, jitter in"):
        Augmentation(**values)  # type: ignore[arg-type]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_changes_nothing() -> None:
    batch, augmentation = make_batch(), Augmentation(shift=3, jitter=0.2, zoom=0.5)
    here = augmentation(batch, generator()).observations
    there = augmentation(batch.to("cuda"), generator()).observations.cpu()
    difference = (here.float() - there.float()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.002
