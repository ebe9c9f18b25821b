"""Scores of sampled rollouts against what they are by definition, and their values where the truth is known."""

import pytest
import torch

from aime.evaluation.ensemble import fair_crps, spread_and_error


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_crps_is_its_definition_over_all_pairs() -> None:
    samples, target = draws(3, 5, 2, 4), draws(3, 2, 4, seed=1)
    pairs = (samples[:, :, None] - samples[:, None]).abs().sum((1, 2)) / (5 * 4)
    expected = (samples - target[:, None]).abs().mean(1) - pairs / 2
    torch.testing.assert_close(fair_crps(samples, target), expected)


def test_crps_of_one_sample_is_its_absolute_error() -> None:
    samples, target = draws(3, 1, 4), draws(3, 4, seed=1)
    assert torch.equal(fair_crps(samples, target), (samples[:, 0] - target).abs())


@pytest.mark.parametrize("members", [2, 4, 16])
def test_crps_does_not_depend_on_the_number_of_samples(members: int) -> None:
    """A standard normal forecast of a standard normal scores 1 / sqrt(pi) (Gneiting and Raftery, 2007) on average."""
    score = fair_crps(draws(40_000, members), draws(40_000, seed=1)).mean()
    assert score == pytest.approx(torch.pi**-0.5, abs=0.015)


def test_crps_prefers_the_truth_to_a_narrower_and_to_a_wider_ensemble() -> None:
    target = draws(20_000, seed=1)
    narrow, right, wide = (fair_crps(scale * draws(20_000, 8), target).mean() for scale in (0.5, 1.0, 2.0))
    assert right < min(narrow, wide)


@pytest.mark.parametrize("members", [2, 4, 16])
def test_spread_equals_error_where_the_target_might_be_a_sample(members: int) -> None:
    spread, error = (part.mean() for part in spread_and_error(draws(40_000, members), draws(40_000, seed=1)))
    assert (spread / error).sqrt() == pytest.approx(1.0, abs=0.02)
    spread, error = (part.mean() for part in spread_and_error(0.5 * draws(40_000, members), draws(40_000, seed=1)))
    assert (spread / error).sqrt() < 0.75  # too sure


def test_spread_of_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least 2 samples, found 1"):
        spread_and_error(draws(3, 1), draws(3))
