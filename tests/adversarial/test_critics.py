"""Properties of the critics: what they can tell apart, and that their penalty's gradient is the right one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from aime.adversarial import (
    Contest,
    CriticPlayer,
    Critics,
    ImageDiscriminator,
    TemporalDiscriminator,
    gradient_penalty,
)


def small_video_critic(**options: object) -> TemporalDiscriminator:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "hidden_dim": 8, "n_layers": 1, "n_heads": 2, "z_dim": 3, "trunk_channels": 4}
    return TemporalDiscriminator(**(sizes | options))


def moving_squares(batch: int, frames: int, generator: torch.Generator, size: int = 16) -> Tensor:
    """(B, T, 3, H, W): a bright square that moves one pixel a frame."""
    video = torch.full((batch, frames, 3, size, size), -0.8)
    corners = torch.randint(0, size - 4 - frames, (batch, 2), generator=generator)
    for b, (row, column) in enumerate(corners.tolist()):
        for t in range(frames):
            video[b, t, :, row + t : row + t + 4, column + t : column + t + 4] = 0.8
    return video


def blurred(video: Tensor) -> Tensor:
    return F.avg_pool2d(video.flatten(0, 1), 5, 1, 2, count_include_pad=False).view(video.shape)


def test_critics_separate_real_from_blurred_videos() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    critics = Critics(3, 16, 3, channels=8, hidden_dim=16, n_layers=1, n_heads=2)
    player = CriticPlayer(critics, 5e-3)

    def contest() -> Contest:
        real = moving_squares(8, 4, generator)
        return Contest(real, blurred(real), torch.zeros(8, 4, 3))

    losses = [player.step(contest(), generator) for _ in range(40)]
    assert float(losses[-1]["img_disc_loss"]) < float(losses[0]["img_disc_loss"]) - 1.0
    fresh = contest()  # squares that they have not seen
    scores = {name: float(value.detach()) for name, value in critics.critic_losses(fresh, generator).items()}
    assert scores["real_img_score"] > scores["fake_img_score"] + 0.2
    assert scores["real_temporal_score"] > scores["fake_temporal_score"] + 0.2
    real, fake = (critics.video(x, fresh.latent)["final_score"] for x in (fresh.real, fresh.fake))
    assert bool((real > fake).all())  # every single video, not only their means


def test_a_critic_of_videos_sees_the_order_of_frames() -> None:
    critic = small_video_critic(z_dim=0).double()
    video = moving_squares(2, 5, torch.Generator().manual_seed(0)).double()
    forward, backward = critic(video), critic(video.flip(1))
    torch.testing.assert_close(forward["spatial_score"], backward["spatial_score"])
    assert bool(((forward["temporal_score"] - backward["temporal_score"]).abs() > 1e-6).all())
    for name, shape in (("temporal_score", (2, 1)), ("per_frame_scores", (2, 5, 1)), ("features", (2, 5, 8))):
        assert forward[name].shape == shape  # type: ignore[literal-required]


def test_frames_beyond_the_length_change_nothing() -> None:
    critic = small_video_critic()
    video, latent = torch.randn(2, 5, 3, 16, 16), torch.randn(2, 5, 3)
    lengths = torch.tensor([3, 5])
    padded = critic(video, latent, lengths)["final_score"]
    torch.testing.assert_close(padded[:1], critic(video[:1, :3], latent[:1, :3])["final_score"])
    video[0, 3:] = 7.0
    torch.testing.assert_close(critic(video, latent, lengths)["final_score"], padded)


def test_a_latent_is_asked_for_and_used() -> None:
    critic = small_video_critic()
    video = torch.randn(2, 3, 3, 16, 16)
    with pytest.raises(ValueError, match="expected z .* found none"):
        critic(video)
    one, other = critic(video, torch.zeros(2, 3)), critic(video, torch.ones(2, 3))
    assert not torch.equal(one["temporal_score"], other["temporal_score"])
    assert torch.equal(one["spatial_score"], other["spatial_score"])
    with pytest.raises(ValueError, match="x: expected .*H=16.* found .*H=8"):
        critic(torch.zeros(1, 2, 3, 8, 8), torch.zeros(1, 3))


@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_gradient_of_the_penalty_is_that_of_finite_differences(kind: str) -> None:
    """A penalty is a gradient of a gradient: its own gradient checks every part of a critic twice differentiated."""
    torch.manual_seed(0)
    if kind == "image":
        critic: torch.nn.Module = ImageDiscriminator(2, 2, image_size=8).double()
        real, fake, rest = torch.randn(3, 2, 8, 8).double(), torch.randn(3, 2, 8, 8).double(), ()
    else:
        critic = small_video_critic(input_channels=1, image_size=8, hidden_dim=4, trunk_channels=2).double()
        real, fake = torch.randn(2, 3, 1, 8, 8).double(), torch.randn(2, 3, 1, 8, 8).double()
        rest = (torch.randn(2, 3, 3).double(),)
    names = [name for name, _ in critic.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in critic.parameters()]

    def penalty(*parameters: Tensor) -> Tensor:
        def score(x: Tensor) -> Tensor:
            found = functional_call(critic, dict(zip(names, parameters, strict=True)), (x, *rest))
            return found.mean((1, 2, 3)) if kind == "image" else found["final_score"]

        return gradient_penalty(score, real, fake, torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(penalty, values, fast_mode=True, eps=1e-6, atol=1e-6)


def test_the_penalty_of_a_linear_score_is_known() -> None:
    direction = torch.tensor([3.0, 4.0], dtype=torch.float64)  # of norm 5, wherever it is looked at
    real, fake = torch.randn(4, 2).double(), torch.randn(4, 2).double()
    torch.testing.assert_close(gradient_penalty(lambda x: x @ direction, real, fake), torch.tensor(16.0).double())
    flat = gradient_penalty(lambda x: (x * 0).sum(1), real, fake)  # a critic that looks at nothing
    assert float(flat.detach()) == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ValueError, match="expected one shape"):
        gradient_penalty(lambda x: x.sum(1), real, fake[:2])


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    torch.manual_seed(0)
    critics = Critics(3, 16, 3, channels=4, hidden_dim=8, n_layers=1, n_heads=2)
    player = CriticPlayer(critics, 1e-2)
    before = [parameter.clone() for parameter in critics.parameters()]
    video = torch.randn(2, 3, 3, 16, 16)
    player.step(Contest(video, video * float("nan"), torch.zeros(2, 3, 3)))
    assert all(torch.equal(old, new) for old, new in zip(before, critics.parameters(), strict=True))
    player.step(Contest(video, -video, torch.zeros(2, 3, 3)))
    assert not all(torch.equal(old, new) for old, new in zip(before, critics.parameters(), strict=True))


def test_the_generator_hears_through_the_images_alone() -> None:
    """Its gradient passes the fake frames, not the latents that the critic is shown, and leaves the critics alone."""
    torch.manual_seed(0)
    critics = Critics(3, 16, 3, channels=4, hidden_dim=8, n_layers=1, n_heads=2)
    fake = torch.randn(2, 3, 3, 16, 16, requires_grad=True)
    losses = critics.generator_losses(Contest(torch.randn(2, 3, 3, 16, 16), fake, torch.randn(2, 3, 3)))
    for loss in (losses.image, losses.temporal, losses.features):
        (gradient,) = torch.autograd.grad(loss, fake, retain_graph=True)
        assert float(gradient.abs().sum()) > 0
    (losses.image + losses.temporal + losses.features).backward()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in critics.parameters())
    same = critics.generator_losses(Contest(fake.detach(), fake, torch.randn(2, 3, 3)))
    assert float(same.features.detach()) == pytest.approx(0.0, abs=1e-6)


def test_gradients_of_two_halves_gathered_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    critics = Critics(3, 16, 3, channels=4, hidden_dim=8, n_layers=1, n_heads=2, penalty=0.0)
    video = torch.randn(4, 3, 3, 16, 16)
    whole = Contest(video, -video, torch.zeros(4, 3, 3))
    halves = [Contest(part, -part, torch.zeros(2, 3, 3)) for part in video.chunk(2)]
    expected = torch.autograd.grad(critics.critic_losses(whole)["img_disc_loss"], list(critics.parameters()))
    other = torch.autograd.grad(critics.critic_losses(halves[1])["img_disc_loss"], list(critics.parameters()))
    seen: list[Tensor] = []

    def gather(parameters: list[torch.nn.Parameter]) -> None:
        for parameter, gradient in zip(parameters, other, strict=True):
            parameter.grad = (parameter.grad + gradient) / 2
            seen.append(parameter.grad.clone())

    CriticPlayer(critics, 1e-3).step(halves[0], gather=gather)
    for found, gradient in zip(seen, expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)
