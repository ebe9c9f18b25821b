"""Latent groups: densities, samples and divergences agree with each other, and one group is the plain mixture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aime.generative_prior import DPGMMPrior, HierarchicalPrior, HierarchicalPriorParameters, group_sizes

D, H = 5, 6


def moved_prior(groups: int, components: int = 4) -> HierarchicalPrior:
    """A prior away from its neutral start."""
    torch.manual_seed(0)
    prior = HierarchicalPrior(components, D, H, groups=groups, component_width=8, stick_width=8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return prior


def drawn(prior: HierarchicalPrior, count: int, seed: int = 2) -> tuple[HierarchicalPriorParameters, Tensor, Tensor]:
    """Prior parameters of ``count`` equal states, and a posterior (count, D)."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(1, H, generator=generator).expand(count, H)
    mean = torch.randn(1, D, generator=generator).expand(count, D)
    log_scale = (0.3 * torch.randn(1, D, generator=generator) - 1).expand(count, D)
    params = prior(h, noise=torch.rand(1, prior.max_components - 1, generator=generator).expand(count, -1))
    offset = torch.randn(1, D, generator=generator).expand(count, D)
    moved = params.moved(offset)
    assert isinstance(moved, HierarchicalPriorParameters)
    return moved, mean, log_scale


def test_sizes_are_as_equal_as_can_be() -> None:
    assert [group_sizes(16, g) for g in (1, 2, 3)] == [(16,), (8, 8), (6, 5, 5)]
    with pytest.raises(ValueError, match="expected at least 2 groups and as many latents, found 1, 4"):
        HierarchicalPrior(4, 4, H, groups=1)
    with pytest.raises(TypeError, match="expected those of a hierarchical prior, found PriorParameters"):
        moved_prior(2).mean(DPGMMPrior(4, 3, H)(torch.zeros(2, H)))


@torch.no_grad()
@pytest.mark.parametrize(("groups", "components"), [(2, 4), (3, 1), (5, 4)])
def test_divergence_is_the_mean_log_ratio_of_densities(groups: int, components: int) -> None:
    prior = moved_prior(groups, components)
    count = 40_000
    params, mean, log_scale = drawn(prior, count)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, D, generator=generator)
    z = prior.sample_posterior(mean, log_scale, noise)
    # the log density of z under the posterior: that of the noise, less the logs of all scales
    scales = torch.zeros(count)
    for group, part in prior._finer_groups():
        scales += group.base(z[:, : part.start])[1].sum(-1)
    log_q = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(-1) - log_scale.sum(-1) - scales
    ratio = log_q - prior.log_prob(z, params)
    kl = prior.kl_divergence(mean, log_scale, params, generator=generator)
    groupwise = prior.group_kl(mean, log_scale, params, generator=generator)
    assert groupwise.shape == (count, groups)
    error = float((ratio.var() / count + kl.var() / count).sqrt())
    assert abs(float(ratio.mean() - kl.mean())) < 4 * error
    torch.testing.assert_close(groupwise.sum(-1).mean(), kl.mean(), rtol=0, atol=4 * error + 1e-6)


@torch.no_grad()
def test_samples_follow_the_density() -> None:
    """E_p[f] by samples equals E_q[f p / q] by importance weights, for the moments of all groups."""
    prior, count = moved_prior(2), 200_000
    params, _, _ = drawn(prior, count)
    samples = prior.sample(params, generator=torch.Generator().manual_seed(4))
    mean, scale = samples.mean(0), samples.std(0)
    wide = torch.distributions.Normal(mean, 2.0 * scale)
    torch.manual_seed(5)
    proposed = wide.sample((count,))
    weights = (prior.log_prob(proposed, params) - wide.log_prob(proposed).sum(-1)).exp()
    assert abs(float(weights.mean()) - 1.0) < 5 * float(weights.std()) / count**0.5
    for power in (1, 2):
        found = (weights[:, None] * proposed**power).mean(0)
        error = (weights[:, None] * proposed**power).std(0) / count**0.5 + (samples**power).std(0) / count**0.5
        assert bool(((found - (samples**power).mean(0)).abs() < 5 * error).all())


@torch.no_grad()
def test_a_posterior_without_correction_pays_for_the_expectation_alone() -> None:
    """Where posterior and prior both say what the coarser groups say, a finer group costs nothing."""
    prior = HierarchicalPrior(4, D, H, groups=2)
    for group, _ in prior._finer_groups():
        torch.nn.init.zeros_(group.past[-1].weight)
        torch.nn.init.normal_(group.frame[-1].weight)
    params = prior(torch.randn(7, H))
    kl = prior.group_kl(torch.zeros(7, D), torch.zeros(7, D), params)
    torch.testing.assert_close(kl[:, 1], torch.zeros(7), rtol=0, atol=1e-6)
    temperate = prior.sample(params, temperature=0.0)
    heaviest = params.means[torch.arange(7), params.log_pi.argmax(-1)]
    torch.testing.assert_close(temperate[:, :3], heaviest)
