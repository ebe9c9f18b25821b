"""One training run from a data file and a preset: what `aime train` and `python -m aime.world_model.train` call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aime.data import EpisodeSource, open_source
from aime.devices import choose_device
from aime.ranges import OptionError
from aime.terminal import printable
from aime.training.config import TrainConfig
from aime.training.distributed import device_of_rank, joined
from aime.training.loop import train
from aime.training.outcome import TrainResult
from aime.training.progress import duration
from aime.training.protocol import parameter_count
from aime.training.run_directory import RunDirectory, default_path
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig


def build_model(preset: str, source: EpisodeSource, seed: int, overrides: Mapping[str, Any]) -> Any:
    """A seeded world model of a preset, with image and action sizes of the data unless they are overridden."""
    channels, _, side = source.spec.image_shape
    sizes = {"action_size": source.spec.action_size, "image_size": side, "image_channels": channels}
    torch.manual_seed(seed)
    return DPGMMVariationalRecurrentAutoencoder(WorldModelConfig.preset(preset, **{**sizes, **overrides}))


def run_experiment(
    data: str | Path,
    out: str | Path | None = None,
    *,
    preset: str = "laptop",
    seed: int = 1,
    device: str = "auto",
    model: Any = None,
    model_overrides: Mapping[str, Any] | None = None,
    train_overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = True,
    progress: bool = True,
) -> TrainResult:
    """Train a preset's world model on an episode file, with all processes where torchrun started several.

    Args:
        data: episode file.
        out: run directory; runs/<domain>-<task>-<preset>-seed<seed> by default.
        preset: laptop, pillars, tier1, tier2 or tier3.
        seed: of weights, windows and noise.
        device: auto, cpu, cuda, cuda:1, ...
        model: trained already, to be trained further; one of the preset when absent.
        model_overrides: fields of `WorldModelConfig`.
        train_overrides: fields of `TrainConfig`.
        resume: continue the run in `out` if there is one.
        overwrite: remove the run in `out` first.
        tensorboard: write event files.
        progress: show progress.

    Raises:
        FileNotFoundError, aime.data.DataError: the data cannot be read.
        ValueError: the run directory is taken, or the data do not fit the model.
    """
    if resume and overwrite:
        raise OptionError("expected one of resume and overwrite, found both")
    place = choose_device(device_of_rank(device))
    config = TrainConfig.preset(preset, seed=seed, **(train_overrides or {}))
    with joined(place, config.rank_timeout) as ranks:
        speaks = ranks is None or ranks.leads
        source = open_source(data, body_masks=False, physics=False)
        spec = source.spec
        run = RunDirectory(out or default_path(spec.domain, spec.task, f"-{preset}-seed{seed}"))
        if speaks and run.holds_a_run() and not (resume or overwrite):
            raise ValueError(
                f"{run.path} holds an earlier run: continue it with --resume, replace it with --overwrite, or choose "
                "another --out"
            )
        initialise = model is None
        if initialise:
            model = build_model(preset, source, seed, model_overrides or {})
        if speaks:
            processes = "" if ranks is None else f" x {ranks.size} processes"
            print(
                f"training {preset} ({parameter_count(model) / 1e6:.2f} M parameters) on "
                f"{printable(f'{spec.domain}-{spec.task}')}, {len(source.lengths)} episodes, {place}{processes}, to "
                f"{printable(run.path)}"
            )
        result = train(
            model,
            source,
            config,
            run.path,
            device=place,
            resume=resume,
            overwrite=overwrite,
            initialise=initialise,
            provenance={"preset": preset, "seed": seed, "data": str(data)},
            tensorboard=tensorboard,
            show_progress=progress,
            ranks=ranks,
        )
        if speaks:
            print(summary(result))
        return result


def summary(result: TrainResult) -> str:
    """One line about how a run ended."""
    if result.ended_before:
        return (
            f"finished before, after {result.step} steps: nothing was trained or written, weights in "
            f"{printable(result.weights)}; to go on, give a later end with --resume (--steps above {result.step}, or "
            "more --minutes or --epochs)"
        )
    held_out = result.metrics.get("validation/total_loss")
    parts = [
        f"{'trained' if result.finished else f'stopped by {result.stopped_by} after'} {result.step} steps",
        f"{result.frames:,} frames in {duration(result.seconds)}",
        f"{result.frames / max(result.seconds, 1e-9):.0f} frames/s",
    ]
    if held_out is not None:
        parts.append(f"held-out loss {held_out:.5g}")
    if result.bad_steps:
        parts.append(f"{result.bad_steps} steps skipped for NaN or infinite gradients")
    resume = "continue with the same command and --resume"
    parts.append(f"weights in {printable(result.weights)}" if result.weights else resume)
    return ", ".join(parts)
