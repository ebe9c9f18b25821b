"""The training loop as plain functions: `train` is all that a script needs.

Nothing in a step waits for the device: metrics and the count of skipped steps stay there until a line is logged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from aime.allocator import keep_freed_memory
from aime.data import Batch, EpisodeSource
from aime.training import schedule
from aime.training.batches import TrainingData
from aime.training.checkpoint import CheckpointDirectory
from aime.training.config import TrainConfig
from aime.training.guard import FiniteGuard, RunningMeans
from aime.training.metric_log import MetricSink, open_sinks
from aime.training.preemption import Preemption
from aime.training.progress import Progress, Silent, make_progress
from aime.training.protocol import SequenceModel, optimizers_of, parameter_count
from aime.training.run_directory import RunDirectory
from aime.training.training_state import Counters, capture, load_weights, restore

Clock = Callable[[], float]


@dataclass(frozen=True)
class TrainResult:
    """How a run, or a session of it, ended."""

    step: int
    seconds: float
    frames: int
    bad_steps: int
    finished: bool
    """False when a signal stopped the run before its end."""
    metrics: dict[str, float]
    """The last logged metrics, training and validation."""
    weights: Path | None
    """Where the weights were exported, None without a run directory or before the end."""


@dataclass
class Session:
    """What the loop holds while it runs."""

    model: SequenceModel
    config: TrainConfig
    data: TrainingData
    device: torch.device
    generator: torch.Generator
    peaks: list[float]
    guard: FiniteGuard
    counters: Counters = field(default_factory=Counters)
    means: RunningMeans = field(default_factory=RunningMeans)
    sinks: list[MetricSink] = field(default_factory=list)
    checkpoints: CheckpointDirectory | None = None
    run: RunDirectory | None = None
    progress: Progress = field(default_factory=Silent)
    last: dict[str, float] = field(default_factory=dict)
    validated: int = -1  # step of the last validation

    @property
    def epochs(self) -> float:
        """Passes over the training frames so far."""
        return self.counters.step / self.data.steps_per_epoch(self.config)

    @property
    def fraction(self) -> float:
        """How much of the run is over, in [0, 1]."""
        return schedule.elapsed_fraction(
            self.config, steps=self.counters.step, seconds=self.counters.seconds, epochs=self.epochs
        )


def train(
    model: SequenceModel,
    source: EpisodeSource,
    config: TrainConfig,
    run_directory: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    resume: bool = False,
    provenance: dict[str, Any] | None = None,
    tensorboard: bool = True,
    show_progress: bool = True,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
) -> TrainResult:
    """Train a model on a source's training episodes until the configuration's end.

    Args:
        model: see `SequenceModel`; it is moved to the device.
        source: episodes; stored splits are used, else they are drawn from the seed.
        config: see `TrainConfig`.
        run_directory: where everything is written; None writes nothing.
        device: where to train.
        resume: continue from the run directory's latest checkpoint, if there is one.
        provenance: entries of run.json (preset, task, ...).
        tensorboard: write event files too, where tensorboard is installed.
        show_progress: a bar on a terminal, lines elsewhere.
        clock: seconds, for the wall-clock budget.
        cpu_clock: CPU seconds of the process, all threads together: what a baseline of equal cost is given.

    Raises:
        NonFiniteError: too many skipped steps in a row.
        ValueError: the data do not fit the model, or the run directory holds a run and `resume` is False.
    """
    started = clock()
    device = torch.device(device)
    if device.type == "cpu":
        keep_freed_memory()
    run = None if run_directory is None else RunDirectory(run_directory)
    if run is not None and run.holds_a_run() and not resume:
        raise ValueError(f"{run.path}: expected an empty run directory, found an earlier run (resume it or clear it)")
    check_fit(model, source)
    session = start_session(model, source, config, device)
    if run is not None:
        session.run = run
        session.checkpoints = CheckpointDirectory(run.checkpoints, config.keep_checkpoints)
    step = session.checkpoints.latest() if session.checkpoints is not None and resume else None
    if session.checkpoints is not None and step is not None:
        state = session.checkpoints.load(step)
        session.counters = restore(state, model, session.data.loader, session.guard, session.generator)
    else:
        frames = session.data.initial_frames(config.initial_frames, config.seed)
        model.initialise_from_data(frames, generator=session.generator)
    if run is not None:
        task = f"{source.spec.domain}-{source.spec.task}"
        model_values = model.config.to_dict()
        run.write_configuration(
            {"model": model_values, "train": config.to_dict(), "task": task, "parameters": parameter_count(model)}
        )
        run.write_provenance(
            {
                "preset": None,
                "seed": config.seed,
                "task": task,
                "renderer": source.spec.drawn_by or None,
                **(provenance or {}),
            }
        )
        run.add_timing({"train_setup": clock() - started})
        session.sinks = open_sinks(run.path, tensorboard=tensorboard, resume_step=step)
    session.progress = make_progress(show_progress)
    try:
        with Preemption() as preemption, session.data.loader:
            loop(session, preemption, clock, cpu_clock)
        return finish(session, finished=session.fraction >= 1.0)
    finally:
        session.progress.close()
        for sink in session.sinks:
            sink.close()


def check_fit(model: SequenceModel, source: EpisodeSource) -> None:
    """Raise ValueError where the model's image or action size is not the data's."""
    spec = source.spec
    shape: tuple[int, ...] = tuple(getattr(model.config, "image_shape", spec.image_shape))
    size: int = getattr(model.config, "action_size", spec.action_size)
    if shape != tuple(spec.image_shape):
        raise ValueError(
            f"image_shape (C, H, W): the model expects {shape}, found {tuple(spec.image_shape)} in the data"
        )
    if size != spec.action_size:
        raise ValueError(f"action_size: the model expects {size}, found {spec.action_size} in the data")


def start_session(model: SequenceModel, source: EpisodeSource, config: TrainConfig, device: torch.device) -> Session:
    """Seed, place the model, give it its optimizer and balancer, and open the data."""
    torch.manual_seed(config.seed)
    generator = torch.Generator(device).manual_seed(config.seed)
    model.to(device)
    model.configure_optimizer(config.learning_rate, config.weight_decay, config.balancer, **config.balancer_options)
    optimizer, _ = optimizers_of(model)
    peaks = [float(group["lr"]) for group in optimizer.param_groups]
    data = TrainingData.open(source, config, device)
    return Session(model, config, data, device, generator, peaks, FiniteGuard(config.bad_steps_allowed, device))


def loop(session: Session, preemption: Preemption, clock: Clock, cpu_clock: Clock) -> None:
    """Step, log, validate and save until the end of the run or a signal."""
    config, counters, loader = session.config, session.counters, session.data.loader
    session.model.train()
    base, cpu_base = counters.seconds - clock(), counters.cpu_seconds - cpu_clock()
    window = Window.now(session)
    while session.fraction < 1.0 and preemption.requested is None:
        batch = next(loader)
        step_once(session, batch)
        counters.seconds, counters.cpu_seconds = base + clock(), cpu_base + cpu_clock()
        step = counters.step
        ends = session.fraction >= 1.0 or preemption.requested is not None
        validates = session.fraction >= 1.0 or due(step, config.validate_every)
        logs = ends or validates or due(step, config.log_every)
        if logs or session.device.type == "cpu":  # reading on CPU costs nothing, elsewhere it waits for the device
            session.guard.check(batch, session.run.path if session.run else None, step)
        improved = False
        if logs:
            record = session.means.read()  # waits for the device: only now is the time that of these steps
            counters.seconds, counters.cpu_seconds = base + clock(), cpu_base + cpu_clock()
            record |= window.rates(session)
            if validates:
                record |= validate(session)
                improved = mark_best(session, record)
            report(session, record)
        if improved or due(step, config.checkpoint_every):
            save(session, best=improved)
        counters.seconds, counters.cpu_seconds = base + clock(), cpu_base + cpu_clock()
        if logs:
            window = Window.now(session)
    if session.fraction >= 1.0 and counters.step > 0 and session.validated != counters.step:
        record = session.means.read() | window.rates(session) | validate(session)  # time ran out between two steps
        improved = mark_best(session, record)
        report(session, record)
        save(session, best=improved)


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens at this one."""
    return every > 0 and step % every == 0


def step_once(session: Session, batch: Batch) -> None:
    """One optimizer step at the scheduled learning rate and beta."""
    config = session.config
    optimizer, _ = optimizers_of(session.model)
    fraction = session.fraction
    if config.steps is not None:  # a step has the rate of its end, so that the first of few is not idle
        fraction = min(1.0, fraction + 0.5 / config.steps)
    schedule.set_learning_rate(optimizer, session.peaks, schedule.learning_rate_factor(config, fraction))
    metrics = session.model.training_step_sequence(
        batch.observations,
        batch.actions,
        batch.rewards,
        batch.continues,
        beta=schedule.beta(config, fraction),
        grad_clip=config.grad_clip,
        autocast=autocast_dtype(config, session.device),
        generator=session.generator,
        **config.loss_weights(),
    )
    session.guard.update(metrics["finite"])
    session.means.update(metrics)
    session.counters.step += 1
    session.counters.frames += batch.actions.shape[0] * batch.actions.shape[1]


def autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """bfloat16 where the configuration and the device want mixed precision, else None."""
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else None
    return torch.bfloat16 if config.precision == "bfloat16" else None


def validate(session: Session) -> dict[str, float]:
    """Losses on the held-out batches as validation/<name>."""
    session.validated = session.counters.step
    losses = held_out_losses(session.model, session.data.validation, session.config, session.device)
    return {f"validation/{name}": value for name, value in losses.items()}


@torch.no_grad()
def held_out_losses(
    model: SequenceModel, batches: Sequence[Batch], config: TrainConfig, device: torch.device
) -> dict[str, float]:
    """Mean losses over batches, in evaluation mode, with the same noise each time and the final beta."""
    generator = torch.Generator(device).manual_seed(config.seed)
    dtype = autocast_dtype(config, device)
    totals: dict[str, torch.Tensor] = {}
    before = model.training
    model.eval()
    try:
        for batch in batches:
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                losses, _ = model.compute_total_loss(
                    batch.observations,
                    batch.actions,
                    batch.rewards,
                    batch.continues,
                    beta=config.beta_max,
                    generator=generator,
                    **config.loss_weights(),
                )
            for name, value in losses.items():
                totals[name] = totals.get(name, torch.zeros((), device=device)) + value.float()
    finally:
        model.train(before)
    return {name: float(value) / len(batches) for name, value in totals.items()}


@dataclass(frozen=True)
class Window:
    """Where frames, time and waiting for data stood when the last line was logged."""

    frames: int
    seconds: float
    stall: float

    @classmethod
    def now(cls, session: Session) -> Window:
        """Start counting here."""
        return cls(session.counters.frames, session.counters.seconds, session.data.loader.stall_seconds)

    def rates(self, session: Session) -> dict[str, float]:
        """Frames per second since then, and the share of the time that the step waited for data."""
        seconds = max(session.counters.seconds - self.seconds, 1e-9)
        return {
            "frames_per_second": (session.counters.frames - self.frames) / seconds,
            "data_stall": (session.data.loader.stall_seconds - self.stall) / seconds,
        }


def report(session: Session, record: dict[str, float]) -> None:
    """Complete a record with the run's position, send it to every sink, and show it."""
    counters, config = session.counters, session.config
    fraction = session.fraction
    position = {
        "epoch": session.epochs,
        "frames": counters.frames,
        "seconds": counters.seconds,
        "cpu_seconds": counters.cpu_seconds,
        "learning_rate": config.learning_rate * schedule.learning_rate_factor(config, fraction),
        "beta": schedule.beta(config, fraction),
        "bad_steps": float(session.guard.total),
    }
    record = {**position, **record}
    for sink in session.sinks:
        sink.write(counters.step, record)
    session.last.update(record)
    left = counters.seconds * (1 - fraction) / fraction if fraction > 0 else None
    figures = [f"step {counters.step}"]
    for name, text in (("total_loss", "loss"), ("validation/total_loss", "held-out")):
        if name in session.last:
            figures.append(f"{text} {session.last[name]:.4g}")
    figures.append(f"{session.last['frames_per_second']:.0f} frames/s")
    figures.append(f"data stall {session.last['data_stall']:.0%}")
    session.progress.update(fraction, left, "  ".join(figures))


def mark_best(session: Session, record: dict[str, float]) -> bool:
    """Whether the validation loss in the record is lower than any before."""
    name = f"validation/{session.config.best_metric}"
    if name not in record:
        there = ", ".join(key.partition("/")[2] for key in record if key.startswith("validation/"))
        raise ValueError(f"best_metric: expected one of {there}, found {session.config.best_metric!r}")
    best = session.counters.best
    if math.isnan(record[name]) or (best is not None and record[name] >= best):
        return False
    session.counters.best = record[name]
    return True


def save(session: Session, *, best: bool = False) -> None:
    """Write a checkpoint of everything."""
    if session.checkpoints is None:
        return
    state = capture(session.model, session.data.loader, session.counters, session.guard, session.generator)
    session.checkpoints.save(session.counters.step, state, best=best)


def finish(session: Session, *, finished: bool) -> TrainResult:
    """Save where the run stands; at its end, export weights."""
    counters, run = session.counters, session.run
    weights = None
    if run is not None and session.checkpoints is not None:
        if counters.step > 0:
            save(session)
        spent = {"train": counters.seconds, "train_cpu": counters.cpu_seconds}
        run.add_timing({**spent, "frames_trained": counters.frames})
        best = session.checkpoints.best()
        if finished:
            if session.config.export == "best" and best is not None and best != counters.step:
                load_weights(session.checkpoints.load(best), session.model)
            weights = export_weights(session.model, run)
    return TrainResult(
        counters.step,
        counters.seconds,
        counters.frames,
        int(session.guard.total),
        finished,
        session.last,
        weights,
    )


def export_weights(model: SequenceModel, run: RunDirectory) -> Path | None:
    """Write weights/; without safetensors they stay in the checkpoint only, which is said."""
    try:
        model.save_pretrained(run.weights)
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("safetensors"):
            raise
        print(f"safetensors is not installed: the weights are in {run.checkpoints} only")
        return None
    return run.weights
