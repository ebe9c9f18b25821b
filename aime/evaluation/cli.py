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
from aime.evaluation.run_directory import RunDirectory, device_name, installed_versions
from aime.files import require_writable
from aime.ranges import SEED, OptionError, Range, check_ranges
from aime.terminal import printable

if TYPE_CHECKING:
    from aime.evaluation.baselines import TrainedRSSM
    from aime.evaluation.evaluate import Evaluation
    from aime.evaluation.forecasters import Forecaster
    from aime.evaluation.learned_metrics import LearnedMetrics
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

    run_path: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = None
    """Run directory, or a directory of exported weights."""
    model: str | None = None
    """Instead of RUN, MODULE:FUNCTION that makes your own world model of the data's spec; with --data and --out."""
    data: Path | None = None
    """Episode file (HDF5). Default: data.h5 in the run directory."""
    out: Path | None = None
    """Where metrics.json, evaluation.json and report.html go. Default: the run directory."""
    rssm: bool = False
    """Train a small RSSM on the same training split and score it in the same table."""
    rssm_tuned: bool = False
    """Likewise an RSSM with every improvement that is none of AIME's pillars: the row to beat."""
    rssm_seconds: Annotated[float, Range(above=0)] | None = None
    """CPU seconds of each RSSM's training. Default: what the model had, from the run's timing.json."""
    device: str = "auto"
    """Where the model runs: auto, cpu, cuda, cuda:1, ..."""
    report: bool = True
    """Write report.html as well."""
    lpips_weights: tuple[Path, Path] | None = None
    """Weights of AlexNet (torchvision's) and of LPIPS on it (v0.1/alex), as .safetensors. Nothing is downloaded."""
    fvd_weights: Path | None = None
    """I3D as TorchScript, for the Fréchet video distance."""
    protocol: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How much is evaluated."""

    def run(self) -> int:
        """Evaluate, write the files, print the table and where the report is.

        Raises:
            OptionError: neither or both of RUN and --model, or --model without --data and --out.
        """
        check_ranges(self)
        if self.model is not None:
            return self._run_foreign(self.model)
        if self.run_path is None:
            raise OptionError("expected RUN, a run directory, or --model, a world model of your own; found neither")
        from aime.evaluation.evaluate import evaluate_model

        device = choose_device(self.device)
        learned = self._learned_metrics(device)
        run = RunDirectory.find(self.run_path)
        out = self.out or run.root
        require_writable(out)
        source = _source(self.data, run)
        model = run.load_model(device)
        _check_fit(model, source)
        facts, history = _facts(run, model, source, device), run.history()  # a damaged run.json shows before the work
        trained = self._train_baselines(run, source)
        evaluation = evaluate_model(
            model,
            source,
            self.protocol,
            extra=_forecasters(trained),
            device=device,
            progress=_say,
            learned=learned,
        )
        if evaluation.reconstruction["psnr"].mean is None and "reconstruction" not in evaluation.not_computed:
            raise ValueError(f"{run.weights}: what the model reconstructs is NaN on every held-out episode: no figures")
        self._write(evaluation, facts, history, out, trained)
        return 0

    def _run_foreign(self, place: str) -> int:
        """The same for a model of `aime.world_model.imaginable.Imaginable`."""
        from aime.evaluation.foreign import evaluate_imaginable, load_imaginable
        from aime.evaluation.record import RunFacts

        if self.run_path is not None:
            raise OptionError(f"expected one of RUN and --model, found both: {self.run_path} and {place}")
        if self.data is None or self.out is None:
            raise OptionError("model: expected --data, the episodes, and --out, where the results go, with it")
        require_writable(self.out)
        learned = self._learned_metrics(torch.device("cpu"))
        source = open_source(self.data)
        model = load_imaginable(place, source.spec)
        spec, parameters = source.spec, None
        if isinstance(model, torch.nn.Module):
            parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        facts = RunFacts(
            task=f"{spec.domain}-{spec.task}" if spec.domain and spec.task else None,
            device=device_name(torch.device("cpu")),
            parameters=parameters,
            evaluation_renderer=spec.drawn_by or None,
            versions=installed_versions(spec.versions),
        )
        trained = self._train_baselines(None, source)
        evaluation = evaluate_imaginable(
            model,
            source,
            self.protocol,
            name=printable(place),
            extra=_forecasters(trained),
            progress=_say,
            learned=learned,
        )
        self._write(evaluation, facts, [], self.out, trained)
        return 0

    def _write(
        self,
        evaluation: Evaluation,
        facts: RunFacts,
        history: list[dict[str, float]],
        out: Path,
        trained: dict[str, TrainedRSSM],
    ) -> None:
        """metrics.json, evaluation.json, the report and the table."""
        from aime.evaluation.record import metrics_record, protocol_record, write_json
        from aime.evaluation.table import print_summary

        summaries = {name: baseline.summary() for name, baseline in trained.items()}
        record = metrics_record(evaluation, facts, summaries)
        write_json(out / "metrics.json", record)
        write_json(out / "evaluation.json", protocol_record(evaluation, summaries))
        if self.report:
            from aime.evaluation.report import write_report

            _say("writing the report")
            write_report(out / "report.html", evaluation, record, history)
        print_summary(evaluation, record)
        print(f"metrics  {printable(out / 'metrics.json')}")
        if self.report:
            print(f"report   {printable(out / 'report.html')}")

    def _learned_metrics(self, device: torch.device) -> LearnedMetrics:
        from aime.evaluation.learned_metrics import LPIPS, LearnedMetrics, VideoFeatures

        lpips = None if self.lpips_weights is None else LPIPS(*self.lpips_weights).to(device)
        return LearnedMetrics(lpips, None if self.fvd_weights is None else VideoFeatures(self.fvd_weights))

    def _train_baselines(self, run: RunDirectory | None, source: EpisodeSource) -> dict[str, TrainedRSSM]:
        """The wanted rows of the table that are trained here, each for the CPU seconds that the model had."""
        from aime.evaluation.baselines import baseline_settings, train_rssm
        from aime.evaluation.protocol import training_statistics

        names = [name for name, wanted in (("rssm", self.rssm), ("rssm_tuned", self.rssm_tuned)) if wanted]
        if not names:
            return {}
        seconds = self.rssm_seconds or (None if run is None else run.training_cpu_seconds())
        if seconds is None:
            place = "a model of your own" if run is None else run.root / "timing.json"
            raise ValueError(
                f"{place}: expected train_cpu, the CPU seconds of the training, found none: give --rssm-seconds"
            )
        episodes = [int(episode) for episode in splits_for(source)["train"]]
        statistics = training_statistics(source, episodes, self.protocol.mean_image_frames)
        trained = {}
        for name in names:
            _say(f"training {name} for {seconds:.0f} CPU seconds")
            sizes, settings = baseline_settings(name, source.spec, seconds, self.protocol.seed)
            trained[name] = train_rssm(source, episodes, statistics, settings, sizes)
        return trained


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
        model = run.load_model(device)
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


def _forecasters(trained: dict[str, TrainedRSSM]) -> dict[str, Forecaster]:
    """The baselines as rows of the table."""
    if not trained:
        return {}
    from aime.evaluation.forecasters import RSSMForecaster

    return {name: RSSMForecaster(baseline.model) for name, baseline in trained.items()}


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
