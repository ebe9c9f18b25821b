"""The training loop as plain functions: `train` is all that a script needs.

Nothing in a step waits for the device: metrics and the count of skipped steps stay there until a line is logged.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from aime.data import Batch, EpisodeSource
from aime.ranges import OptionError, show
from aime.ranks import Ranks
from aime.sharding import gathered
from aime.terminal import printable
from aime.threads import threads
from aime.training import schedule
from aime.training.checkpoint import CheckpointDirectory
from aime.training.config import TrainConfig
from aime.training.experiment_tracking import load_wandb
from aime.training.guard import check_parameters
from aime.training.outcome import TrainResult, as_it_ended, finish
from aime.training.precision import autocast_dtype
from aime.training.preemption import Preemption
from aime.training.progress import make_progress
from aime.training.protocol import SequenceModel
from aime.training.rehearsal import PosteriorMemory
from aime.training.resuming import changed_settings, has_ended
from aime.training.run_directory import RunDirectory
from aime.training.session import (
    Session,
    begin_session,
    check_fit,
    open_logs,
    save,
    start_session,
    write_facts,
)
from aime.training.stopwatch import Stopwatch, Window

Clock = Callable[[], float]


def train(
    model: SequenceModel,
    source: EpisodeSource,
    config: TrainConfig,
    run_directory: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    resume: bool = False,
    overwrite: bool = False,
    initialise: bool = True,
    provenance: dict[str, Any] | None = None,
    tensorboard: bool = True,
    show_progress: bool = True,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
    ranks: Ranks | None = None,
) -> TrainResult:
    """Train a model on a source's training episodes until the configuration's end.

    At its end the model holds the weights that are exported: averaged ones, where the configuration averages.

    Args:
        model: see `SequenceModel`; it is moved to the device.
        source: episodes; stored splits are used, else they are drawn from the seed.
        config: see `TrainConfig`.
        run_directory: where everything is written; None writes nothing.
        device: where to train.
        resume: continue from the run directory's newest whole checkpoint, if there is one.
        overwrite: replace the run in the run directory.
        initialise: let the model see frames of the data once, before training; False for one that was trained before.
        provenance: entries of run.json (preset, task, ...).
        tensorboard: write event files too, where tensorboard is installed.
        show_progress: a bar on a terminal, lines elsewhere.
        clock: seconds, for the wall-clock budget.
        cpu_clock: CPU seconds of the process, all threads together: what a baseline of equal cost is given.
        ranks: the processes of a distributed run, each of which calls this with the same model and data; rank 0 writes.

    Raises:
        NonFiniteError: too many skipped steps in a row, or parameters or the held-out loss are NaN or infinite.
        ValueError: the data do not fit the model, the run directory holds a run and `resume` is False, or the
            checkpoint does not fit or is damaged.
        aime.ranks.RankLostError: another process of a distributed run is gone.
        aime.locking.LockedError: another trainer writes to the run directory.
        OSError: the run directory cannot be written to, or the disk is full.
    """
    started = clock()
    with contextlib.ExitStack() as held:
        check_fit(model, source)
        if config.wandb_project is not None:
            load_wandb()  # its absence is said before a run directory is begun
        session = start_session(model, source, config, torch.device(device), ranks)
        check_best_metric(session)
        run = claim(run_directory, held, ranks, occupied=resume or overwrite)
        if run is not None and resume and session.leads:
            tell_changes(session, run, provenance or {})
        step = begin_session(session, run, resume=resume, overwrite=overwrite, initialise=initialise)
        if step is not None and has_ended(session):
            return as_it_ended(session)
        if run is not None and session.leads:
            write_facts(session, run, provenance or {})
            run.add_timing({"train_setup": clock() - started})
            open_logs(session, run, step, held, tensorboard=tensorboard)
        session.progress = make_progress(show_progress and session.leads)
        held.callback(session.progress.close)
        with Preemption() as preemption:
            watch = Stopwatch(session.counters, clock, cpu_clock, preemption, ranks)
            with session.data.loader:
                loop(session, watch)
            return finish(session, watch)


def claim(
    path: str | Path | None, held: contextlib.ExitStack, ranks: Ranks | None, *, occupied: bool
) -> RunDirectory | None:
    """Make the run directory, and keep other trainers out of it meanwhile: the first that is written of a run.

    An earlier run may be there where ``occupied`` says so.
    """
    if path is None:
        return None
    run = RunDirectory(path)
    if ranks is None or ranks.leads:
        held.enter_context(run.locked())
        if run.holds_a_run() and not occupied:
            raise ValueError(
                f"{run.path}: expected an empty run directory, found an earlier run (resume it or clear it)"
            )
    return run


def tell_changes(session: Session, run: RunDirectory, provenance: dict[str, Any]) -> None:
    """Print the settings that are others than the run's, where there is one; OptionError where one cannot change."""
    if CheckpointDirectory(run.checkpoints).latest() is None:
        return
    changes = changed_settings(run, session.model.config.to_dict(), session.config, provenance)
    if changes is not None:
        print(printable(changes))


def loop(session: Session, watch: Stopwatch) -> None:
    """Step, log, validate and save until the end of the run or a signal."""
    config, counters, loader = session.config, session.counters, session.data.loader
    session.model.train()
    window = Window.now(session)
    while session.fraction < 1.0 and watch.requested is None:
        batch = session.data.augmented(next(loader), config, session.ranks)
        step_once(session, batch)
        watch.step()
        step = counters.step
        ends = session.fraction >= 1.0 or watch.requested is not None
        validates = session.fraction >= 1.0 or due(step, config.validate_every)
        logs = ends or validates or due(step, config.log_every)
        if logs or session.device.type == "cpu":  # reading on CPU costs nothing, elsewhere it waits for the device
            session.guard.check(batch, session.run.path if session.run else None, step, session.ranks)
        improved = False
        if logs:
            check_parameters(session.model, step, config.learning_rate)
            # Reading waits for the device: only now is the time that of these steps.
            record = session.means.read() | session.gradients.read()
            watch.read()
            record |= window.rates(session)
            if validates:
                record |= validate(session)
                improved = mark_best(session, record)
            report(session, record)
        saves = improved or due(step, config.checkpoint_every)
        if saves:
            save(session, best=improved)
        if saves or logs:
            watch.read()
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
    fraction = session.fraction
    if config.steps is not None:  # a step has the rate of its end, so that the first of few is not idle
        fraction = min(1.0, fraction + 0.5 / config.steps)
    session.set_learning_rates(schedule.learning_rate_factor(config, fraction))
    step, rehearsals, beta = session.counters.step, session.rehearsals, schedule.beta(config, fraction)
    if rehearsals is None:
        metrics = take_step(session, batch, beta)
    else:
        with rehearsals.beside(step) as found:
            metrics = take_step(session, batch, beta, found)
        metrics |= rehearsals.take(step, found(), session.captured or rehearsals.model)
    session.guard.update(metrics["finite"])
    if due(step + 1, config.gradients_every):
        session.gradients.update(session.monitor.measure() | {"finite": metrics["finite"]})
    session.means.update(metrics)
    if session.average is not None:
        with threads(1):  # one pass over memory in many small pieces
            session.average.update()
    session.counters.step += 1
    session.counters.frames += config.batch_size * batch.actions.shape[1]


def take_step(
    session: Session, batch: Batch, beta: float, before_update: Callable[[], object] | None = None
) -> dict[str, torch.Tensor]:
    """One step of the session's model on a batch -> metrics on the device.

    Args:
        session: whose model.
        batch: what it is shown.
        beta: weight of the KL terms.
        before_update: called before a parameter moves, in a run that rehearses.
    """
    memory = None if session.rehearsals is None else session.rehearsals.memory
    if session.captured is not None:
        return session.captured.step(batch, beta, memory)
    remember = {} if memory is None else {"after_pass": remembering(memory, batch, session.ranks)}
    with contextlib.nullcontext() if session.compiled is None else session.compiled.in_place():
        return session.model.training_step_sequence(
            batch.observations,
            batch.actions,
            batch.rewards,
            batch.continues,
            beta=beta,
            grad_clip=session.config.grad_clip,
            autocast=autocast_dtype(session.config, session.device),
            generator=session.generator,
            **({} if before_update is None else {"before_update": before_update}),
            **remember,
            **session.config.loss_weights(),
            **session.together,
        )


def remembering(memory: PosteriorMemory, batch: Batch, ranks: Ranks | None) -> Callable[[Any], None]:
    """What is done with the pass over a batch when its step is over: its posteriors are remembered."""
    return lambda result: memory.store(batch, result.perceived.posterior, ranks)


def validate(session: Session) -> dict[str, float]:
    """Losses on the held-out batches as validation/<name>."""
    session.validated = session.counters.step
    with session.averaged(), gathered(session.model):
        losses = held_out_losses(session.model, session.data.validation, session.config, session.device, session.ranks)
        session.show_pictures()
    return {f"validation/{name}": value for name, value in losses.items()}


@torch.no_grad()
def held_out_losses(
    model: SequenceModel,
    batches: Sequence[Batch],
    config: TrainConfig,
    device: torch.device,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Mean losses over batches, in evaluation mode, with the same noise each time and the final beta.

    With ``ranks`` each process has its rows of the batches, and all get the losses of the whole ones.
    """
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
                    **({} if ranks is None else {"ranks": ranks}),
                )
            for name, value in losses.items():
                totals[name] = totals.get(name, torch.zeros((), device=device)) + value.float()
    finally:
        model.train(before)
    means = {name: value if ranks is None else ranks.mean(value) for name, value in totals.items()}
    return {name: float(value) / len(batches) for name, value in means.items()}


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


def check_best_metric(session: Session) -> None:
    """Raise OptionError where the model has no loss of that name: better now than at the first validation."""
    name = session.config.best_metric
    if name == "total_loss":  # every model has it
        return
    batches = session.data.validation[:1]
    with gathered(session.model):
        losses = held_out_losses(session.model, batches, session.config, session.device, session.ranks)
    if name not in losses:
        raise OptionError(f"best_metric: expected one of {', '.join(losses)}, found {show(name)}")


def mark_best(session: Session, record: dict[str, float]) -> bool:
    """Whether the validation loss in the record is lower than any before."""
    name = f"validation/{session.config.best_metric}"
    best = session.counters.best
    if not math.isfinite(record[name]) or (best is not None and record[name] >= best):
        return False
    session.counters.best = record[name]
    return True
