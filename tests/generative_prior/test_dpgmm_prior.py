"""The mixture prior: densities, divergence, samples, and that its components follow the data."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from aime.generative_prior import (
    DPGMMPrior,
    PriorParameters,
    ambiguity,
    components_in_use,
    effective_components,
    log_responsibilities,
    usage_entropy,
)


@pytest.fixture
def prior() -> DPGMMPrior:
    torch.manual_seed(0)
    return DPGMMPrior(max_components=5, latent_dim=3, hidden_dim=6, prior_alpha=2.0, prior_beta=1.0)


def as_torch(params: PriorParameters) -> MixtureSameFamily:
    components = Independent(Normal(params.means, params.log_scales.exp()), 1)
    return MixtureSameFamily(Categorical(logits=params.log_pi), components)


@pytest.mark.parametrize("leading", [(1,), (4,), (2, 3), (1, 1)])
def test_shapes_and_density_for_any_leading_axes(prior: DPGMMPrior, leading: tuple[int, ...]) -> None:
    params = prior(torch.randn(*leading, 6))
    assert params.means.shape == params.log_scales.shape == (*leading, 5, 3)
    z = torch.randn(7, *leading, 3)
    assert torch.allclose(prior.log_prob(z, params), as_torch(params).log_prob(z), atol=1e-4)
    assert torch.allclose(prior.log_prob(z[0], params), as_torch(params).log_prob(z[0]), atol=1e-4)
    assert prior.kl_divergence(z[0], z[1], params, num_samples=2).shape == leading
    assert prior.stick_kl(params).shape == prior.stick_kl(params, quadrature=16).shape == leading
    assert prior.sample(params).shape == prior.mean(params).shape == (*leading, 3)


def test_rows_do_not_depend_on_their_batch(prior: DPGMMPrior) -> None:
    h, noise = torch.randn(4, 5, 6), torch.rand(4, 5, 4)
    together, alone = prior(h, noise=noise), prior(h[2:3, 3:4], noise=noise[2:3, 3:4])
    assert torch.allclose(together.means[2:3, 3:4], alone.means, atol=1e-6)
    assert torch.allclose(together.log_pi[2:3, 3:4], alone.log_pi, atol=1e-6)


def test_divergence_from_equal_components_is_the_gaussian_one(prior: DPGMMPrior) -> None:
    params = prior(torch.randn(4, 6))
    equal = PriorParameters(
        **{**vars(params), "means": torch.zeros(4, 5, 3), "log_scales": torch.full((4, 5, 3), math.log(2.0))}
    )
    mean, log_scale = torch.randn(4, 3), 0.3 * torch.randn(4, 3)
    eps = torch.randn(40_000, 4, 3, generator=torch.Generator().manual_seed(0))
    q = Independent(Normal(mean, log_scale.exp()), 1)
    exact = torch.distributions.kl_divergence(q, Independent(Normal(torch.zeros(4, 3), torch.full((4, 3), 2.0)), 1))
    estimate = prior.kl_divergence(mean, log_scale, equal, eps)
    assert torch.allclose(estimate, exact, atol=0.02)  # cross entropy has standard deviation about .5 per sample


def test_every_parameter_learns(prior: DPGMMPrior) -> None:
    params = prior(torch.randn(8, 6))
    mean, log_scale = torch.randn(8, 3, requires_grad=True), torch.zeros(8, 3, requires_grad=True)
    loss = prior.kl_divergence(mean, log_scale, params, num_samples=4).mean() + prior.stick_kl(params).mean()
    loss.backward()
    for name, parameter in prior.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert mean.grad is not None and mean.grad.any()


def test_densities_stay_in_float32_under_autocast(prior: DPGMMPrior) -> None:
    h, noise = torch.randn(2, 6), torch.rand(2, 4)
    mean, log_scale, eps = torch.zeros(2, 3), torch.full((2, 3), -4.0), torch.randn(5, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        params = prior(h.bfloat16(), noise=noise)
        kl = prior.kl_divergence(mean, log_scale, params, eps)
    assert {value.dtype for value in (*vars(params).values(), kl)} == {torch.float32}
    assert torch.equal(kl, prior.kl_divergence(mean, log_scale, params, eps))  # given the parameters, nothing is lost
    # The networks round like bfloat16, 2^-8, over two layers.
    torch.testing.assert_close(params.means, prior(h.bfloat16().float(), noise=noise).means, rtol=0.02, atol=0.02)


def test_samples_follow_the_mixture_and_temperature_narrows_them(prior: DPGMMPrior) -> None:
    params = prior(torch.randn(1, 6)[[0] * 20_000], noise=torch.full((20_000, 4), 0.5))
    z = prior.sample(params, generator=torch.Generator().manual_seed(0))
    expected = as_torch(params)
    assert torch.allclose(z.mean(0), prior.mean(params)[0], atol=4 * z.std().item() / math.sqrt(len(z)))
    assert torch.allclose(z.var(0), expected.variance[0], rtol=0.06)
    heaviest = params.log_pi[0].argmax()
    assert torch.equal(prior.sample(params, temperature=0.0), params.means[:, heaviest])


def test_deterministic_weights_are_repeatable_and_normalised(prior: DPGMMPrior) -> None:
    h = torch.randn(3, 6)
    first, second = prior(h, deterministic=True), prior(h, deterministic=True)
    assert torch.equal(first.log_pi, second.log_pi)
    assert torch.allclose(first.log_pi.exp().sum(-1), torch.ones(3), atol=1e-6)


def test_usage_counts() -> None:
    log_pi = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1 - 3e-9, 1e-9, 1e-9, 1e-9], [0.6, 0.395, 0.004, 0.001]]).log()
    assert torch.allclose(effective_components(log_pi)[:2], torch.tensor([4.0, 1.0]), atol=1e-5)
    assert components_in_use(log_pi, 0.99).tolist() == [4, 1, 2]


def test_likelihood_is_blind_to_copies_and_the_completed_one_is_not() -> None:
    z = torch.randn(50, 2)
    single = (torch.tensor([1.0, 1e-30]).log(), torch.zeros(2, 2), torch.zeros(2, 2))
    copies = (torch.tensor([0.5, 0.5]).log(), torch.zeros(2, 2), torch.zeros(2, 2))
    assert ambiguity(log_responsibilities(z, *single)).max() < 1e-6
    assert torch.allclose(ambiguity(log_responsibilities(z, *copies)), torch.full((50,), math.log(2)), atol=1e-6)


def test_usage_entropy_is_of_the_data_set_not_of_a_sample() -> None:
    sure = torch.eye(4).clamp_min(1e-30).log()
    assert math.isclose(usage_entropy(sure).item(), math.log(4), abs_tol=1e-5)
    assert math.isclose(usage_entropy(sure[:1].expand(4, 4)).item(), 0.0, abs_tol=1e-5)
    far = torch.full((3, 4), -1e4).index_fill(1, torch.tensor([0]), 0.0).requires_grad_()
    (gradient,) = torch.autograd.grad(usage_entropy(far) + ambiguity(far).sum(), far)
    assert gradient.isfinite().all()


def test_state_dict_is_complete_before_the_first_forward(prior: DPGMMPrior) -> None:
    torch.manual_seed(1)
    other = DPGMMPrior(max_components=5, latent_dim=3, hidden_dim=6, prior_alpha=2.0, prior_beta=1.0)
    other.load_state_dict(prior.state_dict(), strict=True)
    h, noise = torch.randn(2, 6), torch.rand(2, 4)
    assert torch.equal(prior(h, noise=noise).means, other(h, noise=noise).means)


def test_wrong_shapes_are_named(prior: DPGMMPrior) -> None:
    with pytest.raises(ValueError, match=r"h: expected \(..., hidden_dim=6\), found \(2, 7\)"):
        prior(torch.zeros(2, 7))
    params = prior(torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"mean_q, log_scale_q: expected \(..., D\) = \(2, 3\)"):
        prior.kl_divergence(torch.zeros(3, 3), torch.zeros(3, 3), params)
    with pytest.raises(ValueError, match="eps: expected"):
        prior.kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3), params, torch.zeros(4, 1, 3))


def modes(count: int, samples: int, generator: torch.Generator) -> Tensor:
    """Equal Gaussians of standard deviation .4 on a circle of radius 4, neighbours at least 3.5 apart."""
    angle = torch.arange(count) * (2 * math.pi / count)
    centers = 4 * torch.stack((angle.cos(), angle.sin()), -1)
    return centers[torch.arange(samples) % count] + 0.4 * torch.randn(samples, 2, generator=generator)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_components_in_use_are_the_modes_of_the_data(count: int) -> None:
    """16 components fitted by the completed likelihood plus the stick divergence of a data set of 600 points.

    Ambiguity is charged only after every mode has found a component: before that it would freeze the first split.
    """
    torch.manual_seed(count)
    generator = torch.Generator().manual_seed(count)
    data = modes(count, 600, generator)
    start = {"initial_concentration": 6.0, "spread": 3.5, "initial_scale": 0.6}
    prior = DPGMMPrior(16, 2, hidden_dim=4, stick_width=16, component_width=16, **start)
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.02)
    steps, state = 400, torch.zeros(8, 4)  # 8 draws of the sticks a step, the state tells nothing
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2.02 - 2 * step / steps))
    for step in range(steps):
        params = prior(state, generator=generator)
        z = data[torch.randint(len(data), (64, 8), generator=generator)]  # (S, 8, D)
        loss = -prior.log_prob(z, params).mean()
        loss = loss + min(1.0, 2 * step / steps) * prior.stick_kl(params).mean() / len(data)
        loss = (
            loss
            + min(1.0, max(0.0, (step / steps - 0.2) / 0.4)) * ambiguity(prior.log_responsibilities(z, params)).mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        params = prior(state[:1], deterministic=True)
        assert components_in_use(params.log_pi, 0.95).item() == count
        owner = prior.log_responsibilities(data.unsqueeze(1), params).argmax(-1).squeeze(1)  # (600,)
        mode = torch.arange(len(data)) % count
        table = torch.zeros(count, 16).index_put((mode, owner), torch.ones(()), accumulate=True) / len(data)
        assert (table.amax(1) > 0.95 / count).all()  # one component owns at least 95 % of each mode
        assert len(set(table.argmax(1).tolist())) == count  # and no two modes share it


def test_one_component_is_a_gaussian_without_sticks_whose_kl_is_exact() -> None:
    torch.manual_seed(0)
    prior = DPGMMPrior(max_components=1, latent_dim=3, hidden_dim=6)
    assert not list(prior.stick_breaking.parameters())
    params = prior(torch.randn(2, 4, 6), deterministic=True)
    mean, log_scale = torch.randn(2, 4, 3), 0.3 * torch.randn(2, 4, 3)
    expected = kl_divergence(
        Normal(mean, log_scale.exp()), Normal(params.means[..., 0, :], params.log_scales[..., 0, :].exp())
    ).sum(-1)
    torch.testing.assert_close(prior.kl_divergence(mean, log_scale, params), expected)
    assert torch.equal(prior.stick_kl(params), torch.zeros(2, 4))
    assert torch.equal(prior.stick_kl(params, quadrature=8), torch.zeros(2, 4))
    assert torch.equal(prior.effective_components(params.log_pi), torch.ones(2, 4))
    torch.testing.assert_close(prior.mean(params), params.means[..., 0, :])
    draws = torch.stack([prior.sample(params, generator=torch.Generator().manual_seed(i)) for i in range(400)])
    standardised = (draws.mean(0) - prior.mean(params)) / params.log_scales[..., 0, :].exp()
    assert float(standardised.detach().abs().max()) < 0.25
