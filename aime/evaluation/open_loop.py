"""Open-loop forecasts scored per horizon, for the model and every baseline by the same code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aime.evaluation.forecasters import Forecast, Forecaster, ForecastTask
from aime.evaluation.metrics import (
    Estimate,
    average_per_episode,
    mean_over_episodes,
    psnr_per_episode,
    squared_error_sums,
    structural_similarity,
)
from aime.evaluation.protocol import Clips, EvaluationConfig

METRICS = ("psnr", "psnr_body", "ssim")


@dataclass(frozen=True)
class OpenLoopScore:
    """One forecaster's figures."""

    horizons: dict[int, dict[str, Estimate]]
    """Horizon -> metric of ``METRICS`` -> estimate; a horizon that did not fit has ``Estimate.missing()``."""
    curve: dict[str, list[float]]
    """Mean PSNR over episodes at every frame 1 .. Hz: keys psnr and, with masks, psnr_body."""


class _Errors:
    """Error sums of one series of forecasts, kept per clip and horizon."""

    def __init__(self, clips: int, horizon: int, masks: bool, horizons: tuple[int, ...]) -> None:
        self.whole = torch.zeros(2, clips, horizon, dtype=torch.float64)
        self.body = torch.zeros(2, clips, horizon, dtype=torch.float64) if masks else None
        self.ssim = torch.full((clips, len(horizons)), float("nan"), dtype=torch.float64)
        self.horizons = horizons

    def add(self, index: slice, prediction: Tensor, target: Tensor, mask: Tensor | None, ssim: bool) -> None:
        self.whole[:, index] = torch.stack(squared_error_sums(prediction, target))
        if self.body is not None and mask is not None:
            self.body[:, index] = torch.stack(squared_error_sums(prediction, target, mask))
        if ssim:
            steps = [horizon - 1 for horizon in self.horizons]
            scores = structural_similarity(prediction[:, steps].flatten(0, 1), target[:, steps].flatten(0, 1))
            self.ssim[index] = scores.reshape(-1, len(steps)).double().cpu()

    def score(self, episodes: Tensor, wanted: tuple[int, ...]) -> OpenLoopScore:
        def at(sums: Tensor, step: int) -> np.ndarray:
            return psnr_per_episode(sums[0, :, step], sums[1, :, step], episodes)

        figures: dict[int, dict[str, Estimate]] = {}
        for horizon in wanted:
            figures[horizon] = dict.fromkeys(METRICS, Estimate.missing())
            if horizon not in self.horizons:
                continue
            figures[horizon]["psnr"] = mean_over_episodes(at(self.whole, horizon - 1))
            if self.body is not None:
                figures[horizon]["psnr_body"] = mean_over_episodes(at(self.body, horizon - 1))
            similarity = self.ssim[:, self.horizons.index(horizon)]
            figures[horizon]["ssim"] = mean_over_episodes(average_per_episode(similarity, episodes))
        series = {"psnr": self.whole} | ({} if self.body is None else {"psnr_body": self.body})
        curve = {
            name: [mean_over_episodes(at(sums, step)).mean or float("nan") for step in range(sums.shape[-1])]
            for name, sums in series.items()
        }
        return OpenLoopScore(figures, curve)


@dataclass(frozen=True)
class OpenLoop:
    """Scores of every series and the first forecasts, for the films of the report."""

    scores: dict[str, OpenLoopScore]
    """By series: "model", "model_single", "copy_last", "mean_image", "rssm" (those that were run)."""
    films: dict[str, Forecast]
    """By forecaster, the forecasts of the clips in ``film_clips``."""
    film_clips: Clips


def film_order(clips: Clips, films: int) -> list[int]:
    """Clips to show: one of each of the first episodes, a different start in each."""
    chosen: list[int] = []
    for position, episode in enumerate(torch.unique(clips.episodes).tolist()[:films]):
        members = (clips.episodes == episode).nonzero().flatten().tolist()
        chosen.append(members[position % len(members)])
    return chosen


@torch.no_grad()
def score_open_loop(
    forecasters: Mapping[str, Forecaster], clips: Clips, config: EvaluationConfig, ssim: bool = True
) -> OpenLoop:
    """Forecast every clip with every forecaster and score it.

    Args:
        forecasters: by name; one that samples also gets a series ``<name>_single``.
        clips: held-out clips of ``context + Hz`` frames.
        config: horizons, context, samples, batch sizes, seed.
        ssim: ``False`` leaves SSIM out (torchmetrics is not installed).

    Every forecaster starts from the same seed, so adding one to the table changes no other row.
    """
    reach = clips.length - config.context
    horizons = tuple(horizon for horizon in config.horizons if horizon <= reach)
    shown = film_order(clips, config.films)
    scores: dict[str, OpenLoopScore] = {}
    films: dict[str, Forecast] = {}
    at_once = max(1, config.rollouts_at_once // config.samples)
    for name, forecaster in forecasters.items():
        errors: dict[str, _Errors] = {}
        kept: dict[int, Forecast] = {}
        generator = torch.Generator(forecaster.device).manual_seed(config.seed)
        for index, batch in clips.batches(at_once):
            context = batch.observations[:, : config.context]
            forecast = forecaster.forecast(ForecastTask(context, batch.actions, config.samples, generator))
            target = batch.observations[:, config.context :]
            mask = None if batch.body_masks is None else batch.body_masks[:, config.context :]
            series = {name: forecast.mean} | ({} if forecast.single is None else {f"{name}_single": forecast.single})
            for label, prediction in series.items():
                if label not in errors:
                    errors[label] = _Errors(len(clips), reach, mask is not None, horizons)
                errors[label].add(index, prediction, target, mask, ssim)
            for clip in shown:
                if index.start <= clip < index.stop:
                    kept[clip] = _row(forecast, clip - index.start)
        scores |= {label: item.score(clips.episodes, config.horizons) for label, item in errors.items()}
        films[name] = _stack([kept[clip] for clip in shown])
    return OpenLoop(scores, films, _pick(clips, shown))


def _row(forecast: Forecast, row: int) -> Forecast:
    def cut(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[row : row + 1].clone()  # a view would keep the whole batch alive

    return Forecast(forecast.mean[row : row + 1].clone(), cut(forecast.single), cut(forecast.reward))


def _stack(rows: list[Forecast]) -> Forecast:
    def join(values: list[Tensor | None]) -> Tensor | None:
        present = [value for value in values if value is not None]
        return torch.cat(present) if present else None

    mean = join([row.mean for row in rows])
    assert mean is not None
    return Forecast(mean, join([row.single for row in rows]), join([row.reward for row in rows]))


def _pick(clips: Clips, rows: list[int]) -> Clips:
    return Clips(
        clips.observations[rows],
        clips.actions[rows],
        clips.rewards[rows],
        None if clips.body_masks is None else clips.body_masks[rows],
        None if clips.physics is None else clips.physics[rows],
        clips.episodes[rows],
        tuple(clips.labels[row] for row in rows),
    )
