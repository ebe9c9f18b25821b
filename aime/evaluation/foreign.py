"""World models of others in the same table: anything with the two methods of `aime.world_model.Imaginable`."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from aime.data import EpisodeSource, EpisodeSpec, splits_for
from aime.evaluation.bodies import fit_body_finder
from aime.evaluation.evaluate import (
    Evaluation,
    fit_and_score_probes,
    not_learned,
    probe_figures,
    psnr_figures,
    ruled_out,
)
from aime.evaluation.filtering import ErrorSums, error_sums, join_errors
from aime.evaluation.forecasters import CopyLast, Forecast, Forecaster, ForecastTask, MeanImage, to_frames
from aime.evaluation.learned_metrics import LearnedMetrics
from aime.evaluation.metrics import Estimate
from aime.evaluation.open_loop import OpenLoop, film_order, score_open_loop
from aime.evaluation.probes import Probes, ProbeSamples
from aime.evaluation.protocol import (
    Clips,
    EvaluationConfig,
    clip_length,
    cut_clips,
    probe_clips,
    spread,
    training_mean_image,
)
from aime.evaluation.tokens import TOKEN_HORIZONS
from aime.nn import images_to_float
from aime.world_model.imaginable import Featured, Imaginable, check_imagined

NOT_OF_IT = "not asked of a model that is known by observe and imagine alone"


def load_imaginable(place: str, spec: EpisodeSpec) -> Imaginable:
    """The model that ``make_model(spec)`` of ``my_module:make_model`` returns; modules of the working directory count.

    Raises:
        ValueError: no such module or function (near names are told), it fails, or what it returns is no model.
    """
    module_name, colon, function_name = place.partition(":")
    if not colon or not module_name or not function_name:
        raise ValueError(f"model: expected MODULE:FUNCTION, such as my_module:make_model, found {place!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"model: expected a module {module_name!r} here or installed: {error}") from error
    make = getattr(module, function_name, None)
    if not callable(make):
        near = get_close_matches(function_name, dir(module), n=3)
        hint = f"; near names there: {', '.join(near)}" if near else ""
        raise ValueError(f"model: expected a function {function_name!r} in {module.__file__}{hint}")  # noqa: TRY004 - of what a flag says
    try:
        model = make(spec)
    except Exception as error:
        raise ValueError(f"model: {place} failed with {type(error).__name__}: {error}") from error
    lacking = [name for name in ("observe", "imagine") if not callable(getattr(model, name, None))]
    if lacking:
        raise ValueError(f"model: {place} returned {type(model).__name__}, which has no {' and no '.join(lacking)}")
    found: Imaginable = model
    return found


class ImaginableForecaster:
    """Open loop of an `Imaginable`: every rollout observes the context itself, as those of this project's model do.

    Args:
        model: with frames.
    """

    device = torch.device("cpu")

    def __init__(self, model: Imaginable) -> None:
        self.model = model

    def forecast(self, task: ForecastTask) -> Forecast:
        """See `Forecaster`.

        Raises:
            ValueError: results of other shapes than those asked for.
        """
        observed, samples, generator = task.observed, task.samples, task.generator
        frames = repeat(task.context, "n t c h w -> (n s) t c h w", s=samples)
        actions = repeat(task.actions, "n t a -> (n s) t a", s=samples)
        before = torch.cat(
            [torch.zeros_like(actions[:, :1]), actions[:, : observed - 1]], 1
        )  # those that led to frames
        state = self.model.observe(frames, before, generator=generator)
        # frame observed + k is what action observed - 1 + k leads to
        following = actions[:, None, observed - 1 : -1]  # (N S, 1, Hz, A)
        imagined = self.model.imagine(state, following, frames=True, generator=generator)
        check_imagined(imagined, len(frames), 1, task.horizon, tuple(frames.shape[2:]))
        assert imagined.observations is not None
        images = in_levels(imagined.observations[:, 0])  # (N S, Hz, C, H, W)
        rollouts = rearrange(images, "(n s) t c h w -> n s t c h w", s=samples).cpu()
        return Forecast(rollouts.mean(1), rollouts[:, 0], rollouts)


def in_levels(images: Tensor) -> Tensor:
    """uint8, or float in [-1, 1], to float in [0, 255]."""
    return to_frames(images_to_float(images.detach()))


@dataclass(frozen=True)
class Watched:
    """What a model made of clips, frame by frame.

    Attributes:
        one_step: errors of the frame after each ``one_step_stride``-th one.
        mean_image: errors of the mean image on all frames after the burn-in.
        features: (N, L, F + A) the state's features and the action at the frame; None of a model without features.
    """

    one_step: ErrorSums
    mean_image: ErrorSums
    features: np.ndarray | None


@torch.no_grad()
def watch_clips(model: Imaginable, clips: Clips, mean_image: Tensor, config: EvaluationConfig) -> Watched:
    """Let a model observe clips one frame at a time, and imagine the next frame from time to time."""
    generator = torch.Generator().manual_seed(config.seed)
    settled = slice(min(config.burn_in, clips.length - 1), None)
    times = set(range(min(config.burn_in, clips.length - 2), clips.length - 1, config.one_step_stride))
    one_step, baseline, features = [], [], []
    for _, batch in clips.batches(config.clips_at_once):
        state: Any = None
        before = torch.zeros_like(batch.actions[:, :1])  # (n, 1, A)
        predicted, known = [], []
        for t in range(batch.length):
            state = model.observe(batch.observations[:, t : t + 1], before, state, generator=generator)
            before = batch.actions[:, t : t + 1]
            if isinstance(model, Featured):
                known.append(torch.cat([model.features(state).float(), batch.actions[:, t]], -1))  # (n, F + A)
            if t in times:
                tried = before[:, None].expand(-1, config.samples, -1, -1)  # (n, S, 1, A)
                imagined = model.imagine(state, tried, frames=True, generator=generator)
                check_imagined(imagined, len(batch), config.samples, 1, tuple(batch.observations.shape[2:]))
                assert imagined.observations is not None
                predicted.append(in_levels(imagined.observations[:, :, 0]).mean(1))  # (n, C, H, W)
        targets = [t + 1 for t in sorted(times)]
        masks = batch.body_masks
        one_step.append(
            error_sums(
                torch.stack(predicted, 1), batch.observations[:, targets], None if masks is None else masks[:, targets]
            )
        )
        target = batch.observations[:, settled]
        baseline.append(
            error_sums(mean_image.expand(target.shape), target, None if masks is None else masks[:, settled])
        )
        if known:
            features.append(torch.stack(known, 1).numpy())
    return Watched(join_errors(one_step), join_errors(baseline), np.concatenate(features) if features else None)


def evaluate_imaginable(
    model: Imaginable,
    source: EpisodeSource,
    config: EvaluationConfig | None = None,
    *,
    name: str = "model",
    extra: Mapping[str, Forecaster] | None = None,
    progress: Callable[[str], None] | None = None,
    learned: LearnedMetrics | None = None,
) -> Evaluation:
    """Score a model of anybody's as `evaluate_model` scores this project's: same clips, same figures.

    What needs more than two methods is missing in the result, with the reason. Probes are computed of a model that has
    ``features`` as well; they are read off these and the action at the frame.

    Args:
        model: the model.
        source: the episodes, with stored splits or the default ones.
        config: how much.
        name: of the model, for the report.
        extra: further forecasters by name.
        progress: called with the name of each stage as it begins.
        learned: networks of LPIPS and FVD.

    Raises:
        ValueError: the episodes are too short, or the model's results do not have the shapes of the Protocol.
    """
    config, begin, say = config or EvaluationConfig(), time.perf_counter(), progress or (lambda _: None)
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
    say("one frame at a time")
    watched = watch_clips(model, clips, mean_image, config)
    say("open loop")
    forecasters: dict[str, Forecaster] = {
        "model": ImaginableForecaster(model),
        "copy_last": CopyLast(),
        "mean_image": MeanImage(mean_image),
        **(extra or {}),
    }
    open_loop = score_open_loop(forecasters, clips, config, ssim="ssim" not in reasons, bodies=bodies, learned=learned)
    reasons |= dict.fromkeys(("reconstruction", "mixture", "codebook", "tokens.accuracy", "slots.fg_ari"), NOT_OF_IT)
    probes, rows = None, np.zeros((len(clips), 0), dtype=np.int64)
    if watched.features is None:
        reasons["probe"] = "the model has no method features(state), which probes are read off"
    elif "probe" not in reasons:
        say("probes")
        fitting = []
        for part in probe_clips(source, training, clips.length, config):
            fitted = watch_clips(model, part, mean_image, config).features
            assert fitted is not None
            fitting.append(ProbeSamples.of(part, fitted, config.burn_in))
        probes, rows = fit_and_score_probes(source, ProbeSamples.joined(fitting), clips, watched.features, config)
    return _collect(config, clips, held_out, watched, open_loop, probes, rows, reasons, begin, name)


def _collect(
    config: EvaluationConfig,
    clips: Clips,
    held_out: list[int],
    watched: Watched,
    open_loop: OpenLoop,
    probes: Probes | None,
    rows: np.ndarray,
    reasons: dict[str, str],
    begin: float,
    name: str,
) -> Evaluation:
    missing = Estimate.missing()
    nothing = dict.fromkeys(TOKEN_HORIZONS, missing)
    return Evaluation(
        config=config,
        open_loop=open_loop,
        reconstruction=psnr_figures(None, clips.episodes),
        reconstruction_baseline=psnr_figures(watched.mean_image, clips.episodes),
        one_step_prior=psnr_figures(watched.one_step, clips.episodes),
        probe=probe_figures(probes),
        codebook=dict.fromkeys(("perplexity", "usage"), missing),
        mixture=dict.fromkeys(("components_used", "nll", "crps"), missing),
        token_accuracy=nothing,
        token_accuracy_copied=nothing,
        foreground_ari=missing,
        episodes=tuple(held_out),
        clips=len(clips),
        clip_length=clips.length,
        seconds=time.perf_counter() - begin,
        not_computed=reasons,
        shown={},
        probes=probes,
        probe_rows=rows[film_order(clips, config.films)],
        name=name,
    )
