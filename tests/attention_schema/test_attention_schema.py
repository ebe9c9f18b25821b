"""Posterior and prior together: shapes, bookkeeping, and a blob that both learn to follow."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from aime.attention_schema import AttentionSchema, attention_dynamics_loss, categorical_kl, center_of_mass

SIZE, SIDE, SPEED = 32, 8, 1.2  # pixels, cells, cells per frame


def make_schema(seed: int = 0) -> AttentionSchema:
    torch.manual_seed(seed)
    return AttentionSchema(
        SIZE, SIDE, 8, 4, 4, feature_channels=16, pyramid_channels=(16, 16), state_channels=12, condition_width=16
    )


def test_sequence_is_posterior_then_shifted_prior() -> None:
    schema = make_schema()
    frames, hidden = torch.rand(2, 5, 3, SIZE, SIZE), torch.randn(2, 5, 8)
    context, latents = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    output = schema(frames, hidden, context, latents)
    maps = schema.posterior_net(frames[:, 3], hidden[:, 3], context[:, 3]).map
    assert torch.allclose(output.maps[:, 3], maps, atol=1e-6)
    previous = torch.cat((schema.uniform_map(2).unsqueeze(1), output.maps[:, :-1]), 1)
    prior = schema.prior_net(previous, hidden, latents)
    assert torch.allclose(output.prior.maps, prior.maps, atol=1e-6)
    assert torch.allclose(output.kl, categorical_kl(output.maps, prior.log_maps), atol=1e-6)
    assert output.dynamics_loss.shape == (2, 5)
    # a sequence in two parts
    start = schema(frames[:, :2], hidden[:, :2], context[:, :2], latents[:, :2])
    rest = schema(frames[:, 2:], hidden[:, 2:], context[:, 2:], latents[:, 2:], start.maps[:, -1], start.prior.state)
    assert torch.allclose(rest.kl, output.kl[:, 2:], atol=1e-5)


def test_prediction_does_not_see_its_own_frame() -> None:
    schema, frames = make_schema(), torch.rand(1, 4, 3, SIZE, SIZE)
    changed = frames.clone()
    changed[:, 2] = 1 - changed[:, 2]
    still = (torch.zeros(1, 4, 8), torch.zeros(1, 4, 4), torch.zeros(1, 4, 4))
    before, after = schema(frames, *still), schema(changed, *still)
    assert torch.equal(before.prior.maps[:, :3], after.prior.maps[:, :3])
    assert not torch.equal(before.maps[:, 2], after.maps[:, 2])
    assert not torch.equal(before.prior.maps[:, 3], after.prior.maps[:, 3])


def test_a_balanced_kl_divides_its_gradient_between_map_and_prediction() -> None:
    schema = make_schema()
    maps = torch.softmax(torch.randn(2, 4, SIDE * SIDE), -1).unflatten(-1, (SIDE, SIDE)).requires_grad_()
    states = torch.randn(2, 4, 8), torch.randn(2, 4, 4)
    weight = schema.prior_net.motion.weight

    def gradients(balance: float) -> tuple[Tensor | None, Tensor]:
        kl = schema.forecast(maps, *states, detach_maps=True, balance=balance).kl
        assert torch.allclose(kl, schema.forecast(maps, *states).kl)
        of_maps, of_weight = torch.autograd.grad(kl.sum(), (maps, weight), allow_unused=True)
        assert of_weight is not None
        return of_maps, of_weight

    kept, whole = gradients(0.0)
    assert kept is None
    some, rest = gradients(0.25)
    assert torch.allclose(rest, 0.75 * whole, rtol=1e-4, atol=1e-6)
    prediction = schema.forecast(maps, *states).prior.log_maps.detach()
    (expected,) = torch.autograd.grad(categorical_kl(maps, prediction).sum(), maps)
    assert some is not None
    assert torch.allclose(some, 0.25 * expected, rtol=1e-4, atol=1e-6)


def moving_blobs(count: int, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy videos (N, T, 3, 32, 32) of a blob that flies straight and bounces; its path (N, T, 2) in cells."""
    start = torch.rand(count, 1, 2, generator=generator) * (SIDE - 2)
    angle = torch.rand(count, 1, generator=generator) * 2 * math.pi
    travelled = SPEED * torch.stack((angle.cos(), angle.sin()), -1) * torch.arange(steps)[:, None]
    phase = (start + travelled) % (2 * (SIDE - 2))
    path = 1 + torch.minimum(phase, 2 * (SIDE - 2) - phase)
    pixels = (torch.arange(SIZE) + 0.5) * SIDE / SIZE
    x, y = (pixels - path[..., axis, None] for axis in (0, 1))  # (N, T, 32) each
    blob = torch.exp(-2 * (x.square()[:, :, None, :] + y.square()[:, :, :, None]))
    color = torch.tensor([1.0, 0.6, -0.2])[:, None, None]
    noise = 0.1 * torch.randn(count, steps, 3, SIZE, SIZE, generator=generator)
    return (-0.5 + noise + blob.unsqueeze(2) * color).clamp(-1, 1), path


def attend(schema: AttentionSchema, videos: Tensor):  # type: ignore[no-untyped-def]
    batch, steps = videos.shape[:2]
    nothing = [torch.zeros(batch, steps, size) for size in (8, 4, 4)]  # state, context and latent tell nothing
    return schema(videos, *nothing)


def test_attention_follows_a_moving_blob_and_the_prior_beats_no_motion() -> None:
    """Taught by a decoder that sees only the map, the way the image decoder is modulated by it."""
    generator, schema = torch.Generator().manual_seed(0), make_schema()
    decoder = torch.nn.Conv2d(1, 3, 1)
    with torch.no_grad():
        decoder.weight.fill_(0.1)
        decoder.bias.fill_(-0.5)  # type: ignore[union-attr]
    optimizer = torch.optim.Adam([*schema.parameters(), *decoder.parameters()], lr=3e-3)
    for _ in range(280):
        videos, _ = moving_blobs(8, 8, generator)
        output = attend(schema, videos)
        density = SIDE**2 * output.maps.flatten(0, 1).unsqueeze(1)
        decoded = decoder(F.interpolate(density, (SIZE, SIZE), mode="bilinear", align_corners=False))
        prediction = categorical_kl(output.maps.detach(), output.prior.log_maps)[:, 1:].mean()
        loss = 100 * F.mse_loss(decoded, videos.flatten(0, 1)) + prediction + output.dynamics_loss[:, 1:].mean()
        loss = loss + 0.01 * output.posterior.diversity_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        videos, path = moving_blobs(32, 12, generator)
        output = attend(schema, videos)
        centers = center_of_mass(output.maps)
        assert (centers - path).norm(dim=-1).max() < 1.0
        previous, current = output.maps[:, :-1], output.maps[:, 1:]
        no_motion = ((1 - 1e-3) * previous + 1e-3 / SIDE**2).log()  # with the even share that the prior has
        assert output.kl[:, 1:].mean() < 0.5 * categorical_kl(current, no_motion).mean()
        predicted = center_of_mass(output.prior.maps)[:, 1:]
        error, inertia = ((guess - centers[:, 1:]).norm(dim=-1).mean() for guess in (predicted, centers[:, :-1]))
        assert error < 0.6 * inertia
        standing = attention_dynamics_loss(previous, current, torch.zeros(32, 11, 2)).mean()
        assert output.dynamics_loss[:, 1:].mean() < 0.5 * standing
