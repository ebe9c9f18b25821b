"""Sticks: weights that sum to 1, a divergence that agrees with quadrature, networks that keep their gradients."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Beta, kl_divergence

from aime.generative_prior import AdaptiveStickBreaking, GammaPosterior, KumaraswamyNetwork, StickBreaking
from aime.generative_prior.networks import inverse_smooth_bound, inverse_softplus, smooth_bound, spread_normal
from aime.generative_prior.stick_breaking import break_sticks, expected_log_weights, integrate_sticks


def sticks_from(log_a: Tensor, log_b: Tensor, u: Tensor, concentration: float, rate: float) -> StickBreaking:
    log_pi, log_v, log_q_v = break_sticks(log_a, log_b, u)
    shape = log_a.shape[:-1]
    return StickBreaking(
        log_pi, log_a, log_b, log_v, log_q_v, torch.full(shape, concentration), torch.full(shape, rate)
    )


def dense_stick_integrals(a: float, b: float) -> tuple[float, float]:
    """E[log q(v)] and E[log(1 - v)] over 400,000 equal cells of the noise, textbook formulas in float64."""
    u = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    v = (1 - u ** (1 / b)) ** (1 / a)
    log_q = math.log(a * b) + (a - 1) * v.log() + (b - 1) * (1 - v**a).log()
    return log_q.mean().item(), (1 - v).log().mean().item()


@pytest.mark.parametrize("leading", [(1,), (4,), (2, 3), (2, 1, 3)])
def test_weights_are_normalised_for_any_leading_axes(leading: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    sticks = AdaptiveStickBreaking(6, 10)(torch.randn(*leading, 10))
    assert sticks.log_pi.shape == (*leading, 6) and sticks.log_v.shape == (*leading, 5)
    assert sticks.alpha.shape == leading
    assert torch.allclose(sticks.log_pi.exp().sum(-1), torch.ones(leading), atol=1e-6)


@pytest.mark.parametrize(("log_a", "log_b"), [(0.0, 0.0), (1.2, 0.4), (-0.8, 1.0), (0.5, -1.0)])
def test_divergence_agrees_with_dense_quadrature(log_a: float, log_b: float) -> None:
    module = AdaptiveStickBreaking(3, 4, prior_alpha=2.0, prior_beta=3.0)
    a, b = torch.full((1, 2), log_a), torch.full((1, 2), log_b)
    log_q, log_rest = dense_stick_integrals(math.exp(log_a), math.exp(log_b))
    mean_alpha, mean_log_alpha = 5.0 / 4.0, torch.digamma(torch.tensor(5.0)).item() - math.log(4.0)
    gamma = torch.distributions.Gamma
    alpha_kl = kl_divergence(gamma(torch.tensor(5.0), torch.tensor(4.0)), gamma(torch.tensor(2.0), torch.tensor(3.0)))
    expected = 2 * (log_q - mean_log_alpha - (mean_alpha - 1) * log_rest) + alpha_kl.item()

    generator = torch.Generator().manual_seed(0)
    many = sticks_from(
        a.expand(100_000, 2), b.expand(100_000, 2), torch.rand(100_000, 2, generator=generator), 5.0, 4.0
    )
    estimates = module.kl(many)
    standard_error = estimates.std().item() / math.sqrt(len(estimates))
    assert abs(estimates.mean().item() - expected) < 4 * standard_error
    # 400,000 cells leave 1e-4 of a log singularity; the 32 nodes are closer than that
    one = sticks_from(a, b, torch.full((1, 2), 0.5), 5.0, 4.0)
    assert math.isclose(module.kl(one, quadrature=32).item(), expected, abs_tol=1e-3)


def test_divergence_of_beta_sticks_is_the_closed_form() -> None:
    """Kumaraswamy(1, b) is Beta(1, b)."""
    log_b = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).unsqueeze(-1)
    log_q, log_rest = integrate_sticks(torch.zeros_like(log_b), log_b, 32)
    alpha = 2.5
    ours = log_q - math.log(alpha) - (alpha - 1) * log_rest
    one = torch.ones(())
    exact = kl_divergence(Beta(one, log_b.squeeze(-1).exp()), Beta(one, torch.tensor(alpha)))
    assert torch.allclose(ours, exact, rtol=1e-4, atol=1e-4)


def test_divergence_where_the_taylor_series_fails() -> None:
    """A stick near 1, (a, b) = (5, .3) against Beta(1, 3): 10.92; ten terms of the usual series give 6.23."""
    a, b = torch.tensor([[5.0]]), torch.tensor([[0.3]])
    log_q, log_rest = integrate_sticks(a.log(), b.log(), 64)
    assert math.isclose((log_q - math.log(3) - 2 * log_rest).item(), 10.92, abs_tol=0.01)


def test_expected_weights_are_the_mean_of_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    log_a, log_b = (2 * torch.rand(2, 5, generator=generator) - 1).unbind(0)
    log_pi, log_v, _ = expected_log_weights(log_a, log_b)
    sampled, _, _ = break_sticks(
        log_a.expand(50_000, 5), log_b.expand(50_000, 5), torch.rand(50_000, 5, generator=generator)
    )
    weights = sampled.exp()
    assert ((weights.mean(0) - log_pi.exp()).abs() < 4.5 * weights.std(0) / math.sqrt(50_000)).all()
    assert torch.allclose(log_pi.exp().sum(), torch.ones(()), atol=1e-6)
    assert torch.allclose(log_v[0], log_pi[0])


def test_expected_weights_survive_sticks_that_take_everything() -> None:
    log_a = torch.full((1, 4), 5.0, requires_grad=True)
    log_b = torch.full((1, 4), -5.0, requires_grad=True)
    log_pi, _, _ = expected_log_weights(log_a, log_b)
    assert log_pi.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(log_pi.sum(), (log_a, log_b)))


def test_gradients_are_finite_at_every_corner_of_the_parameters() -> None:
    corners = torch.tensor([[a, b] for a in (-5.0, 5.0) for b in (-5.0, 5.0)])
    log_a = corners[:, :1].expand(4, 3).clone().requires_grad_()
    log_b = corners[:, 1:].expand(4, 3).clone().requires_grad_()
    module = AdaptiveStickBreaking(4, 2)
    for noise in (1e-7, 0.5, 1 - 1e-7):
        sticks = sticks_from(log_a, log_b, torch.full((4, 3), noise), 1.0, 1.0)
        for quadrature in (None, 16):
            kl = module.kl(sticks, quadrature=quadrature)
            assert kl.isfinite().all()
            gradients = torch.autograd.grad(kl.sum() + sticks.log_pi.sum(), (log_a, log_b), retain_graph=True)
            assert all(gradient.isfinite().all() for gradient in gradients)


def test_starts_at_the_prior() -> None:
    torch.manual_seed(0)
    module = AdaptiveStickBreaking(8, 16, prior_alpha=6.0, prior_beta=2.0)
    h = torch.randn(500, 16)
    log_a, log_b = module.kumar_net(h)
    # output weights have standard deviation .01 over 64 units of order .5
    assert log_a.abs().max() < 0.3 and (log_b - math.log(3.0)).abs().max() < 0.3
    concentration, rate = module.alpha_posterior(h)
    assert torch.allclose(concentration.mean(), torch.tensor(6.0), rtol=0.05)
    assert torch.allclose(rate.mean(), torch.tensor(2.0), rtol=0.05)


def test_gamma_posterior_can_express_any_mean_and_any_spread() -> None:
    """Fitted to four targets at once by gradient: no normalisation ties its two outputs."""
    torch.manual_seed(0)
    network = GammaPosterior(4)
    h, concentration = torch.eye(4), torch.tensor([0.5, 0.5, 20.0, 20.0])
    rate = torch.tensor([0.3, 8.0, 0.3, 8.0])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    for _ in range(400):
        outputs = torch.stack(network(h)).log()
        loss = (outputs - torch.stack((concentration, rate)).log()).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-2


def test_gamma_samples_have_the_mean_and_carry_gradients() -> None:
    torch.manual_seed(0)
    network = GammaPosterior(3, 4.0, 2.0)
    h = torch.randn(2, 3)
    samples = network.sample(h, 40_000, torch.Generator().manual_seed(0))
    assert samples.shape == (2, 40_000)
    concentration, rate = network(h)
    assert torch.allclose(samples.mean(-1), concentration / rate, rtol=0.02)
    samples.mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_networks_keep_gradient_where_a_clamp_would_lose_it() -> None:
    network = KumaraswamyNetwork(4, 3)
    last = network.network[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.bias.fill_(12.0)
    log_a, log_b = network(torch.randn(1, 4))
    assert (log_a < 5).all() and (log_b < 5).all()
    (gradient,) = torch.autograd.grad(log_a.sum() + log_b.sum(), last.bias)
    assert (gradient > 0.01).all()


def test_bounds_invert() -> None:
    for value in (-4.5, -1.0, 0.0, 3.0):
        assert math.isclose(smooth_bound(torch.tensor(inverse_smooth_bound(value))).item(), value, abs_tol=1e-5)
    for value in (0.1, 1.0, 30.0):
        found = torch.nn.functional.softplus(torch.tensor(inverse_softplus(value))).item()
        assert math.isclose(found, value, rel_tol=1e-5)
    with pytest.raises(ValueError, match=r"expected inside \(-5.0, 5.0\), found 6"):
        inverse_smooth_bound(6.0)


@pytest.mark.parametrize(("count", "dim"), [(6, 2), (15, 36), (8, 1)])
def test_initial_components_are_apart(count: int, dim: int) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        points = spread_normal(count, dim)
        assert torch.pdist(points).min() > 0.02 * math.sqrt(dim)
        assert points.isfinite().all()


def test_noise_decides_the_sample() -> None:
    torch.manual_seed(0)
    module, h = AdaptiveStickBreaking(5, 3), torch.randn(2, 3)
    noise = torch.rand(2, 4)
    assert torch.equal(module(h, noise=noise).log_pi, module(h, noise=noise).log_pi)
    first, second = (module(h, generator=torch.Generator().manual_seed(7)).log_pi for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, module(h, generator=torch.Generator().manual_seed(8)).log_pi)
    with pytest.raises(ValueError, match=r"noise: expected \(..., K - 1\) = \(2, 4\), found \(2, 5\)"):
        module(h, noise=torch.rand(2, 5))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="max_components: expected at least 1, found 0"):
        AdaptiveStickBreaking(0, 4)
    with pytest.raises(ValueError, match=r"noise: expected \(..., K - 1\) = \(2, 0\), found \(2, 1\)"):
        AdaptiveStickBreaking(1, 4)(torch.zeros(2, 4), noise=torch.rand(2, 1))
    with pytest.raises(ValueError, match="expected positive"):
        AdaptiveStickBreaking(3, 4, prior_alpha=0.0)
