"""The whole evaluation of a trained world model on episodes it never saw: figures, and what the report shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aime.data import EpisodeSource, splits_for
from aime.evaluation.bodies import BodyFinder, fit_body_finder
from aime.evaluation.filtering import ErrorSums, Filtered, filter_clips, score_one_step
from aime.evaluation.forecasters import CopyLast, Forecaster, MeanImage, WorldModelForecaster
from aime.evaluation.learned_metrics import LearnedMetrics
from aime.evaluation.metrics import Estimate, average_per_episode, mean_over_episodes, psnr_per_episode
from aime.evaluation.mixture import components_used
from aime.evaluation.nonlinear_probe import fit_network
from aime.evaluation.open_loop import OpenLoop, film_order, score_open_loop
from aime.evaluation.probes import SCORED_GROUPS, Probes, ProbeSamples, fit_probe, physics_targets, score_probe
from aime.evaluation.protocol import (
    Clips,
    EvaluationConfig,
    clip_length,
    cut_clips,
    probe_clips,
    spread,
    training_mean_image,
)
from aime.evaluation.tokens import TOKEN_HORIZONS, codebook_figures, token_accuracy, token_counts


@dataclass(frozen=True)
class Evaluation:
    """Every figure of one evaluation. ``Estimate.missing()`` stands for what was not computed."""

    config: EvaluationConfig
    open_loop: OpenLoop
    reconstruction: dict[str, Estimate]
    """psnr and psnr_body of the posterior reconstruction."""
    reconstruction_baseline: dict[str, Estimate]
    """The mean image on the very frames that the reconstruction is scored on."""
    one_step_prior: dict[str, Estimate]
    probe: dict[str, Estimate]
    """qpos_r2, qvel_r2, reward_r2, and the same of the nonlinear probe with _nonlinear at the end."""
    codebook: dict[str, Estimate]
    mixture: dict[str, Estimate]
    token_accuracy: dict[int, Estimate]
    token_accuracy_copied: dict[int, Estimate]
    foreground_ari: Estimate
    episodes: tuple[int, ...]
    """The held-out episodes, by their number in the data."""
    clips: int
    clip_length: int
    seconds: float
    not_computed: dict[str, str]
    """Figure -> why it is null."""
    shown: Mapping[str, Tensor]
    """What filtering kept of the clips in ``open_loop.film_clips``."""
    probes: Probes | None
    probe_rows: np.ndarray
    """(films, L') rows of the probes' predictions that belong to the shown clips."""
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    """codebook: (V,) use of each code; pit: counts; responsibilities: (K,) mean share of each component."""
    name: str = "AIME"
    """What the report calls the model."""


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode inside, the previous mode after."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)


def psnr_figures(errors: ErrorSums | None, episodes: Tensor) -> dict[str, Estimate]:
    """PSNR over all frames of each clip, pooled per episode: keys psnr and psnr_body."""
    figures = {"psnr": Estimate.missing(), "psnr_body": Estimate.missing()}
    if errors is None:
        return figures
    for name, sums in (("psnr", errors.whole), ("psnr_body", errors.body)):
        if sums is not None:
            figures[name] = mean_over_episodes(psnr_per_episode(sums[0].sum(1), sums[1].sum(1), episodes))
    return figures


def mixture_estimates(filtered: Filtered, episodes: Tensor) -> tuple[dict[str, Estimate], dict[str, np.ndarray]]:
    """components_used, nll and crps, each a mean over episodes, and the histograms of the report."""
    if not filtered.mixture:
        return dict.fromkeys(("components_used", "nll", "crps"), Estimate.missing()), {}
    shares = filtered.mixture["responsibilities"].mean(1)  # (N, K)
    per_episode = [
        components_used(shares[episodes == episode].mean(0).numpy()) for episode in torch.unique(episodes).tolist()
    ]
    figures = {"components_used": mean_over_episodes(per_episode)}
    for name in ("nll", "crps"):
        figures[name] = mean_over_episodes(average_per_episode(filtered.mixture[name].mean(1), episodes))
    return figures, {
        "responsibilities": shares.mean(0).numpy(),
        "pit": filtered.mixture["pit"].sum((0, 1)).numpy(),
    }


def evaluate_probe(
    model: Any,
    source: EpisodeSource,
    training: list[int],
    clips: Clips,
    filtered: Filtered,
    mean_image: Tensor,
    config: EvaluationConfig,
    device: torch.device | str,
) -> tuple[Probes, np.ndarray]:
    """Fit on training clips of the same length, score on the held-out ones; rows of each held-out clip (N, L')."""
    fitting = [
        ProbeSamples.of(part, filter_clips(model, part, mean_image, config, [], device).features, config.burn_in)
        for part in probe_clips(source, training, clips.length, config)
    ]
    return fit_and_score_probes(source, ProbeSamples.joined(fitting), clips, filtered.features, config)


def fit_and_score_probes(
    source: EpisodeSource, fitting: ProbeSamples, clips: Clips, features: np.ndarray, config: EvaluationConfig
) -> tuple[Probes, np.ndarray]:
    """Probes fitted on samples, scored on the features (N, L, F) of ``clips``; rows of each clip (N, L')."""
    targets = physics_targets(fitting.physics, fitting.rewards, source.spec)
    linear = fit_probe(fitting.features, targets.values, fitting.episodes)
    network = fit_network(fitting.features, targets.values, fitting.episodes, config.seed)
    exact = fit_probe(targets.exact_state(), targets.values, fitting.episodes)
    scored = ProbeSamples.of(clips, features, config.burn_in)
    held = physics_targets(scored.physics, scored.rewards, source.spec)
    probes = Probes(
        score_probe(linear, scored.features, held, scored.episodes),
        score_probe(network, scored.features, held, scored.episodes),
        score_probe(exact, held.exact_state(), held, scored.episodes),
    )
    return probes, np.arange(len(scored.episodes)).reshape(len(clips), -1)


def probe_figures(probes: Probes | None) -> dict[str, Estimate]:
    """The keys of ``Evaluation.probe``."""
    figures = {}
    for group in SCORED_GROUPS:
        for name in ("linear", "nonlinear"):
            key = f"{group}_r2" + ("" if name == "linear" else f"_{name}")
            figures[key] = Estimate.missing() if probes is None else getattr(probes, name).groups[group]
    return figures


def evaluate_model(
    model: Any,
    source: EpisodeSource,
    config: EvaluationConfig | None = None,
    *,
    extra: Mapping[str, Forecaster] | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] | None = None,
    learned: LearnedMetrics | None = None,
) -> Evaluation:
    """Evaluate a world model on the held-out split of a source.

    Args:
        model: a world model (observe, imagine, forward_sequence).
        source: the episodes, with stored splits or the default ones.
        config: how much; by default what a laptop does in under a minute.
        extra: further forecasters by name, scored like the model.
        device: where the model is.
        progress: called with the name of each stage as it begins.
        learned: networks of LPIPS and FVD.

    Raises:
        ValueError: when the held-out episodes are too short for the context and the shortest horizon.
    """
    config = config or EvaluationConfig()
    begin, say = time.perf_counter(), progress or _quiet
    splits = splits_for(source)
    if config.split not in splits:
        raise ValueError(f"unknown split {config.split!r}; the data has {', '.join(sorted(splits))}")
    training = [int(episode) for episode in splits["train"]]
    held_out = spread([int(episode) for episode in splits[config.split]], config.episodes)
    say("reading held-out episodes")
    clips = cut_clips(source, held_out, clip_length(source, held_out, config), config.starts)
    mean_image = training_mean_image(source, training, config.mean_image_frames)
    bodies = fit_body_finder(source, training)
    reasons = ruled_out(source, clips, config, bodies) | not_learned(learned or LearnedMetrics())
    shown = film_order(clips, config.films)
    with evaluating(model), torch.no_grad():
        say("filtering")
        filtered = filter_clips(model, clips, mean_image, config, shown, device)
        say("one-step prior")
        one_step, _ = score_one_step(model, clips, config, device)
        say("open loop")
        forecasters: dict[str, Forecaster] = {
            "model": WorldModelForecaster(model, device),
            "copy_last": CopyLast(),
            "mean_image": MeanImage(mean_image),
        }
        forecasters |= extra or {}
        open_loop = score_open_loop(
            forecasters, clips, config, ssim="ssim" not in reasons, bodies=bodies, learned=learned
        )
        say("probes")
        probed = None
        if "probe" not in reasons:
            probed = evaluate_probe(model, source, training, clips, filtered, mean_image, config, device)
        say("tokens")
        accuracies = token_accuracy(model, clips, config, device)
    return _collect(
        config, clips, held_out, filtered, one_step, open_loop, probed, accuracies, reasons, shown, begin, model
    )


def not_learned(learned: LearnedMetrics) -> dict[str, str]:
    """Which figures of trained networks are not computed, and why."""
    absent = {"lpips": learned.lpips is None, "fvd": learned.video is None}
    return {name: f"no weights were given (--{name}-weights)" for name, missing in absent.items() if missing}


def _quiet(stage: str) -> None:
    """No progress is wanted."""


def ruled_out(
    source: EpisodeSource, clips: Clips, config: EvaluationConfig, bodies: BodyFinder | None
) -> dict[str, str]:
    """What the data or the installation rules out, and why."""
    reasons: dict[str, str] = {}
    if bodies is not None and not bodies.trusted:
        reasons["psnr_union"] = (
            f"bodies cannot be told from the background in a picture alone (intersection over union with the masks "
            f"{bodies.agreement:.2f})"
        )
    if clips.body_masks is None:
        need_masks = ("psnr_body", "psnr_union", "crps_body", "spread_ratio")
        reasons |= dict.fromkeys(need_masks, "the data has no body masks")
    if clips.body_ids is None:
        reasons["slots.fg_ari"] = "the data does not tell bodies apart (no body_ids); the index needs at least two"
    if clips.physics is None or not source.spec.joints:
        reasons["probe"] = "the data has no physics state"
    if find_spec("torchmetrics") is None:
        reasons["ssim"] = "torchmetrics is not installed (pip install torchmetrics)"
    for horizon in config.horizons:
        if horizon > clips.length - config.context:
            reasons[f"open_loop.{horizon}"] = (
                f"the shortest held-out episode cannot hold {config.context} context frames and horizon {horizon}"
            )
    return reasons


def _collect(
    config: EvaluationConfig,
    clips: Clips,
    held_out: list[int],
    filtered: Filtered,
    one_step: ErrorSums,
    open_loop: OpenLoop,
    probed: tuple[Probes, np.ndarray] | None,
    accuracies: tuple[dict[int, Estimate], dict[int, Estimate]] | None,
    reasons: dict[str, str],
    shown: list[int],
    begin: float,
    model: Any,
) -> Evaluation:
    mixture, histograms = mixture_estimates(filtered, clips.episodes)
    codebook = dict.fromkeys(("perplexity", "usage"), Estimate.missing())
    if filtered.token_ids is not None:
        codes = getattr(getattr(model, "config", None), "num_codes", int(filtered.token_ids.max()) + 1)
        counts = token_counts(filtered.token_ids, codes)
        codebook = codebook_figures(counts, clips.episodes.numpy())
        histograms["codebook"] = counts.sum((0, 1))
    if filtered.reconstruction is None:
        reasons["reconstruction"] = "the model gives no reconstructions"
    if not filtered.mixture:
        reasons["mixture"] = "the model gives no prior_params with log_pi, means and log_scales"
    if filtered.token_ids is None:
        reasons["codebook"] = "the model gives no token_ids"
    if accuracies is None:
        reasons["tokens.accuracy"] = "the model has no token predictor"
    ari = Estimate.missing()
    if clips.body_ids is not None and filtered.foreground_ari is None:
        reasons["slots.fg_ari"] = "the model gives no slot_attention_maps"
    elif filtered.foreground_ari is not None and filtered.foreground_ari.isnan().all():
        reasons["slots.fg_ari"] = "no frame shows two bodies; the index needs at least two"
    elif filtered.foreground_ari is not None:
        seen = ~filtered.foreground_ari.isnan()
        ari = mean_over_episodes(average_per_episode(filtered.foreground_ari[seen], clips.episodes[seen]))
    none = dict.fromkeys(TOKEN_HORIZONS, Estimate.missing())
    probes, rows = probed if probed is not None else (None, np.zeros((len(clips), 0), dtype=np.int64))
    return Evaluation(
        config=config,
        open_loop=open_loop,
        reconstruction=psnr_figures(filtered.reconstruction, clips.episodes),
        reconstruction_baseline=psnr_figures(filtered.mean_image, clips.episodes),
        one_step_prior=psnr_figures(one_step, clips.episodes),
        probe=probe_figures(probes),
        codebook=codebook,
        mixture=mixture,
        token_accuracy=accuracies[0] if accuracies else none,
        token_accuracy_copied=accuracies[1] if accuracies else none,
        foreground_ari=ari,
        episodes=tuple(held_out),
        clips=len(clips),
        clip_length=clips.length,
        seconds=time.perf_counter() - begin,
        not_computed=reasons,
        shown=filtered.shown,
        probes=probes,
        probe_rows=rows[shown],
        histograms=histograms,
    )
