"""``aime evaluate`` and ``aime imagine``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import tyro

from aime.data import EpisodeSource, open_source, splits_for
from aime.devices import choose_device
from aime.evaluation.protocol import EvaluationConfig
from aime.evaluation.run_directory import RunDirectory
from aime.files import require_writable
from aime.ranges import SEED, OptionError, Range, check_ranges
from aime.tensor_files import check_finite
from aime.terminal import printable

if TYPE_CHECKING:
    from aime.evaluation.baselines import TrainedRSSM
    from aime.evaluation.forecasters import Forecaster
    from aime.evaluation.record import RunFacts


def _source(data: Path | None, run: RunDirectory) -> EpisodeSource:
    path = data or run.data()
    if path is None:
        raise FileNotFoundError(f"{run.root} has no data.h5: say with --data which episodes to use")
    return open_source(path)


VIDEO_SUFFIXES = (".gif", ".mp4")


@dataclass
class Evaluate:
    """Evaluate a trained world model on held-out episodes: a table, metrics.json and report.html."""

    run_path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or a directory of exported weights."""
    data: Path | None = None
    """Episode file (HDF5). Default: data.h5 in the run directory."""
    out: Path | None = None
    """Where metrics.json, evaluation.json and report.html go. Default: the run directory."""
    rssm: bool = False
    """Train a small RSSM on the same training split and score it in the same table."""
    rssm_seconds: Annotated[float, Range(above=0)] | None = None
    """Wall-clock training of the RSSM, in seconds. Default: what the model had, from the run's timing.json."""
    device: str = "auto"
    """Where the model runs: auto, cpu, cuda, cuda:1, ..."""
    report: bool = True
    """Write report.html as well."""
    protocol: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How much is evaluated."""

    def run(self) -> int:
        """Evaluate, write the files, print the table and where the report is."""
        from aime.evaluation.evaluate import evaluate_model
        from aime.evaluation.record import metrics_record, protocol_record, write_json
        from aime.evaluation.table import print_summary

        check_ranges(self)
        device = choose_device(self.device)
        run = RunDirectory.find(self.run_path)
        out = self.out or run.root
        require_writable(out)
        source = _source(self.data, run)
        model = _load_model(run, device)
        _check_fit(model, source)
        facts, history = _facts(run, model, source, device), run.history()  # a damaged run.json shows before the work
        trained = self._train_rssm(run, source) if self.rssm else None
        extra: dict[str, Forecaster] = {}
        if trained is not None:
            from aime.evaluation.forecasters import RSSMForecaster

            extra["rssm"] = RSSMForecaster(trained.model)
        evaluation = evaluate_model(model, source, self.protocol, extra=extra, device=device, progress=_say)
        if evaluation.reconstruction["psnr"].mean is None and "reconstruction" not in evaluation.not_computed:
            raise ValueError(f"{run.weights}: what the model reconstructs is NaN on every held-out episode: no figures")
        record = metrics_record(evaluation, facts)
        write_json(out / "metrics.json", record)
        write_json(out / "evaluation.json", protocol_record(evaluation, None if trained is None else trained.summary()))
        if self.report:
            from aime.evaluation.report import write_report

            _say("writing the report")
            write_report(out / "report.html", evaluation, record, history)
        print_summary(evaluation, record)
        print(f"metrics  {printable(out / 'metrics.json')}")
        if self.report:
            print(f"report   {printable(out / 'report.html')}")
        return 0

    def _train_rssm(self, run: RunDirectory, source: EpisodeSource) -> TrainedRSSM:
        from aime.evaluation.baselines import RSSMTrainingConfig, train_rssm
        from aime.evaluation.protocol import training_mean_image

        seconds = self.rssm_seconds or run.training_seconds()
        if seconds is None:
            raise ValueError(f"{run.root / 'timing.json'} has no training time: give --rssm-seconds")
        _say(f"training the RSSM baseline for {seconds:.0f} s")
        episodes = [int(episode) for episode in splits_for(source)["train"]]
        mean_image = training_mean_image(source, episodes, self.protocol.mean_image_frames)
        return train_rssm(source, episodes, mean_image, RSSMTrainingConfig(seconds=seconds, seed=self.protocol.seed))


@dataclass
class Imagine:
    """Let a trained world model run open loop on the actions of a held-out episode, beside the truth, as GIF or MP4."""

    run_path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or a directory of exported weights."""
    data: Path | None = None
    """Episode file (HDF5). Default: data.h5 in the run directory."""
    horizon: Annotated[int, Range(1, 100_000)] = 50
    """Frames imagined."""
    context: Annotated[int, Range(1, 100_000)] = 15
    """Frames observed before."""
    episode: Annotated[int, Range(0)] | None = None
    """Episode number in the file. Default: the first of the test split that is long enough."""
    start: Annotated[int, Range(0)] = 0
    """First observed frame of the episode."""
    samples: Annotated[int, Range(1, 4096)] = 16
    """Rollouts behind the mean."""
    seed: Annotated[int, SEED] = 0
    """Seed of the rollouts."""
    out: Path | None = None
    """Output file, .gif or .mp4 (needs PyAV). Default: imagination.gif in the run directory."""
    scale: Annotated[int, Range(1, 16)] = 4
    """Enlargement of each pixel."""
    frames_per_second: Annotated[float, Range(above=0, to=1000)] = 12.0
    """Speed of the animation."""
    device: str = "auto"
    """Where the model runs: auto, cpu, cuda, cuda:1, ..."""

    def run(self) -> int:
        """Write the animation: truth, mean of the rollouts, one rollout, error of the mean."""
        from aime.evaluation.forecasters import ForecastTask, WorldModelForecaster
        from aime.evaluation.protocol import cut_window
        from aime.evaluation.report.images import (
            enlarge,
            error_map,
            side_by_side,
            to_image,
            with_progress,
            write_video,
        )

        check_ranges(self)
        device = choose_device(self.device)
        if self.out is not None and self.out.suffix not in VIDEO_SUFFIXES:
            raise OptionError(
                f"out: expected a path that ends in {' or '.join(VIDEO_SUFFIXES)}, found {self.out.name!r}"
            )
        run = RunDirectory.find(self.run_path)
        require_writable((self.out or run.root / "imagination.gif").parent)
        source = _source(self.data, run)
        model = _load_model(run, device)
        _check_fit(model, source)
        episode = self._episode(source)
        clip = cut_window(source, episode, self.start, self.context + self.horizon)
        observed = clip.observations[:, : self.context]
        generator = torch.Generator(device).manual_seed(self.seed)
        with torch.no_grad():
            task = ForecastTask(observed, clip.actions, self.samples, generator)
            forecast = WorldModelForecaster(model, device).forecast(task)
        assert forecast.single is not None
        truth = clip.observations[0]
        mean = torch.cat([observed[0].float(), forecast.mean[0]])
        single = torch.cat([observed[0].float(), forecast.single[0]])
        panels = [to_image(truth), to_image(mean), to_image(single), error_map(mean, truth)]
        out = self.out or run.root / "imagination.gif"
        film = with_progress(side_by_side(panels), self.context)
        write_video(out, enlarge(film, self.scale), self.frames_per_second)
        print(f"{clip.labels[0]}: truth | mean of {self.samples} rollouts | one rollout | error of the mean")
        print(f"animation  {printable(out)}")
        return 0

    def _episode(self, source: EpisodeSource) -> int:
        needed = self.start + self.context + self.horizon
        if self.episode is not None:
            if not 0 <= self.episode < len(source.lengths):
                raise ValueError(f"--episode: expected 0..{len(source.lengths) - 1}, found {self.episode}")
            candidates = [self.episode]
        else:
            candidates = [int(episode) for episode in splits_for(source)["test"]]
        for episode in candidates:
            if int(source.lengths[episode]) >= needed:
                return episode
        longest = max((int(source.lengths[episode]) for episode in candidates), default=0)
        raise ValueError(
            f"start {self.start} + context {self.context} + horizon {self.horizon} need {needed} frames; "
            f"the longest episode to choose from has {longest}"
        )


def _load_model(run: RunDirectory, device: torch.device) -> torch.nn.Module:
    """The run's model; what is wrong with its files is said in one sentence that names them.

    Raises:
        DamagedFileError: a file of the weights is cut, changed or of another kind.
        ValueError: configuration and weights do not fit each other, or weights are NaN or infinite.
    """
    try:
        model = run.load_model(device)
    except (RuntimeError, KeyError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{run.weights}: expected weights that fit config.json, found {error}") from error
    check_finite(run.weights / "model.safetensors", dict(model.named_parameters()))
    return model


def _facts(run: RunDirectory, model: Any, source: EpisodeSource, device: torch.device) -> RunFacts:
    """What is known of the run; names that a file gives are made fit for a terminal."""
    facts = run.facts(model, source, device)
    return replace(facts, task=facts.task and printable(facts.task), preset=facts.preset and printable(facts.preset))


def _check_fit(model: Any, source: EpisodeSource) -> None:
    """Refuse data of another shape than the model's before anything is computed."""
    config, spec = model.config, source.spec
    if tuple(config.image_shape) != tuple(spec.image_shape):
        raise ValueError(f"the model takes frames (C, H, W) {config.image_shape}, the data has {spec.image_shape}")
    if config.action_size != spec.action_size:
        raise ValueError(f"the model takes {config.action_size} action entries, the data has {spec.action_size}")


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)
