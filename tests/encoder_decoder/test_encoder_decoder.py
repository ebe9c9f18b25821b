"""Properties of encoder, decoder, likelihoods and the Gram loss."""

import math

import pytest
import torch

from aime.encoder_decoder import GramLoss, ImageTrunk, PixelStatistics, VAEDecoder, VAEEncoder, make_likelihood

PLAIN = PixelStatistics(torch.zeros(3, 1, 1), torch.ones(1, 1, 1))


@pytest.mark.parametrize("size", [32, 64, 84, 50])
@pytest.mark.parametrize("squeeze_excitation", [False, True])
def test_any_size_goes_in_and_comes_out(size: int, squeeze_excitation: bool) -> None:
    options = {"cells_per_level": 1, "mlp_hidden_size": 16, "squeeze_excitation": squeeze_excitation}
    encoder = VAEEncoder(5, size, size, context_dim=3, channels=(8, 16, 24), **options)
    decoder = VAEDecoder(5, size, size, hidden_dim=7, channels=(24, 16, 8), output_channels=3, **options)
    posterior = encoder(torch.randn(2, 3, size, size), torch.randn(2, 3))
    assert posterior.mean.shape == posterior.log_scale.shape == (2, 5)
    latent = posterior.rsample(torch.randn(2, 5))
    assert decoder(latent, torch.randn(2, 7), torch.full((2, 6, 6), 1 / 36)).shape == (2, 3, size, size)


@pytest.mark.parametrize("size", [32, 50, 64, 84])
def test_the_trunk_halves_its_maps_and_sees_no_pixel_twice_at_the_finest(size: int) -> None:
    trunk = ImageTrunk(size, size, 3, (4, 6, 8), patch_size=4)
    images = torch.randn(2, 3, size, size, requires_grad=True)
    maps = trunk(images)
    assert [tuple(x.shape[1:]) for x in maps] == [(w, *s) for w, s in zip((4, 6, 8), trunk.sizes, strict=True)]
    assert [rows for rows, _ in trunk.sizes] == [-(-size // 4), -(-size // 8), -(-size // 16)]
    (seen,) = torch.autograd.grad(maps[0][0, :, 1, 2].sum(), images)
    outside = seen[0].clone()
    outside[:, 4:8, 8:12] = 0
    assert float(seen.abs().sum()) > 0 and float(outside.abs().sum()) == 0
    assert trunk.level_of(trunk.sizes[1][0]) == 1 and trunk.level_of(10 * size) == 0


def test_a_decoder_without_modulation_refuses_a_map() -> None:
    decoder = VAEDecoder(4, 64, 64, channels=(16, 16, 16), cells_per_level=0, mlp_hidden_size=0, modulated=False)
    assert float(decoder(torch.randn(2, 4)).detach().abs().max()) == 0  # it starts at the mean image
    with pytest.raises(ValueError, match="expected None, since this decoder is not modulated"):
        decoder(torch.randn(2, 4), None, torch.full((2, 8, 8), 1 / 64))


def test_log_scale_keeps_a_gradient_at_its_bound() -> None:
    encoder = VAEEncoder(2, 32, 32, channels=(8, 8, 8), cells_per_level=1, mlp_hidden_size=8)
    with torch.no_grad():
        encoder.head[-1].bias[2:] = -12.0
    posterior = encoder(torch.randn(1, 3, 32, 32))
    assert float(posterior.log_scale.detach().min()) >= -5.0
    posterior.log_scale.sum().backward()
    assert float(encoder.head[-1].bias.grad[2:].abs().min()) > 0


def test_attention_changes_the_image_where_it_looks() -> None:
    torch.manual_seed(0)
    decoder = VAEDecoder(4, 64, 64, channels=(16, 16, 16), cells_per_level=1, mlp_hidden_size=16)
    for modulation in decoder.modulations:
        torch.nn.init.normal_(modulation.shift)
    torch.nn.init.normal_(decoder.last.linear.weight, std=0.1)
    latent = torch.zeros(1, 4)
    left, right = torch.full((1, 8, 8), 1e-6), torch.full((1, 8, 8), 1e-6)
    left[:, :, :2], right[:, :, 6:] = 1 / 16, 1 / 16
    difference = (decoder(latent, None, left) - decoder(latent, None, right)).detach().abs().sum((0, 1, 2))
    assert float(difference[:16].sum() + difference[48:].sum()) > 2 * float(difference[16:48].sum())


def test_gaussian_likelihood_is_the_normal_density() -> None:
    likelihood = make_likelihood("gaussian", 3, 0.3, 10)
    decoded, images = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    pixels = PixelStatistics(torch.randn(3, 4, 4), 0.5 + torch.rand(1, 4, 4))
    normal = torch.distributions.Normal(pixels.mean + pixels.spread * decoded, 0.3 * pixels.spread)
    expected = -normal.log_prob(images).sum((1, 2, 3))
    torch.testing.assert_close(likelihood.nll(decoded, pixels, images), expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(likelihood.mean(decoded, pixels), normal.mean)


def test_mixture_of_logistics_sums_to_one_over_all_colours_of_a_channel() -> None:
    torch.manual_seed(0)
    likelihood = make_likelihood("mixture_of_logistics", 3, 0.1, 2)
    parameters = torch.randn(1, likelihood.output_channels, 1, 1)
    parameters.view(1, -1)[:, 2:].view(1, 2, 9)[:, :, 6:] = (
        0.0  # no coupling: channels are independent given a component
    )
    parameters[:, 1] = -30.0  # one component alone, so that the channels are independent
    levels = torch.arange(256) / 127.5 - 1.0
    images = torch.zeros(256, 3, 1, 1)
    images[:, 0, 0, 0] = levels
    nll = likelihood.nll(parameters.expand(256, -1, -1, -1), PLAIN, images)
    # The green and blue factors are constant; divide them out with the same image through three channel sums.
    other = torch.zeros(256, 3, 1, 1)
    other[:, 1, 0, 0] = levels
    first = torch.logsumexp(-nll, 0)
    fixed_red = -likelihood.nll(parameters, PLAIN, torch.zeros(1, 3, 1, 1))
    second = torch.logsumexp(-likelihood.nll(parameters.expand(256, -1, -1, -1), PLAIN, other), 0)
    third_images = torch.zeros(256, 3, 1, 1)
    third_images[:, 2, 0, 0] = levels
    third = torch.logsumexp(-likelihood.nll(parameters.expand(256, -1, -1, -1), PLAIN, third_images), 0)
    # p(g) p(b) * p(r) p(b) * p(r) p(g) = (p(r) p(g) p(b))^2 when every channel's masses sum to one.
    torch.testing.assert_close(first + second + third, 2 * fixed_red[0], rtol=1e-4, atol=1e-3)


def test_mixture_of_logistics_mean_is_differentiable() -> None:
    likelihood = make_likelihood("mixture_of_logistics", 3, 0.1, 4)
    parameters = torch.randn(2, likelihood.output_channels, 5, 5, requires_grad=True)
    mean = likelihood.mean(parameters, PLAIN)
    assert mean.shape == (2, 3, 5, 5)
    mean.sum().backward()
    assert parameters.grad is not None
    assert float(parameters.grad.abs().sum()) > 0


def test_weights_scale_the_squared_error() -> None:
    likelihood = make_likelihood("gaussian", 3, 0.5, 10)
    decoded, images = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    constant = 48 * math.log(0.5 * math.sqrt(2 * math.pi))
    plain = likelihood.nll(decoded, PLAIN, images) - constant
    doubled = likelihood.nll(decoded, PLAIN, images, torch.full((2, 4, 4), 2.0)) - constant
    torch.testing.assert_close(doubled, 2 * plain)


def test_gram_loss_is_zero_for_equal_and_rotated_features() -> None:
    features = torch.randn(2, 9, 4)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4))
    for options in (
        {},
        {"img_level": False},
        {"remove_neg": False},
        {"remove_neg": False, "remove_only_teacher_neg": True},
    ):
        loss = GramLoss(**options)
        assert float(loss(features @ rotation, features)) < 1e-10
        assert float(loss(features, torch.randn(2, 9, 4))) > 1e-3


def test_clear_errors() -> None:
    with pytest.raises(ValueError, match="at least 32 pixels, found 16 x 32"):
        VAEEncoder(4, 16, 32)
    with pytest.raises(ValueError, match="'gaussian' or 'mixture_of_logistics', found 'poisson'"):
        make_likelihood("poisson", 3, 0.1, 10)
    with pytest.raises(ValueError, match="positive standard deviation, found 0"):
        make_likelihood("gaussian", 3, 0.0, 10)
    with pytest.raises(ValueError, match="exclude each other"):
        GramLoss(remove_neg=True, remove_only_teacher_neg=True)
