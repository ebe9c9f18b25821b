"""Open-loop forecasts scored per horizon, for the model and every baseline by the same code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aime.evaluation.bodies import BodyFinder
from aime.evaluation.ensemble import fair_crps, spread_and_error
from aime.evaluation.forecasters import Forecast, Forecaster, ForecastTask
from aime.evaluation.learned_metrics import LearnedMetrics, frechet_distance
from aime.evaluation.metrics import (
    Estimate,
    average_per_episode,
    jackknife,
    mean_over_episodes,
    psnr_per_episode,
    squared_error_sums,
    structural_similarity,
)
from aime.evaluation.protocol import Clips, EvaluationConfig

METRICS = ("psnr", "psnr_body", "psnr_union", "ssim", "lpips", "crps_body", "spread_ratio", "action_shuffle")


@dataclass(frozen=True)
class OpenLoopScore:
    """One forecaster's figures."""

    horizons: dict[int, dict[str, Estimate]]
    """Horizon -> metric of ``METRICS`` -> estimate; a horizon that did not fit has ``Estimate.missing()``."""
    curve: dict[str, list[float]]
    """Mean PSNR over episodes at every frame 1 .. Hz: keys psnr and, with masks, psnr_body and psnr_union."""
    fvd: float | None = None
    """Fréchet video distance of the forecast frames from the true ones; None without its network."""


class _Errors:
    """Sums of one series of forecasts, kept per clip and horizon, until they are pooled by episode."""

    def __init__(self, clips: int, horizon: int, masks: bool, horizons: tuple[int, ...], bodies: BodyFinder | None):
        self.horizons, self.bodies = horizons, bodies if masks else None
        #: name -> (2, N, Hz): sum of squared errors and number of values
        drawn = self.bodies is not None and self.bodies.trusted
        names = ("psnr", *(("psnr_body",) if masks else ()), *(("psnr_union",) if drawn else ()))
        self.squares = {name: torch.zeros(2, clips, horizon, dtype=torch.float64) for name in names}
        nothing = torch.full((clips, len(horizons)), float("nan"), dtype=torch.float64)
        self.ssim, self.lpips, self.crps = nothing.clone(), nothing.clone(), nothing.clone()
        self.features: list[Tensor] = []  # (2, n, F) of forecasts and of the truth, in the order of the batches
        self.spread = torch.stack([nothing, nothing])  # (2, N, horizons): squared spread, squared error

    def add(self, index: slice, prediction: Tensor, target: Tensor, mask: Tensor | None, ssim: bool) -> None:
        """Squared errors of predictions (n, Hz, C, H, W) at every frame, SSIM at the horizons."""
        self.squares["psnr"][:, index] = torch.stack(squared_error_sums(prediction, target))
        if mask is not None:
            self.squares["psnr_body"][:, index] = torch.stack(squared_error_sums(prediction, target, mask))
            if self.bodies is not None and "psnr_union" in self.squares:
                union = mask | self.bodies.find(prediction)
                self.squares["psnr_union"][:, index] = torch.stack(squared_error_sums(prediction, target, union))
        if ssim:
            steps = [horizon - 1 for horizon in self.horizons]
            scores = structural_similarity(prediction[:, steps].flatten(0, 1), target[:, steps].flatten(0, 1))
            self.ssim[index] = scores.reshape(-1, len(steps)).double().cpu()

    def add_learned(self, index: slice, prediction: Tensor, target: Tensor, learned: LearnedMetrics) -> None:
        """What trained networks say of predictions (n, Hz, C, H, W): LPIPS at the horizons, features of the videos."""
        steps = [horizon - 1 for horizon in self.horizons]
        if learned.lpips is not None:
            scores = learned.lpips(prediction[:, steps].flatten(0, 1), target[:, steps].flatten(0, 1))
            self.lpips[index] = scores.reshape(-1, len(steps)).double().cpu()
        if learned.video is not None:
            self.features.append(torch.stack([learned.video(prediction), learned.video(target.to(prediction))]))

    def add_samples(self, index: slice, samples: Tensor, target: Tensor) -> None:
        """Scores of the ensemble (n, M, Hz, C, H, W) at the horizons, on the pixels that bodies reach."""
        if self.bodies is None or not self.bodies.reach.any():
            return
        steps = [horizon - 1 for horizon in self.horizons]
        reached = samples[:, :, steps][..., self.bodies.reach]  # (n, M, horizons, C, pixels)
        truth = target[:, steps][..., self.bodies.reach].float()
        self.crps[index] = fair_crps(reached, truth).mean((-2, -1)).double()
        if samples.shape[1] > 1:
            self.spread[:, index] = torch.stack(spread_and_error(reached, truth)).mean((-2, -1)).double()

    def score(self, episodes: Tensor, wanted: tuple[int, ...]) -> OpenLoopScore:
        """Pool by episode, average over episodes."""
        figures: dict[int, dict[str, Estimate]] = {}
        for horizon in wanted:
            figures[horizon] = dict.fromkeys(METRICS, Estimate.missing())
            if horizon not in self.horizons:
                continue
            for name, (sums, counts) in self.squares.items():
                values = psnr_per_episode(sums[:, horizon - 1], counts[:, horizon - 1], episodes)
                figures[horizon][name] = mean_over_episodes(values)
            column = self.horizons.index(horizon)
            for name, scores in (("ssim", self.ssim), ("lpips", self.lpips), ("crps_body", self.crps)):
                figures[horizon][name] = mean_over_episodes(average_per_episode(scores[:, column], episodes))
            spread, error = (average_per_episode(part[:, column], episodes) for part in self.spread)
            ratio = np.sqrt(np.divide(spread, error, out=np.full_like(spread, np.nan), where=error > 0))
            figures[horizon]["spread_ratio"] = mean_over_episodes(ratio)
        curve = {
            name: [
                mean_over_episodes(psnr_per_episode(sums[:, step], counts[:, step], episodes)).mean or float("nan")
                for step in range(sums.shape[-1])
            ]
            for name, (sums, counts) in self.squares.items()
        }
        return OpenLoopScore(figures, curve, frechet_distance(*torch.cat(self.features, 1)) if self.features else None)


@dataclass(frozen=True)
class OpenLoop:
    """Scores of every series and the first forecasts, for the films of the report."""

    scores: dict[str, OpenLoopScore]
    """By series: "model", "model_single", "copy_last", "mean_image", "rssm", ... (those that were run)."""
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
    forecasters: Mapping[str, Forecaster],
    clips: Clips,
    config: EvaluationConfig,
    ssim: bool = True,
    bodies: BodyFinder | None = None,
    shuffle: bool = True,
    learned: LearnedMetrics | None = None,
) -> OpenLoop:
    """Forecast every clip with every forecaster and score it.

    Args:
        forecasters: by name; one that samples also gets a series ``<name>_single``.
        clips: held-out clips of ``context + Hz`` frames.
        config: horizons, context, samples, batch sizes, seed.
        ssim: ``False`` leaves SSIM out (torchmetrics is not installed).
        bodies: where a picture shows a body and which pixels bodies reach; without it the figures that need it are
            missing (psnr_union, crps_body, spread_ratio).
        learned: networks of LPIPS and FVD; without them these are missing.
        shuffle: ``False`` leaves action_shuffle and its second round of forecasts out.

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
                    errors[label] = _Errors(len(clips), reach, mask is not None, horizons, bodies)
                errors[label].add(index, prediction, target, mask, ssim)
                errors[label].add_learned(index, prediction, target, learned or LearnedMetrics())
            samples = forecast.mean[:, None] if forecast.rollouts is None else forecast.rollouts
            errors[name].add_samples(index, samples, target)
            if forecast.single is not None:
                errors[f"{name}_single"].add_samples(index, forecast.single[:, None], target)
            for clip in shown:
                if index.start <= clip < index.stop:
                    kept[clip] = _row(forecast, clip - index.start)
        scores |= {label: item.score(clips.episodes, config.horizons) for label, item in errors.items()}
        if shuffle and f"{name}_single" in errors:
            shuffled = action_shuffle(forecaster, clips, config, errors[name].squares, horizons)
            for horizon, estimate in shuffled.items():
                scores[name].horizons[horizon]["action_shuffle"] = estimate
        films[name] = _stack([kept[clip] for clip in shown])
    return OpenLoop(scores, films, _pick(clips, shown))


def action_shuffle(
    forecaster: Forecaster,
    clips: Clips,
    config: EvaluationConfig,
    squares: Mapping[str, Tensor],
    horizons: tuple[int, ...],
) -> dict[int, Estimate]:
    """Error under another clip's actions over the error under the true ones, at each horizon; 1: actions are not used.

    One clip of each episode is forecast again, with the actions of the next one's from the last observed frame on (the
    action that leads to the first forecast frame). Squared errors on bodies (on whole frames without masks) are pooled
    over episodes, with a jackknife standard error.

    Args:
        forecaster: one that samples.
        clips: all held-out clips.
        config: context, samples, batch sizes, seed.
        squares: (2, N, Hz) sums and counts of the forecasts under the true actions, by metric.
        horizons: that fit.
    """
    rows = film_order(clips, len(torch.unique(clips.episodes)))
    if len(rows) < 2:
        return {}
    chosen = _pick(clips, rows)
    actions = chosen.actions.clone()
    actions[:, config.context - 1 :] = chosen.actions.roll(1, 0)[:, config.context - 1 :]
    generator = torch.Generator(forecaster.device).manual_seed(config.seed)
    parts = []
    for index, batch in chosen.batches(max(1, config.rollouts_at_once // config.samples)):
        context, target = batch.observations[:, : config.context], batch.observations[:, config.context :]
        forecast = forecaster.forecast(ForecastTask(context, actions[index], config.samples, generator))
        mask = None if batch.body_masks is None else batch.body_masks[:, config.context :]
        parts.append(squared_error_sums(forecast.mean, target, mask)[0])
    wrong = torch.cat(parts).numpy()
    right = squares["psnr_body" if clips.body_masks is not None else "psnr"][0, rows].numpy()

    def ratio(step: int) -> Estimate:
        def statistic(kept: np.ndarray) -> float:
            below = right[kept, step].sum()
            return float(wrong[kept, step].sum() / below) if below > 0 else float("nan")

        return jackknife(statistic, chosen.episodes.numpy())

    return {horizon: ratio(horizon - 1) for horizon in horizons}


def _row(forecast: Forecast, row: int) -> Forecast:
    def cut(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[row : row + 1].clone()  # a view would keep the whole batch alive

    return Forecast(forecast.mean[row : row + 1].clone(), cut(forecast.single), reward=cut(forecast.reward))


def _stack(rows: list[Forecast]) -> Forecast:
    def join(values: list[Tensor | None]) -> Tensor | None:
        present = [value for value in values if value is not None]
        return torch.cat(present) if present else None

    mean = join([row.mean for row in rows])
    assert mean is not None
    return Forecast(mean, join([row.single for row in rows]), reward=join([row.reward for row in rows]))


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
