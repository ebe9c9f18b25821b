"""Metrics against values worked out by hand."""

import math

import numpy as np
import pytest
import torch

from aime.evaluation.metrics import (
    PSNR_CEILING,
    Estimate,
    adjusted_rand_index,
    average_per_episode,
    coefficient_of_determination,
    jackknife,
    mean_over_episodes,
    psnr_from_mse,
    psnr_per_episode,
    squared_error_sums,
    structural_similarity,
)


def test_psnr_is_ten_log_of_peak_squared_over_mse() -> None:
    assert psnr_from_mse(np.array([255.0**2]))[0] == pytest.approx(0.0)
    assert psnr_from_mse(np.array([25.5**2]))[0] == pytest.approx(20.0)
    assert psnr_from_mse(np.array([0.0]))[0] == PSNR_CEILING
    assert math.isnan(psnr_from_mse(np.array([np.nan]))[0])


def test_squared_errors_count_values_and_clip_predictions() -> None:
    target = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    prediction = torch.full((2, 3, 4, 5), 2.0)
    prediction[1] = -7.0  # clipped to 0: no error
    sums, counts = squared_error_sums(prediction, target)
    assert sums.tolist() == [4.0 * 60, 0.0]
    assert counts.tolist() == [60.0, 60.0]


def test_masked_errors_ignore_everything_outside_the_mask() -> None:
    target = torch.full((1, 3, 4, 4), 100.0)
    prediction = target + 50.0
    prediction[:, :, 1, 2] = 103.0
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 1, 2] = True
    sums, counts = squared_error_sums(prediction, target, mask)
    assert (sums.item(), counts.item()) == (27.0, 3.0)
    sums, counts = squared_error_sums(prediction, target, torch.zeros_like(mask))
    assert (sums.item(), counts.item()) == (0.0, 0.0)


def test_shapes_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 4\) != \(1, 3, 4, 5\)"):
        squared_error_sums(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
    with pytest.raises(ValueError, match=r"must be \(1, 4, 4\), found \(4, 4\)"):
        squared_error_sums(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.ones(4, 4, dtype=torch.bool))


def test_errors_are_pooled_within_an_episode_before_the_logarithm() -> None:
    sums, counts = torch.tensor([0.0, 2 * 25.5**2, 25.5**2, 0.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    psnr = psnr_per_episode(sums, counts, torch.tensor([0, 0, 1, 2]))
    assert psnr[:2] == pytest.approx([20.0, 20.0])  # pooled mse 25.5^2 in both
    assert math.isnan(psnr[2])  # no pixel counted


def test_mean_and_standard_error_over_episodes() -> None:
    estimate = mean_over_episodes([1.0, 3.0, float("nan")])
    assert estimate.mean == 2.0
    assert estimate.stderr == pytest.approx(math.sqrt(2.0) / math.sqrt(2.0))
    assert mean_over_episodes([5.0]) == Estimate(5.0, None)
    assert mean_over_episodes([]) == Estimate.missing() == mean_over_episodes([float("nan")])


def test_average_per_episode() -> None:
    result = average_per_episode(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 0, 2]))
    assert result[[0, 2]].tolist() == [1.5, 6.0]
    assert math.isnan(result[1])


def test_r2_is_one_for_truth_zero_for_the_mean_and_undefined_for_a_constant() -> None:
    target = np.array([[0.0, 5.0, 1.0], [1.0, 5.0, 3.0], [2.0, 5.0, 2.0]])
    prediction = np.array([[0.0, 5.0, 2.0], [1.0, 5.0, 2.0], [2.0, 5.0, 2.0]])
    r2 = coefficient_of_determination(prediction, target)
    assert r2[[0, 2]].tolist() == [1.0, 0.0]
    assert math.isnan(r2[1])


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.array([1.0, 4.0, 2.0, 9.0])
    estimate = jackknife(lambda chosen: float(values[chosen].mean()), np.arange(4))
    expected = mean_over_episodes(values)
    assert estimate.mean == expected.mean
    assert estimate.stderr == pytest.approx(expected.stderr)
    assert jackknife(lambda chosen: float("nan"), np.arange(4)) == Estimate.missing()


def test_ssim_is_one_for_equal_frames_and_less_for_others() -> None:
    frames = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
    assert structural_similarity(frames, frames).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    assert (structural_similarity(255 - frames, frames) < 0.5).all()


@pytest.mark.parametrize(
    ("labels", "truth", "expected"),
    [
        ([0, 0, 1, 1], [1, 1, 0, 0], 1.0),  # names of the classes do not matter
        ([0, 0, 1, 2], [0, 0, 1, 1], 4 / 7),  # the example of scikit-learn's documentation: 0.57
        ([0, 1, 0, 1], [0, 0, 1, 1], -0.5),
    ],
)
def test_adjusted_rand_index(labels: list[int], truth: list[int], expected: float) -> None:
    assert adjusted_rand_index(np.array(labels), np.array(truth)) == pytest.approx(expected)


def test_adjusted_rand_index_of_single_classes_is_undefined() -> None:
    assert math.isnan(adjusted_rand_index(np.zeros(4, dtype=int), np.zeros(4, dtype=int)))
