"""Slots and the posterior map: distributions that can be sharp, every frame by itself."""

import pytest
import torch

from aime.attention_schema import AttentionPosterior, SlotAttention, center_of_mass


def make_posterior(image_size: int = 32, resolution: int = 8, slots: int = 4) -> AttentionPosterior:
    torch.manual_seed(0)
    return AttentionPosterior(image_size, resolution, 6, 5, 3, 16, slots, pyramid_channels=(8, 12))


def test_assignment_sums_to_one_over_slots_and_ignores_the_order_of_inputs() -> None:
    torch.manual_seed(0)
    attention = SlotAttention(4, 6, 8)
    x, seeds = torch.randn(2, 30, 6), torch.randn(2, 4, 8)
    slots, assignment = attention(x, seeds)
    assert torch.allclose(assignment.sum(1), torch.ones(2, 30), atol=1e-6)
    order = torch.randperm(30)
    shuffled_slots, shuffled = attention(x[:, order], seeds)
    assert torch.allclose(shuffled_slots, slots, atol=1e-5)
    assert torch.allclose(shuffled, assignment[:, :, order], atol=1e-5)
    with pytest.raises(ValueError, match=r"seed_slots: expected \(2, 4, 8\), found \(2, 3, 8\)"):
        attention(x, seeds[:, :3])
    with pytest.raises(ValueError, match="in_dim=6"):
        attention(torch.randn(2, 30, 7))


def test_slots_start_distinct() -> None:
    torch.manual_seed(0)
    _, assignment = SlotAttention(4, 6, 8)(torch.randn(1, 30, 6))
    assert torch.pdist(assignment[0]).min() > 0.1


def test_number_of_inputs_does_not_scale_the_update() -> None:
    """A weighted mean over positions: every input twice changes nothing."""
    torch.manual_seed(0)
    attention, x = SlotAttention(3, 6, 8), torch.randn(2, 20, 6)
    assert torch.allclose(attention(x)[0], attention(torch.cat((x, x), 1))[0], atol=1e-5)


@pytest.mark.parametrize(
    ("image_size", "resolution", "height", "width"),
    [(64, 16, 64, 64), (64, 8, 64, 64), (84, 21, 84, 84), (64, 21, 64, 64), (32, 8, 32, 48), (64, 16, 50, 37)],
)
def test_maps_are_distributions_for_any_size(image_size: int, resolution: int, height: int, width: int) -> None:
    posterior = make_posterior(image_size, resolution)
    output = posterior(torch.rand(2, 3, height, width) * 2 - 1, torch.randn(2, 6), torch.randn(2, 5))
    assert output.map.shape == (2, resolution, resolution)
    assert output.slot_maps.shape == (2, 4, resolution, resolution)
    assert torch.allclose(output.map.sum((-2, -1)), torch.ones(2), atol=1e-5)
    assert torch.allclose(output.slot_maps.sum((-2, -1)), torch.ones(2, 4), atol=1e-5)
    assert torch.allclose(output.fusion_weights.sum(-1), torch.ones(2), atol=1e-6)
    assert (output.map > 0).all()
    assert (output.coords.abs() < 1).all() and (output.slot_centers.abs() < 1).all()
    fused = (output.fusion_weights[:, :, None, None] * output.slot_maps).sum(1)
    assert torch.allclose(output.map, fused, atol=1e-6)
    assert torch.allclose((output.coords + 1) * resolution / 2, center_of_mass(output.map), atol=1e-5)
    assert 0 <= output.diversity_loss.item() <= 1


def test_map_is_sharp_when_slots_are() -> None:
    """A softmax over responsibilities could lift no cell above e times another; the normalised assignment can."""
    posterior = make_posterior()
    image = -torch.ones(1, 3, 32, 32)
    image[:, :, 12:20, 20:28] = 1.0
    with torch.no_grad():
        posterior.slot_attention.query.weight.mul_(30)
    slot_maps = posterior(image, torch.zeros(1, 6), torch.zeros(1, 5)).slot_maps[0].flatten(1)
    contrast = slot_maps.amax(1) / slot_maps.amin(1)
    assert contrast.max() > 100


def test_frames_are_attended_one_by_one_and_batch_one_works() -> None:
    posterior = make_posterior()
    frames, hidden, context = torch.rand(5, 3, 32, 32), torch.randn(5, 6), torch.randn(5, 5)
    together = posterior(frames, hidden, context)
    alone = posterior(frames[2:3], hidden[2:3], context[2:3])
    assert torch.allclose(together.map[2:3], alone.map, atol=1e-6)
    assert torch.allclose(together.coords[2:3], alone.coords, atol=1e-5)


def test_bytes_and_floats_are_the_same_picture() -> None:
    posterior = make_posterior()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    hidden, context = torch.randn(2, 6), torch.randn(2, 5)
    from_bytes, from_floats = (posterior(x, hidden, context).map for x in (pixels, pixels.float() / 127.5 - 1))
    assert torch.allclose(from_bytes, from_floats, atol=1e-6)


def test_every_parameter_learns() -> None:
    posterior = make_posterior()
    output = posterior(torch.rand(2, 3, 32, 32), torch.randn(2, 6), torch.randn(2, 5))
    weights = torch.randn_like(output.map)
    ((output.map * weights).sum() + output.diversity_loss).backward()
    for name, parameter in posterior.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_state_and_context_steer_the_map() -> None:
    posterior, frame = make_posterior(), torch.rand(1, 3, 32, 32)
    maps = posterior(frame.expand(3, -1, -1, -1), 3 * torch.randn(3, 6), torch.zeros(3, 5)).map
    assert torch.pdist(maps.flatten(1)).min() > 1e-4


def test_wrong_shapes_are_named() -> None:
    posterior = make_posterior()
    with pytest.raises(ValueError, match=r"observation: expected .*C=3.*found .*C=1"):
        posterior(torch.zeros(2, 1, 32, 32), torch.zeros(2, 6), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"hidden: expected .*N=2, Hd=6.*found"):
        posterior(torch.zeros(2, 3, 32, 32), torch.zeros(3, 6), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"context: expected .*Cc=5.*found"):
        posterior(torch.zeros(2, 3, 32, 32), torch.zeros(2, 6), torch.zeros(2, 6))
