"""Closed forms of the mixture's calibration figures against sampling and quadrature."""

import math

import numpy as np
import torch

from aime.evaluation.mixture import (
    GaussianMixture,
    components_used,
    crps,
    negative_log_likelihood,
    probability_integral_transform,
    responsibilities,
)


def example() -> GaussianMixture:
    log_pi = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    means = torch.tensor([[-2.0, 0.0], [0.5, 1.0], [3.0, -1.0]], dtype=torch.float64)
    scales = torch.tensor([[0.5, 1.0], [1.0, 0.3], [0.2, 2.0]], dtype=torch.float64)
    return GaussianMixture(log_pi, means, scales.log())


def sample(mixture: GaussianMixture, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    which = torch.multinomial(mixture.log_pi.exp(), count, replacement=True, generator=generator)
    noise = torch.randn(count, 2, dtype=torch.float64, generator=generator)
    return mixture.means[which] + mixture.log_scales[which].exp() * noise


def test_likelihood_matches_torch_distributions() -> None:
    mixture, z = example(), torch.tensor([[0.3, 0.9], [-4.0, 2.0]], dtype=torch.float64)
    reference = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=mixture.log_pi),
        torch.distributions.Independent(torch.distributions.Normal(mixture.means, mixture.log_scales.exp()), 1),
    )
    torch.testing.assert_close(negative_log_likelihood(mixture, z), -reference.log_prob(z))


def test_crps_matches_the_ensemble_form() -> None:
    mixture, z = example(), torch.tensor([0.3, -2.5], dtype=torch.float64)
    draws = sample(mixture, 200_000)
    miss = (draws - z).abs().mean(0)
    spread = 0.5 * (draws[:100_000] - draws[100_000:]).abs().mean(0)
    # Standard error of the ensemble form here is about .004.
    torch.testing.assert_close(crps(mixture, z), (miss - spread).mean(), atol=0.02, rtol=0.0)


def test_crps_of_a_standard_normal_at_its_mean() -> None:
    mixture = GaussianMixture(torch.zeros(1), torch.zeros(1, 1), torch.zeros(1, 1))
    expected = 2 / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi)  # Gneiting & Raftery 2007, eq. 20
    torch.testing.assert_close(crps(mixture, torch.zeros(1)), torch.tensor(expected))


def test_probability_integral_transform_of_own_samples_is_uniform() -> None:
    mixture = example()
    draws = sample(mixture, 20_000)
    transform = probability_integral_transform(mixture, draws).numpy()
    for column in transform.T:
        share = np.histogram(column, bins=10, range=(0, 1))[0] / len(column)
        assert np.abs(share - 0.1).max() < 0.01  # five standard errors


def test_responsibilities_sum_to_one_and_follow_the_nearest_component() -> None:
    shares = responsibilities(example(), torch.tensor([3.0, -1.0], dtype=torch.float64))
    assert float(shares.sum()) == 1.0
    assert int(shares.argmax()) == 2


def test_components_used_counts_those_with_a_share() -> None:
    assert components_used(np.array([0.985, 0.01, 0.005, 0.0])) == 2.0
