"""Sticks, mixture density and KL against high-precision closed forms, quadrature and float64 references.

On a GPU the same cases run there too, under pytest.mark.cuda (conftest.py).
"""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from aime.kernels import mixture_kl, mixture_log_prob, stick_log_weights
from aime.kernels.mixture_kl.reference import (
    mixture_kl_reference,
    mixture_log_prob_reference,
    mixture_responsibilities_reference,
    stick_log_weights_reference,
)

SHAPES = [(1, 1, 1, 4), (2, 5, 3, 7), (3, 17, 15, 36), (1, 2, 33, 5)]  # S, N, K, D


def sticks(rows: int, count: int, limit: float, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    log_a, log_b = (torch.rand(2, rows, count, generator=generator, dtype=torch.float64) * 2 - 1) * limit
    u = torch.rand(rows, count, generator=generator, dtype=torch.float64) * 0.98 + 0.01
    return log_a.to(dtype), log_b.to(dtype), u.to(dtype)


def mixture(samples: int, rows: int, components: int, width: int, shared: bool = False, seed: int = 0) -> list[Tensor]:
    """z, log_pi, means, log_scales in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = (components, width) if shared else (rows, components, width)
    log_pi = normal(rows, components).log_softmax(-1)
    return [normal(samples, rows, width), log_pi, normal(*shape), 0.5 * normal(*shape)]


def posterior(samples: int, rows: int, width: int, seed: int = 1) -> list[Tensor]:
    """mean_q, log_scale_q, eps in float64."""
    generator = torch.Generator().manual_seed(seed)
    mean, log_scale = torch.randn(2, rows, width, generator=generator, dtype=torch.float64)
    return [mean, 0.3 * log_scale, torch.randn(samples, rows, width, generator=generator, dtype=torch.float64)]


def gradients(function: Callable[..., Tensor], tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    output = function(*leaves)
    weights = torch.linspace(0.5, 1.5, output.numel(), dtype=torch.float64).to(output.dtype).view(output.shape)
    (output * weights).sum().backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize(("rows", "count"), [(0, 3), (4, 0), (1, 1), (7, 14), (3, 40)])
def test_sticks_match_the_reference(target: Callable[..., Any], rows: int, count: int) -> None:
    arguments = sticks(rows, count, 1.0, seed=count)
    exact = stick_log_weights_reference(*arguments)
    ours = target(stick_log_weights, *(tensor.float() for tensor in arguments))
    assert [tuple(tensor.shape) for tensor in ours] == [(rows, count + 1), (rows, count), (rows, count)]
    for tensor, truth in zip(ours, exact, strict=True):
        assert tensor.dtype == torch.float32
        # rounding of u to float32 moves log u by 6e-6 relative at u = .99; K = 41 sums add to it
        torch.testing.assert_close(tensor.double(), truth, rtol=3e-5, atol=3e-5)


def test_sticks_against_exact_arithmetic(target: Callable[..., Any]) -> None:
    """a, b in .01 .. 100 and u in 1e-6 .. 1 - 1e-6, the op in float32 against 700 digits on the same float32
    numbers."""
    mpmath = pytest.importorskip("mpmath")
    values = torch.tensor([math.log(value) for value in (0.01, 0.1, 1.0, 10.0, 100.0)])
    noise = torch.tensor([1e-6, 0.01, 0.3, 0.7, 0.99, 1 - 1e-6])
    log_a, log_b, u = (grid.reshape(-1, 1) for grid in torch.meshgrid(values, values, noise, indexing="ij"))
    log_pi, log_v, log_q = target(stick_log_weights, log_a, log_b, u)
    worst = 0.0
    smallest = mpmath.mpf(2) ** -126  # below it float32 has no relative precision
    with mpmath.workdps(700):  # 1 - 1e-600 must differ from 1
        for row in range(len(u)):
            a, b = (mpmath.exp(mpmath.mpf(float(value[row]))) for value in (log_a, log_b))
            noise_exact = mpmath.mpf(float(u[row]))
            power = -mpmath.expm1(mpmath.log(noise_exact) / b)  # x^a
            log_x = mpmath.log(power) / a
            log_rest = mpmath.log(-mpmath.expm1(log_x))
            density = mpmath.log(a) + mpmath.log(b) + (a - 1) * log_x + (1 - 1 / b) * mpmath.log(noise_exact)
            # log_q is a sum of terms of this size: relative to them, not to a sum that may cancel
            terms = max(abs((a - 1) * log_x), abs(mpmath.log(noise_exact) / b), abs(mpmath.log(a)), 1)
            for value, truth, size in (
                (log_v[row], log_x, max(abs(log_x), smallest)),
                (log_pi[row, 1], log_rest, max(abs(log_rest), smallest)),
                (log_q[row], density, terms),
            ):
                worst = max(worst, float(abs(mpmath.mpf(float(value)) - truth) / size))
    assert worst < 2e-5  # 6.6e-6 measured


def test_stick_gradients_and_normalisation_at_the_edges(target: Callable[..., Any]) -> None:
    grid = torch.linspace(-5, 5, 11)
    noise = torch.tensor([0.0, 1e-7, 1e-3, 0.5, 0.999, 1 - 2**-24])  # 0 as torch.rand may return it
    log_a, log_b, u = (tensor.reshape(-1, 1) for tensor in torch.meshgrid(grid, grid, noise, indexing="ij"))
    log_a, log_b = (tensor.clone().requires_grad_() for tensor in (log_a, log_b))
    results = target(stick_log_weights, log_a, log_b, u)
    for tensor in results:
        assert tensor.isfinite().all()
    torch.testing.assert_close(results[0].exp().sum(-1), torch.ones(len(u)), rtol=0, atol=1e-6)
    sum(tensor.sum() for tensor in results).backward()
    assert log_a.grad.isfinite().all() and log_b.grad.isfinite().all()


def test_stick_gradients_match_the_reference(target: Callable[..., Any]) -> None:
    log_a, log_b, u = sticks(6, 9, 1.5, seed=2)

    def loss(op: Callable[..., tuple[Tensor, ...]], dtype: torch.dtype) -> Callable[..., Tensor]:
        def run(a: Tensor, b: Tensor) -> Tensor:
            log_pi, log_v, log_q = op(a, b, u.to(dtype))
            return torch.cat((log_pi.sin(), log_v.cos(), log_q.sin()), -1)

        return run

    exact = gradients(loss(stick_log_weights_reference, torch.float64), [log_a, log_b], torch.float64)

    def op(a: Tensor, b: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return target(stick_log_weights, a, b, noise)

    for ours, truth in zip(gradients(loss(op, torch.float32), [log_a, log_b], torch.float32), exact, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=2e-4, atol=2e-4)


def test_float64_is_float64(target: Callable[..., Any]) -> None:
    """Every digit, where a constant or a series good for float32 would show: 1e-6 at D = 64, 4e-7 in the sticks."""
    if target.backend == "cpp":
        pytest.skip("it takes float32")
    z, *parts = mixture(2, 3, 5, 64)
    mean_q, log_scale_q, eps = posterior(2, 3, 64)
    ours = target(mixture_log_prob, z, *parts), target(mixture_kl, mean_q, log_scale_q, *parts, eps)
    exact = mixture_log_prob_reference(z, *parts), mixture_kl_reference(mean_q, log_scale_q, *parts, eps)
    torch.testing.assert_close(ours, exact, rtol=1e-13, atol=1e-12)
    # t = log(1 - v^a) on both sides of the thresholds of the series for 1 - v
    t = torch.linspace(-44, -5, 40, dtype=torch.float64)[:, None]
    log_b = torch.full_like(t, -2.0)
    u = (t * log_b.exp()).exp()
    assert (u > 2.0**-26).all()
    for log_a in (-2.0, 0.3, 2.0):
        log_pi, log_v, _ = target(stick_log_weights, torch.full_like(t, log_a), log_b, u)
        log_v_exact = torch.log1p(-t.exp()) * math.exp(-log_a)
        torch.testing.assert_close(log_v, log_v_exact, rtol=1e-13, atol=0)
        torch.testing.assert_close(log_pi[:, 1:], torch.log(-torch.expm1(log_v_exact)), rtol=1e-13, atol=0)


def test_stick_gradcheck() -> None:
    log_a, log_b, u = sticks(3, 4, 2.0, seed=3)
    u[0, 0] = 1e-9
    log_b[0, 0] = -1.0  # t = -56: the series branch of log(1 - v)
    leaves = (log_a.requires_grad_(), log_b.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: stick_log_weights(a, b, u, backend="torch"), leaves)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("samples", "rows", "components", "width"), [*SHAPES, (0, 3, 2, 4), (2, 0, 2, 4)])
def test_log_prob_matches_the_reference(
    target: Callable[..., Any], samples: int, rows: int, components: int, width: int, shared: bool
) -> None:
    tensors = mixture(samples, rows, components, width, shared)
    exact = mixture_log_prob_reference(*tensors)
    ours = target(mixture_log_prob, *(tensor.float() for tensor in tensors))
    assert ours.dtype == torch.float32
    # rounding of the inputs to float32 moves a density of |value| ~ 100 by about 2e-5 here
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)
    if samples and rows:
        exact_gradients = gradients(mixture_log_prob_reference, tensors, torch.float64)
        our_gradients = gradients(lambda *t: target(mixture_log_prob, *t), tensors, torch.float32)
        for gradient, truth in zip(our_gradients, exact_gradients, strict=True):
            torch.testing.assert_close(gradient.double(), truth, rtol=1e-4, atol=2e-4)


def test_log_prob_with_small_scales(target: Callable[..., Any]) -> None:
    """sigma = e^-4: the expanded square was off by .059 here, the direct form stays at rounding."""
    z, log_pi, means, _ = mixture(2, 8, 4, 16)
    log_scales = torch.full_like(means, -4.0)
    z = means[:, 0] + 0.05 * z
    tensors = [tensor.float() for tensor in (z, log_pi, means, log_scales)]
    exact = mixture_log_prob_reference(*(tensor.double() for tensor in tensors))
    torch.testing.assert_close(target(mixture_log_prob, *tensors).double(), exact, rtol=2e-6, atol=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_log_prob_gradcheck(shared: bool) -> None:
    leaves = tuple(tensor.requires_grad_() for tensor in mixture(2, 3, 3, 4, shared))
    assert torch.autograd.gradcheck(lambda *t: mixture_log_prob(*t, backend="torch"), leaves)


def test_one_component_is_a_normal(target: Callable[..., Any]) -> None:
    z, _, means, log_scales = (tensor.float() for tensor in mixture(4, 6, 1, 5))
    normal = torch.distributions.Normal(means[:, 0], log_scales[:, 0].exp()).log_prob(z).sum(-1)
    ours = target(mixture_log_prob, z, torch.zeros(6, 1), means, log_scales)
    torch.testing.assert_close(ours, normal, rtol=1e-5, atol=1e-5)


def test_log_prob_equals_torch_distributions(target: Callable[..., Any]) -> None:
    z, log_pi, means, log_scales = mixture(3, 9, 6, 8)
    components = torch.distributions.Independent(torch.distributions.Normal(means, log_scales.exp()), 1)
    peer = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=log_pi), components)
    ours = target(mixture_log_prob, *(tensor.float() for tensor in (z, log_pi, means, log_scales)))
    torch.testing.assert_close(ours.double(), peer.log_prob(z), rtol=1e-5, atol=1e-4)


def test_density_integrates_to_one(target: Callable[..., Any]) -> None:
    _, log_pi, means, log_scales = (tensor.float() for tensor in mixture(1, 1, 5, 1, shared=True))
    grid = torch.linspace(-15, 15, 1000)
    z = grid.view(50, 20, 1)
    density = target(mixture_log_prob, z, log_pi.expand(20, 5), means, log_scales).exp().flatten()
    assert abs(torch.trapezoid(density.double(), grid.double()).item() - 1) < 1e-5


def test_a_component_without_weight_changes_nothing(target: Callable[..., Any]) -> None:
    z, log_pi, means, log_scales = (tensor.float() for tensor in mixture(2, 4, 3, 5))
    expected = target(mixture_log_prob, z, log_pi, means, log_scales)
    wider = [torch.cat((tensor, torch.ones_like(tensor[:, :1])), 1) for tensor in (means, log_scales)]
    off = torch.cat((log_pi, torch.full((4, 1), -math.inf)), 1)
    leaves = [tensor.requires_grad_() for tensor in wider]
    result = target(mixture_log_prob, z, off, *leaves)
    torch.testing.assert_close(result, expected)
    result.sum().backward()
    assert all(torch.equal(leaf.grad[:, -1], torch.zeros(4, 5)) for leaf in leaves)


def test_nan_stays_in_its_row(target: Callable[..., Any]) -> None:
    z, log_pi, means, log_scales = (tensor.float() for tensor in mixture(2, 4, 3, 5))
    expected = target(mixture_log_prob, z, log_pi, means, log_scales)
    z[1, 2, 0] = math.nan
    result = target(mixture_log_prob, z, log_pi, means, log_scales)
    assert result[1, 2].isnan()
    result[1, 2] = expected[1, 2]
    assert torch.equal(result, expected)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("samples", "rows", "components", "width"), SHAPES)
def test_kl_matches_the_reference(
    target: Callable[..., Any], samples: int, rows: int, components: int, width: int, shared: bool
) -> None:
    _, *prior = mixture(samples, rows, components, width, shared)
    mean, log_scale, eps = posterior(samples, rows, width)
    tensors = [mean, log_scale, *prior, eps]
    exact = mixture_kl_reference(*tensors)
    ours = target(mixture_kl, *(tensor.float() for tensor in tensors))
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4)
    exact_gradients = gradients(lambda *t: mixture_kl_reference(*t, eps.to(t[0].dtype)), tensors[:-1], torch.float64)
    our_gradients = gradients(lambda *t: target(mixture_kl, *t, eps.to(t[0].dtype)), tensors[:-1], torch.float32)
    for gradient, truth in zip(our_gradients, exact_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), truth, rtol=1e-4, atol=2e-4)


def restrided(tensor: Tensor, layout: int) -> Tensor:
    """The same numbers with other strides, each layout another: axes swapped in memory, steps of two and three."""
    if layout == 0:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] * (layout + 1)), math.nan, dtype=tensor.dtype)
    wide[..., :: layout + 1] = tensor
    return wide[..., :: layout + 1]


@pytest.mark.parametrize("shared", [False, True])
def test_every_tensor_has_its_own_strides(target: Callable[..., Any], shared: bool) -> None:
    _, *prior = mixture(2, 5, 3, 7, shared)
    mean, log_scale, eps = posterior(2, 5, 7)
    tensors = [tensor.float() for tensor in (mean, log_scale, *prior, eps)]
    expected = target(mixture_kl, *tensors)
    expected_gradients = gradients(lambda *t: target(mixture_kl, *t, tensors[-1]), tensors[:-1], torch.float32)
    for shift in range(3):
        strided = [restrided(tensor, (place + shift) % 3) for place, tensor in enumerate(tensors)]
        torch.testing.assert_close(target(mixture_kl, *strided), expected)

        def loss(*leaves: Tensor, strided: list[Tensor] = strided, shift: int = shift) -> Tensor:
            moved = [restrided(leaf, (place + shift) % 3) for place, leaf in enumerate(leaves)]
            return target(mixture_kl, *moved, strided[-1])

        for gradient, truth in zip(gradients(loss, tensors[:-1], torch.float32), expected_gradients, strict=True):
            torch.testing.assert_close(gradient, truth)
        z, *rest = strided[-1], *strided[2:-1]
        torch.testing.assert_close(
            target(mixture_log_prob, z, *rest), target(mixture_log_prob, tensors[-1], *tensors[2:-1])
        )


def test_sticks_take_any_strides(target: Callable[..., Any]) -> None:
    arguments = [tensor.float() for tensor in sticks(5, 4, 1.0, seed=7)]
    expected = target(stick_log_weights, *arguments)
    strided = [restrided(tensor, place) for place, tensor in enumerate(arguments)]
    for ours, truth in zip(target(stick_log_weights, *strided), expected, strict=True):
        torch.testing.assert_close(ours, truth)


def test_kl_of_normals_converges_to_the_closed_form(target: Callable[..., Any]) -> None:
    mean, log_scale, eps = (tensor.float() for tensor in posterior(256, 2, 6))
    prior_mean, prior_scale = torch.full((2, 1, 6), 0.3), torch.full((2, 1, 6), 0.2)
    p = torch.distributions.Normal(prior_mean[:, 0], prior_scale[:, 0].exp())
    exact = torch.distributions.kl_divergence(torch.distributions.Normal(mean, log_scale.exp()), p).sum(-1)
    ours = target(mixture_kl, mean, log_scale, torch.zeros(2, 1), prior_mean, prior_scale, eps)
    # the Monte-Carlo error of 256 samples: the standard deviation of one is below 6 nats here
    torch.testing.assert_close(ours, exact, rtol=0, atol=4 * 6 / math.sqrt(256))


def test_stick_kl_by_monte_carlo_agrees_with_quadrature(target: Callable[..., Any]) -> None:
    """E[log q(v) - log p(v)] over the sticks' own samples equals the integral over v, p = Beta(1, alpha)."""
    mpmath = pytest.importorskip("mpmath")
    count, alpha = 10_000, 2.5
    for a, b in ((0.7, 1.4), (2.0, 0.8), (1.0, 2.5)):
        # stratified noise: the error of the mean falls far below 1/sqrt(count)
        u = ((torch.arange(count, dtype=torch.float64) + 0.5) / count).float().view(-1, 1)
        log_a, log_b = torch.full((count, 1), math.log(a)), torch.full((count, 1), math.log(b))
        log_pi, _, log_q = target(stick_log_weights, log_a, log_b, u)
        log_p = math.log(alpha) + (alpha - 1) * log_pi[:, 1]
        estimate = (log_q[:, 0] - log_p).double().mean().item()
        with mpmath.workdps(20):

            def integrand(v: Any, a: float = a, b: float = b) -> Any:
                q = a * b * v ** (a - 1) * (1 - v**a) ** (b - 1)
                return q * (mpmath.log(q) - mpmath.log(alpha) - (alpha - 1) * mpmath.log(1 - v))

            exact = float(mpmath.quad(integrand, [0, 0.001, 0.5, 0.999, 1]))
        assert abs(estimate - exact) < 2e-3, (a, b, estimate, exact)


def test_autocast_gives_float32_densities(target: Callable[..., Any]) -> None:
    tensors = [tensor.float() for tensor in mixture(2, 4, 3, 5)]
    expected = target(mixture_log_prob, *tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(target(mixture_log_prob, *tensors), expected)
    half = target(mixture_log_prob, *(tensor.bfloat16() for tensor in tensors))
    assert half.dtype == torch.float32
    rounded = [tensor.bfloat16().double() for tensor in tensors]
    torch.testing.assert_close(half.double(), mixture_log_prob_reference(*rounded), rtol=1e-5, atol=1e-4)


def test_errors_name_the_axes() -> None:
    z, log_pi, means, log_scales = mixture(2, 4, 3, 5)
    with pytest.raises(
        ValueError, match=re.escape("means: expected shape (N=4, K=3, D=5), found (4, 3, 6); axis D is 6")
    ):
        mixture_log_prob(z, log_pi, torch.zeros(4, 3, 6), log_scales)
    with pytest.raises(ValueError, match=re.escape("log_pi: expected shape (N=4, K), found (5, 3)")):
        mixture_log_prob(z, torch.zeros(5, 3), means, log_scales)
    with pytest.raises(ValueError, match="at least one component"):
        mixture_log_prob(z, log_pi[:, :0], means[:, :0], log_scales[:, :0])
    with pytest.raises(ValueError, match=re.escape("u: expected shape (N=4, K-1=2), found (4, 3)")):
        stick_log_weights(torch.zeros(4, 2), torch.zeros(4, 2), torch.rand(4, 3))
    with pytest.raises(ValueError, match="at least one sample"):
        mixture_kl(z[0], z[0], log_pi, means, log_scales, z[:0])
    with pytest.raises(TypeError, match="z: expected float32"):
        mixture_log_prob(z.long(), log_pi, means, log_scales)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("samples", "rows", "components", "width"), [*SHAPES, (0, 3, 2, 4), (2, 0, 2, 4)])
def test_responsibilities_match_the_reference(
    target: Callable[..., Any], samples: int, rows: int, components: int, width: int, shared: bool
) -> None:
    tensors = mixture(samples, rows, components, width, shared)
    exact = mixture_responsibilities_reference(*tensors)
    plain = [tensor.float() for tensor in tensors]
    log_prob, ours = target(mixture_log_prob, *plain, return_responsibilities=True)
    assert torch.equal(log_prob, target(mixture_log_prob, *plain))
    assert ours.dtype == torch.float32 and ours.shape == (samples, rows, components)
    # an error of 2e-5 in a log density (see above) is one of 2e-5 in its exponential
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.sum(-1), torch.ones(samples, rows), rtol=0, atol=1e-6)
    if samples and rows:
        weights = torch.linspace(-1, 1, components, dtype=torch.float64)

        def loss(*leaves: Tensor) -> Tensor:
            _, posterior = target(mixture_log_prob, *leaves, return_responsibilities=True)
            return posterior @ weights.to(posterior.dtype)

        truth = gradients(lambda *t: mixture_responsibilities_reference(*t) @ weights, tensors, torch.float64)
        for gradient, expected in zip(gradients(loss, tensors, torch.float32), truth, strict=True):
            torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=5e-4)


def test_responsibilities_of_the_kl_are_those_of_its_samples(target: Callable[..., Any]) -> None:
    _, *prior = (tensor.float() for tensor in mixture(3, 5, 4, 6))
    mean, log_scale, eps = (tensor.float() for tensor in posterior(3, 5, 6))
    leaves = [tensor.clone().requires_grad_() for tensor in (mean, log_scale)]
    kl, ours = target(mixture_kl, *leaves, *prior, eps, return_responsibilities=True)
    assert torch.equal(kl, target(mixture_kl, mean, log_scale, *prior, eps))
    ours[..., 0].sum().backward()
    truth = [tensor.double().requires_grad_() for tensor in (mean, log_scale)]
    z = truth[0] + truth[1].exp() * eps.double()
    exact = mixture_responsibilities_reference(z, *(tensor.double() for tensor in prior))
    exact[..., 0].sum().backward()
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-4)
    for leaf, other in zip(leaves, truth, strict=True):
        torch.testing.assert_close(leaf.grad.double(), other.grad, rtol=1e-4, atol=1e-4)


def test_responsibilities_of_halves_and_odd_strides(target: Callable[..., Any]) -> None:
    tensors = [tensor.bfloat16() for tensor in mixture(2, 5, 3, 7)]
    strided = [restrided(tensor, place % 3) for place, tensor in enumerate(tensors)]
    _, ours = target(mixture_log_prob, *strided, return_responsibilities=True)
    assert ours.dtype == torch.float32
    exact = mixture_responsibilities_reference(*(tensor.double() for tensor in tensors))
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-4)


def test_a_component_without_weight_has_no_responsibility(target: Callable[..., Any]) -> None:
    z, log_pi, means, log_scales = (tensor.float() for tensor in mixture(2, 4, 3, 5))
    log_pi[:, 1] = -math.inf
    _, ours = target(mixture_log_prob, z, log_pi, means, log_scales, return_responsibilities=True)
    assert torch.equal(ours[..., 1], torch.zeros(2, 4))


def test_responsibilities_gradcheck() -> None:
    leaves = tuple(tensor.requires_grad_() for tensor in mixture(2, 3, 3, 4))

    def op(*tensors: Tensor) -> Tensor:
        return mixture_log_prob(*tensors, return_responsibilities=True, backend="torch")[1]

    assert torch.autograd.gradcheck(op, leaves)


def test_many_samples_of_many_components(target: Callable[..., Any]) -> None:
    """Triton's tile narrows here: several tiles of components for all samples at once."""
    tensors = mixture(200, 1, 33, 4)
    ours = target(mixture_log_prob, *(tensor.float() for tensor in tensors))
    torch.testing.assert_close(ours.double(), mixture_log_prob_reference(*tensors), rtol=1e-5, atol=1e-4)
