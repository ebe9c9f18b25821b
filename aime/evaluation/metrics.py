"""Figures of merit: image errors, regression and calibration scores, and how they are averaged.

Every image metric here takes frames on the scale of the data, [0, 255]; predictions are clipped to it and not rounded.

Averaging. Squared errors are pooled within an episode (over its starts and pixels), turned into a PSNR per episode, and
only then averaged over episodes, with the standard error of that mean. Pooling first keeps an episode with one small
mask from counting as much as one with a large mask; averaging PSNR over episodes keeps a standard error honest, because
episodes, not frames, are independent.

Body mask. ``psnr_body`` is the same quantity over the pixels where the *target* frame's stored segmentation shows a
geom of a moving body (any body but the world). The mask of the target alone, not its union with the prediction's,
because it must be the same set of pixels for every forecaster in the table; a body drawn where there is none costs
whole-frame ``psnr`` instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PEAK = 255.0
"""Peak-to-peak range of a frame in every PSNR and SSIM."""
PSNR_CEILING = 100.0
"""PSNR in dB reported for a perfect prediction, so that the figure stays finite (JSON has no infinity)."""


@dataclass(frozen=True)
class Estimate:
    """A mean over held-out episodes with its standard error; ``None`` where there was nothing to compute."""

    mean: float | None
    stderr: float | None

    @staticmethod
    def missing() -> Estimate:
        """The figure that was not computed."""
        return Estimate(None, None)


def mean_over_episodes(values: Sequence[float] | np.ndarray) -> Estimate:
    """Mean and standard error (ddof 1) of one value per episode; NaN marks an episode that has none.

    One episode has a mean but no standard error; none at all has neither.
    """
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    if array.size == 0:
        return Estimate.missing()
    stderr = float(array.std(ddof=1) / math.sqrt(array.size)) if array.size > 1 else None
    return Estimate(float(array.mean()), stderr)


def psnr_from_mse(mse: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio 10 log10(255^2 / mse) in dB, at most ``PSNR_CEILING``; NaN stays NaN."""
    floor = PEAK**2 * 10.0 ** (-PSNR_CEILING / 10.0)
    decibel: np.ndarray = 10.0 * np.log10(PEAK**2 / np.maximum(np.asarray(mse, dtype=np.float64), floor))
    return decibel


def squared_error_sums(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sum of squared errors and number of values per frame.

    Args:
        prediction: (..., C, H, W), any float, scale [0, 255]; clipped to it.
        target: (..., C, H, W), uint8 or float, scale [0, 255].
        mask: (..., H, W) bool, or ``None`` for every pixel.

    Returns:
        ``(sums, counts)``, both (...,) float64; a masked frame without a single pixel gives (0, 0).

    Raises:
        ValueError: if the shapes differ.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target (..., C, H, W) must agree: {tuple(prediction.shape)} != {tuple(target.shape)}"
        )
    error = (prediction.clamp(0.0, PEAK).float() - target.float()).square()
    per_pixel = error.sum(-3)  # (..., H, W)
    channels = target.shape[-3]
    if mask is None:
        sums = per_pixel.double().sum((-2, -1))
        return sums, torch.full_like(sums, per_pixel.shape[-2] * per_pixel.shape[-1] * channels)
    if mask.shape != per_pixel.shape:
        raise ValueError(f"mask (..., H, W) must be {tuple(per_pixel.shape)}, found {tuple(mask.shape)}")
    return (per_pixel.double() * mask).sum((-2, -1)), mask.sum((-2, -1)).double() * channels


def psnr_per_episode(sums: Tensor, counts: Tensor, episodes: Tensor) -> np.ndarray:
    """Pool per-frame error sums within each episode and give its PSNR.

    Args:
        sums: (N,) squared error sums of N frames (or clips).
        counts: (N,) number of values in each.
        episodes: (N,) which episode each belongs to, integers from 0.

    Returns:
        (E,) PSNR in dB, NaN for an episode without a counted value.
    """
    total = int(episodes.max()) + 1
    pooled = torch.zeros(2, total, dtype=torch.float64)
    pooled[0].index_add_(0, episodes, sums.double())
    pooled[1].index_add_(0, episodes, counts.double())
    values, numbers = pooled.numpy()
    mse = np.divide(values, numbers, out=np.full_like(values, np.nan), where=numbers > 0)
    return psnr_from_mse(mse)


def structural_similarity(prediction: Tensor, target: Tensor) -> Tensor:
    """SSIM of whole frames (torchmetrics; 11x11 Gaussian window of sigma 1.5, data range 255).

    Args:
        prediction: (N, C, H, W) in [0, 255], clipped to it.
        target: (N, C, H, W) in [0, 255].

    Returns:
        (N,) one value per frame.

    Raises:
        ModuleNotFoundError: when torchmetrics is not installed (``pip install torchmetrics``).
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    scores = structural_similarity_index_measure(
        prediction.clamp(0.0, PEAK).float(), target.float(), data_range=PEAK, reduction="none"
    )
    assert isinstance(scores, Tensor)
    return scores.reshape(-1)


def average_per_episode(values: Tensor, episodes: Tensor) -> np.ndarray:
    """Mean of (N,) values within each episode -> (E,), NaN where an episode has none."""
    total = int(episodes.max()) + 1
    sums = torch.zeros(total, dtype=torch.float64).index_add_(0, episodes, values.double())
    counts = torch.zeros(total, dtype=torch.float64).index_add_(0, episodes, torch.ones_like(values).double())
    return np.asarray((sums / counts).numpy())  # 0 / 0 is NaN


def coefficient_of_determination(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """R^2 = 1 - SSE / SST of each column of (N, P) arrays -> (P,); NaN for a column that does not vary."""
    residual = np.square(target - prediction).sum(0)
    total = np.square(target - target.mean(0)).sum(0)
    varies = total > 1e-12 * max(1, len(target))
    return np.asarray(1.0 - np.divide(residual, total, out=np.full_like(total, np.nan), where=varies))


def jackknife(statistic: Callable[[np.ndarray], float], episodes: np.ndarray) -> Estimate:
    """A pooled statistic and its delete-one-episode jackknife standard error (Efron, 1982).

    For figures that are not a mean over episodes, such as R^2 or a perplexity.

    Args:
        statistic: takes a boolean (N,) selection of samples and gives the figure (NaN: not defined).
        episodes: (N,) which episode each sample belongs to.
    """
    everything = np.ones(len(episodes), dtype=bool)
    figure = float(statistic(everything))
    if math.isnan(figure):
        return Estimate.missing()
    names = np.unique(episodes)
    left_out = np.array([statistic(episodes != name) for name in names]) if len(names) > 1 else np.empty(0)
    left_out = left_out[~np.isnan(left_out)]
    if left_out.size < 2:
        return Estimate(figure, None)
    count = left_out.size
    return Estimate(figure, float(np.sqrt((count - 1) / count * np.square(left_out - left_out.mean()).sum())))


def adjusted_rand_index(labels: np.ndarray, truth: np.ndarray) -> float:
    """Adjusted Rand index (Hubert & Arabie 1985) of two labelings of the same points, integers (N,).

    NaN when either labeling has a single class and the other too (the index is then 0 / 0).
    """
    if labels.shape != truth.shape:
        raise ValueError(f"labelings must have one shape, found {labels.shape} and {truth.shape}")
    _, first = np.unique(labels, return_inverse=True)
    _, second = np.unique(truth, return_inverse=True)
    table = np.zeros((first.max(initial=0) + 1, second.max(initial=0) + 1))
    np.add.at(table, (first, second), 1.0)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1.0) / 2.0).sum())

    together, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / max(pairs(np.array([table.sum()])), 1.0)
    ceiling = (rows + columns) / 2.0
    return (together - expected) / (ceiling - expected) if ceiling != expected else float("nan")
