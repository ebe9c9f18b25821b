"""metrics.json: schema 1, stable keys, null for what was not computed, standard errors in "stderr", laid out alike."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aime.evaluation.evaluate import Evaluation
from aime.evaluation.metrics import Estimate
from aime.evaluation.open_loop import METRICS

SCHEMA = 1
SERIES = ("model", "model_single", "copy_last", "mean_image", "rssm", "rssm_tuned")
TRAINED = ("model", "rssm", "rssm_tuned")
"""Series that were trained, with what it cost under "training"."""
HORIZONS = (1, 5, 15, 45)
"""The horizons every metrics.json has, evaluated or null."""


@dataclass(frozen=True)
class RunFacts:
    """What a run directory says about how the model came to be; ``None`` where it does not say."""

    task: str | None = None
    preset: str | None = None
    seed: int | None = None
    commit: str | None = None
    device: str | None = None
    setup_seconds: float | None = None
    collect_seconds: float | None = None
    train_seconds: float | None = None
    train_cpu_seconds: float | None = None
    frames_trained: int | None = None
    parameters: int | None = None
    training_renderer: str | None = None
    evaluation_renderer: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    """The measured part of metrics.json with an Estimate at every leaf."""
    missing = Estimate.missing()
    scores = evaluation.open_loop.scores
    horizons = sorted({*HORIZONS, *evaluation.config.horizons})

    def at(series: str, horizon: int, metric: str) -> Estimate:
        score = scores.get(series)
        return missing if score is None else score.horizons.get(horizon, {}).get(metric, missing)

    return {
        "open_loop": {
            str(horizon): {metric: {name: at(name, horizon, metric) for name in SERIES} for metric in METRICS}
            for horizon in horizons
        },
        "fvd": {name: _fvd(evaluation, name) for name in SERIES},
        "reconstruction": evaluation.reconstruction,
        "one_step_prior": evaluation.one_step_prior,
        "probe": evaluation.probe,
        "codebook": evaluation.codebook,
        "mixture": evaluation.mixture,
        "tokens": {
            "accuracy": {str(key): value for key, value in evaluation.token_accuracy.items()},
            "copied": {str(key): value for key, value in evaluation.token_accuracy_copied.items()},
        },
        "slots": {"fg_ari": evaluation.foreground_ari},
    }


def _fvd(evaluation: Evaluation, name: str) -> Estimate:
    """Of one series; a distance of distributions has no standard error over episodes."""
    score = evaluation.open_loop.scores.get(name)
    return Estimate(None if score is None else score.fvd, None)


def probe_columns(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """By column of the probes: its group, and R^2 of both probes and of the exact state, linearly."""
    probes = evaluation.probes
    if probes is None:
        return {}
    readouts = {"linear": probes.linear, "nonlinear": probes.nonlinear, "exact": probes.exact}
    return {
        name: {"group": group, **_finite({key: result.columns[name] for key, result in readouts.items()})}
        for name, group in zip(probes.linear.targets.names, probes.linear.targets.groups, strict=True)
    }


def _leaves(tree: Any, part: str) -> Any:
    """The tree with each Estimate replaced by its ``part``; what is not finite becomes null."""
    if isinstance(tree, Estimate):
        value = getattr(tree, part)
        return value if value is not None and math.isfinite(value) else None
    return {key: _leaves(value, part) for key, value in tree.items()}


def _training(facts: RunFacts, baselines: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """CPU seconds, frames and parameters by trained series; null for one that was not trained."""
    of_model = {
        "cpu_seconds": facts.train_cpu_seconds,
        "frames": facts.frames_trained,
        "parameters": facts.parameters,
    }
    known = {**baselines, "model": of_model}
    return {key: {name: known.get(name, {}).get(key) for name in TRAINED} for key in of_model}


def metrics_record(
    evaluation: Evaluation, facts: RunFacts, baselines: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """The contents of metrics.json.

    Args:
        evaluation: what was measured.
        facts: what is known of the model's run.
        baselines: by row, cpu_seconds, frames and parameters of the baselines that were trained.
    """
    figures = _figures(evaluation)
    return {
        "schema": SCHEMA,
        "task": facts.task,
        "preset": facts.preset,
        "seed": facts.seed,
        "commit": facts.commit,
        "device": facts.device or platform.processor() or platform.machine(),
        "versions": dict(facts.versions),
        "seconds": {
            "setup": facts.setup_seconds,
            "collect": facts.collect_seconds,
            "train": facts.train_seconds,
            "evaluate": evaluation.seconds,
        },
        "renderer": {"train": facts.training_renderer, "evaluate": facts.evaluation_renderer},
        "frames_trained": facts.frames_trained,
        "parameters": facts.parameters,
        "training": _training(facts, baselines or {}),
        **_leaves(figures, "mean"),
        "probe_columns": probe_columns(evaluation),
        "stderr": _leaves(figures, "stderr"),
    }


def protocol_record(evaluation: Evaluation, baselines: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """What metrics.json has no place for: protocol, curves over all horizons, per-column probes, reasons for nulls."""
    probes = evaluation.probes
    return {
        "config": asdict(evaluation.config),
        "held_out_episodes": list(evaluation.episodes),
        "clips": evaluation.clips,
        "clip_length": evaluation.clip_length,
        "not_computed": evaluation.not_computed,
        "curves": {name: _finite(score.curve) for name, score in evaluation.open_loop.scores.items()},
        "reconstruction_mean_image": _leaves(evaluation.reconstruction_baseline, "mean"),
        "probe_r2": {} if probes is None else _finite(probes.linear.columns),
        "token_accuracy_copied": {
            str(key): _leaves(value, "mean") for key, value in evaluation.token_accuracy_copied.items()
        },
        "histograms": {name: values.tolist() for name, values in evaluation.histograms.items()},
        "baselines": {name: dict(summary) for name, summary in (baselines or {}).items()},
    }


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return values if not isinstance(values, float) or math.isfinite(values) else None


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write JSON atomically (temporary name, then rename); never NaN or Infinity."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
    os.replace(temporary, path)
