"""Kumaraswamy in log space: right where the textbook formula is, finite where it is not."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, Kumaraswamy, kl_divergence

from aime.generative_prior.distributions import KumaraswamyStable, gamma_kl, log1mexp, open_uniform

EDGES = torch.tensor([-5.0, -2.5, -0.5, 0.0, 0.7, 3.0, 5.0])
LOG_A, LOG_B = (axis.flatten() for axis in torch.meshgrid(EDGES, EDGES, indexing="ij"))
MILD = (LOG_A.abs() < 1) & (LOG_B.abs() < 1)


def midpoints(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def test_log1mexp_has_full_precision_and_gradient_at_both_ends() -> None:
    t = -torch.logspace(-7, 1.9, 60, dtype=torch.float64)
    single = t.float().requires_grad_()
    double = single.detach().double()
    exact = torch.where(double > -1, torch.log(-torch.expm1(double)), torch.log1p(-torch.exp(double)))
    assert torch.allclose(log1mexp(single).double(), exact, rtol=2e-6, atol=0)
    (gradient,) = torch.autograd.grad(log1mexp(single).sum(), single)
    # -1 / expm1(-t) overflows float64 never and float32 rounds it to 0 below t = -88, as it should
    assert torch.allclose(gradient.double(), -1 / torch.expm1(-double), rtol=2e-6, atol=1e-38)


def test_agrees_with_torch_where_torch_is_accurate() -> None:
    log_a, log_b = LOG_A[MILD].double(), LOG_B[MILD].double()
    ours, theirs = KumaraswamyStable(log_a, log_b), Kumaraswamy(log_a.exp(), log_b.exp())
    x = midpoints(50).unsqueeze(-1)
    assert torch.allclose(ours.log_prob(x), theirs.log_prob(x), atol=1e-9)
    assert torch.allclose(ours.cdf(x), theirs.cdf(x), atol=1e-12)
    assert torch.allclose(ours.mean, theirs.mean, atol=1e-12)
    assert torch.allclose(ours.variance, theirs.variance, atol=1e-12)


def test_everything_is_finite_at_the_edges_in_float32() -> None:
    log_a, log_b = LOG_A.clone().requires_grad_(), LOG_B.clone().requires_grad_()
    distribution = KumaraswamyStable(log_a, log_b)
    generator = torch.Generator().manual_seed(0)
    x = distribution.rsample((2000,), generator=generator)
    assert (x > 0).all() and (x < 1).all()
    ends = torch.tensor([0.0, 1e-38, 1e-30, 0.5, 1 - 2**-24, 1.0]).unsqueeze(-1)
    values = {
        "log_prob": distribution.log_prob(x),
        "log_prob at the ends": distribution.log_prob(ends),
        "cdf": distribution.cdf(x),
        "icdf": distribution.icdf(torch.tensor([1e-7, 0.5, 1 - 1e-7]).unsqueeze(-1)),
        "mean": distribution.mean,
        "variance": distribution.variance,
        "entropy": distribution.entropy(),
    }
    for name, value in values.items():
        assert value.isfinite().all(), name
        gradients = torch.autograd.grad(value.sum(), (log_a, log_b), retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients), name


def test_float32_agrees_with_float64_at_the_edges() -> None:
    """Compared at the same x: 2e-5 of the largest term, which the sum of four terms may lose to cancellation."""
    x = torch.logspace(-8, -1e-4, 200).unsqueeze(-1)
    single = KumaraswamyStable(LOG_A, LOG_B)
    double = KumaraswamyStable(LOG_A.double(), LOG_B.double())
    largest = torch.maximum((LOG_A.exp() * x.log()).abs(), (LOG_B.exp() * log1mexp(LOG_A.exp() * x.log())).abs())
    error = (single.log_prob(x).double() - double.log_prob(x.double())).abs()
    assert (error < 2e-5 * (1 + largest)).all()
    # exp of a logarithm near -60 keeps four digits; below 1e-38 float32 has no numbers
    assert torch.allclose(single.mean.double(), double.mean, rtol=1e-4, atol=1e-38)
    assert torch.allclose(single.entropy().double(), double.entropy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("log_a", "log_b"), [(0.0, 0.0), (1.0, -1.0), (-1.0, 1.5), (2.0, 2.0)])
def test_density_integrates_to_one_and_entropy_to_its_closed_form(log_a: float, log_b: float) -> None:
    distribution = KumaraswamyStable(torch.tensor(log_a, dtype=torch.float64), torch.tensor(log_b, dtype=torch.float64))
    t = midpoints(200_000)
    x, slope = t**3 * (10 - 15 * t + 6 * t**2), 30 * t**2 * (1 - t) ** 2  # flattens the poles at 0 and 1
    log_density = distribution.log_prob(x)
    density = log_density.exp() * slope
    # the map maps 1e-16 next to 1, which loses digits of 1 - x: 1e-3 where the density has a pole there
    assert math.isclose(density.mean().item(), 1.0, abs_tol=1e-3)
    assert math.isclose(-(density * log_density).mean().item(), distribution.entropy().item(), abs_tol=2e-2)


def test_cdf_and_icdf_are_inverse_and_the_density_is_the_slope() -> None:
    distribution = KumaraswamyStable(LOG_A[MILD].double(), LOG_B[MILD].double())
    p = midpoints(40).unsqueeze(-1)
    assert torch.allclose(distribution.cdf(distribution.icdf(p)), p.expand(-1, int(MILD.sum())), atol=1e-12)
    x = p.expand(-1, int(MILD.sum())).clone().requires_grad_()
    (slope,) = torch.autograd.grad(distribution.cdf(x).sum(), x)
    assert torch.allclose(slope, distribution.log_prob(x).exp(), rtol=1e-9)


def test_samples_follow_the_distribution() -> None:
    distribution = KumaraswamyStable(LOG_A, LOG_B)
    x = distribution.rsample((20_000,), generator=torch.Generator().manual_seed(1))
    error = (x.double().mean(0) - distribution.mean).abs()
    standard_error = (distribution.variance.double() / len(x)).sqrt()
    assert (error < 4.5 * standard_error + 1e-6).all()  # 49 cells: one above 4.5 in 3000 draws of the seed
    # for small b a share (6e-8)^b of the samples rounds to the last number below 1, for small a to the first above 0
    uniform = distribution.cdf(x)[:, (LOG_A > -1) & (LOG_B > -1)].sort(0).values
    distance = (uniform - midpoints(len(x)).float().unsqueeze(-1)).abs().amax(0)
    assert (distance < 2 / math.sqrt(len(x))).all()  # Kolmogorov-Smirnov at 7e-4


def test_pathwise_gradient_is_the_analytic_one() -> None:
    """c = log(u) / b, z = log(1 - e^c): dx/dlog a = -(z/a) e^(z/a), dx/dlog b = log u / (a b) e^(c + (1/a - 1) z)."""
    log_a, log_b = (x[MILD].double().requires_grad_() for x in (LOG_A, LOG_B))
    u = open_uniform(log_a.shape, log_a, torch.Generator().manual_seed(2))
    x = KumaraswamyStable(log_a, log_b).log_icdf_of_survival(u.log()).exp()
    grad_a, grad_b = torch.autograd.grad(x.sum(), (log_a, log_b))
    a, b, c = log_a.exp(), log_b.exp(), u.log() / log_b.exp()
    z = torch.log(-torch.expm1(c))
    assert torch.allclose(grad_a, -(z / a) * torch.exp(z / a), rtol=1e-9)
    assert torch.allclose(grad_b, u.log() / (a * b) * torch.exp(c + (1 / a - 1) * z), rtol=1e-9)


def test_values_outside_the_support_are_refused_and_expand_keeps_the_parameters() -> None:
    distribution = KumaraswamyStable(torch.zeros(2), torch.ones(2), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        distribution.log_prob(torch.tensor([0.5, 1.5]))
    wide = distribution.expand((3, 2))
    assert wide.batch_shape == (3, 2)
    assert torch.equal(wide.mean, distribution.mean.expand(3, 2))


def test_gamma_kl_is_that_of_torch() -> None:
    concentration = torch.logspace(-2, 2, 9, dtype=torch.float64)
    rate = torch.logspace(2, -2, 9, dtype=torch.float64)
    expected = kl_divergence(Gamma(concentration, rate), Gamma(torch.tensor(1.5).double(), torch.tensor(7.0).double()))
    assert torch.allclose(gamma_kl(concentration, rate, 1.5, 7.0), expected, rtol=1e-10)


def test_open_uniform_is_never_zero_and_repeats_with_its_generator() -> None:
    like = torch.zeros(())
    first = open_uniform((1000,), like, torch.Generator().manual_seed(3))
    assert torch.equal(first, open_uniform((1000,), like, torch.Generator().manual_seed(3)))
    assert (first > 0).all() and (first < 1).all()
