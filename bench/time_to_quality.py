"""CPU seconds of training until a world model passes what an RSSM ends with.

    python bench/time_to_quality.py data/cartpole.h5 --steps 1200 --looks 8

Trains the model with a checkpoint at every look, then an RSSM for the CPU seconds that this took, and forecasts the
same held-out clips with the RSSM and with the model of each look, few of them and with few rollouts. Looks come from
one run with its own schedule, so an early look has a high learning rate: a run planned to end there would do better,
and the time found is an upper bound. Checkpoints are written within the model's time, evaluations are not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from aime.data import EpisodeSource, open_source, splits_for
from aime.evaluation.baselines import baseline_settings, train_rssm
from aime.evaluation.evaluate import evaluating
from aime.evaluation.forecasters import Forecaster, RSSMForecaster, WorldModelForecaster
from aime.evaluation.open_loop import score_open_loop
from aime.evaluation.protocol import Clips, EvaluationConfig, clip_length, cut_clips, spread, training_statistics
from aime.evaluation.record import write_json
from aime.evaluation.run_directory import device_name
from aime.training import CheckpointDirectory, TrainConfig, train
from aime.training.experiment import build_model
from aime.training.training_state import load_weights

CHEAP = EvaluationConfig(horizons=(1, 5, 15), samples=4, episodes=12, starts=2, films=1)


@dataclass(frozen=True)
class Look:
    """A forecaster's body PSNR (whole frame without masks) by horizon, after so much training."""

    cpu_seconds: float
    frames: int
    psnr: dict[int, float]


def first_pass(looks: Sequence[Look], target: Look) -> dict[int, float | None]:
    """By horizon, the CPU seconds of the first look that reaches the target's figure; ``None``: none does."""
    return {
        horizon: next((look.cpu_seconds for look in looks if look.psnr[horizon] >= figure), None)
        for horizon, figure in target.psnr.items()
    }


def _psnr(forecaster: Forecaster, clips: Clips, protocol: EvaluationConfig) -> dict[int, float]:
    figures = score_open_loop({"m": forecaster}, clips, protocol, ssim=False, shuffle=False).scores["m"].horizons
    metric = "psnr" if clips.body_masks is None else "psnr_body"
    return {horizon: value for horizon in figures if (value := figures[horizon][metric].mean) is not None}


def measure(
    model: Any,
    source: EpisodeSource,
    config: TrainConfig,
    looks: int,
    protocol: EvaluationConfig,
    row: str = "rssm",
) -> tuple[list[Look], Look]:
    """Train and score the model's looks and the finished baseline.

    Args:
        model: an untrained world model.
        source: episodes.
        config: of the model's training, with ``steps``.
        looks: evenly spaced checkpoints that are scored, the last at the end.
        protocol: of the open loop.
        row: the baseline.

    Raises:
        ValueError: ``config`` has no steps, or fewer than looks.
    """
    if config.steps is None or config.steps < looks:
        raise ValueError(f"expected at least one step a look ({looks}), found {config.steps} steps")
    splits = splits_for(source)
    training = [int(episode) for episode in splits["train"]]
    held_out = spread([int(episode) for episode in splits[protocol.split]], protocol.episodes)
    clips = cut_clips(source, held_out, clip_length(source, held_out, protocol), protocol.starts)
    config = replace(config, checkpoint_every=config.steps // looks, keep_checkpoints=looks + 2)
    scored: list[Look] = []
    with tempfile.TemporaryDirectory() as directory:
        train(model, source, config, directory, tensorboard=False, show_progress=False)
        checkpoints = CheckpointDirectory(Path(directory) / "checkpoints", config.keep_checkpoints)
        for step in checkpoints.steps():
            checkpoint = checkpoints.load(step)
            load_weights(checkpoint, model, averaged=True)
            counters = checkpoint.values["counters"]
            with evaluating(model), torch.no_grad():
                figures = _psnr(WorldModelForecaster(model), clips, protocol)
            scored.append(Look(counters["cpu_seconds"], counters["frames"], figures))
    sizes, settings = baseline_settings(row, source.spec, scored[-1].cpu_seconds, config.seed)
    statistics = training_statistics(source, training, protocol.mean_image_frames)
    trained = train_rssm(source, training, statistics, settings, sizes)
    finished = Look(trained.cpu_seconds, trained.frames, _psnr(RSSMForecaster(trained.model), clips, protocol))
    return scored, finished


@dataclass
class TimeToQuality:
    """Train a world model and a baseline for equal CPU seconds; when does the model pass the baseline's end?"""

    data: Annotated[Path, tyro.conf.Positional]
    """Episode file (HDF5)."""
    steps: int = 1200
    """Optimizer steps of the model."""
    looks: int = 8
    """Intermediate models that are scored."""
    row: Literal["rssm", "rssm_tuned"] = "rssm"
    """The baseline."""
    preset: str = "laptop"
    """The model's preset."""
    seed: int = 1
    """Seed of weights, windows and noise."""
    out: Path | None = None
    """Where the figures go as JSON; they are printed in any case."""
    protocol: EvaluationConfig = field(default_factory=lambda: CHEAP)
    """How much is evaluated."""

    def run(self) -> dict[str, Any]:
        """Train, score, print and write."""
        source = open_source(self.data)
        config = TrainConfig.preset(self.preset, seed=self.seed, steps=self.steps, seconds=None, validate_every=0)
        model = build_model(self.preset, source, self.seed, {})
        looks, finished = measure(model, source, config, self.looks, self.protocol, self.row)
        passed = first_pass(looks, finished)
        print_table(looks, finished, passed, self.row)
        record = {
            "device": device_name(torch.device("cpu")),
            "threads": torch.get_num_threads(),
            "data": self.data.name,
            "preset": self.preset,
            "seed": self.seed,
            "model": [asdict(look) for look in looks],
            self.row: asdict(finished),
            "cpu_seconds_until_passed": passed,
        }
        if self.out is not None:
            write_json(self.out, record)
        return record


def print_table(looks: Sequence[Look], finished: Look, passed: Mapping[int, float | None], row: str) -> None:
    """One line a look, then the baseline, then when it was passed."""
    print("forecast      CPU s    frames" + "".join(f"{f'{horizon} ahead':>10}" for horizon in finished.psnr))
    for name, look in [*(("model", look) for look in looks), (row, finished)]:
        figures = "".join(f"{value:10.2f}" for value in look.psnr.values())
        print(f"{name:10} {look.cpu_seconds:8.1f} {look.frames:9,}{figures}")
    for horizon, seconds in passed.items():
        if seconds is None:
            print(f"{horizon} ahead: not passed")
        else:
            print(f"{horizon} ahead: passed after {seconds:.1f} CPU s, {seconds / finished.cpu_seconds:.0%} of {row}'s")


if __name__ == "__main__":
    tyro.cli(TimeToQuality).run()
