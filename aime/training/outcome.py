"""How a run ends: what is saved and exported then, and what `train` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from aime.training.guard import NonFiniteError, check_parameters
from aime.training.session import Session, best_checkpoint, export, save
from aime.training.stopwatch import Stopwatch
from aime.training.training_state import load_weights


@dataclass(frozen=True)
class TrainResult:
    """How a run, or a session of it, ended."""

    step: int
    seconds: float
    frames: int
    bad_steps: int
    finished: bool
    """False when a signal stopped the run before its end."""
    stopped_by: str | None
    """Name of that signal."""
    metrics: dict[str, float]
    """The last logged metrics, training and validation."""
    weights: Path | None
    """Where the weights were exported, None without a run directory or before the end."""
    ended_before: bool = False
    """Whether a resumed run was at its end already: nothing was trained, and nothing written."""


def finish(session: Session, watch: Stopwatch) -> TrainResult:
    """Save where the run stands; at its end, export weights that are worth it."""
    counters, run, finished = session.counters, session.run, session.fraction >= 1.0
    check_parameters(session.model, counters.step, session.config.learning_rate)
    weights = None
    if counters.step > 0:
        save(session)
    if run is not None and session.leads:
        spent = {"train": counters.seconds, "train_cpu": counters.cpu_seconds}
        run.add_timing({**spent, "frames_trained": counters.frames})
    if finished:
        best = best_checkpoint(session) if session.config.export == "best" else None
        check_outcome(session, best)
        take_final_weights(session, best)
        weights = export(session)
        if run is not None and session.leads:
            run.add_timing({"frames_exported": counters.frames})
    return result_of(session, finished, None if finished or watch.requested is None else watch.requested.name, weights)


def result_of(session: Session, finished: bool, stopped_by: str | None, weights: Path | None) -> TrainResult:
    """Where the run stands, as what `train` returns."""
    counters, skipped = session.counters, int(session.guard.total)
    return TrainResult(
        counters.step, counters.seconds, counters.frames, skipped, finished, stopped_by, session.last, weights
    )


def take_final_weights(session: Session, best: int | None) -> None:
    """Put the weights that are exported into the model: those of the best checkpoint, if any, or the averages."""
    counters = session.counters
    if session.checkpoints is not None and best is not None and best != counters.step:
        load_weights(session.checkpoints.load(best), session.model, averaged=True)
    elif session.average is not None:
        session.average.move_in()
        check_parameters(session.model, counters.step, session.config.learning_rate)


def as_it_ended(session: Session) -> TrainResult:
    """The result of a run that was at its end when it was resumed; nothing is written."""
    assert session.run is not None
    take_final_weights(session, best_checkpoint(session) if session.config.export == "best" else None)
    weights = session.run.weights if session.leads else None
    return replace(result_of(session, True, None, weights), ended_before=True)


def check_outcome(session: Session, best: int | None) -> None:
    """Raise NonFiniteError where a run came to its end and learnt nothing that could be used."""
    counters, name = session.counters, f"validation/{session.config.best_metric}"
    skipped = int(session.guard.total)
    if counters.step > 0 and skipped == counters.step:
        raise NonFiniteError(
            f"all {skipped} steps had NaN or infinite gradients and were skipped: nothing was learnt, nothing is "
            "exported. A lower learning rate, or precision float32, are the usual remedies."
        )
    loss = session.last.get(name, 0.0)
    if best is None and not math.isfinite(loss):
        raise NonFiniteError(
            f"step {counters.step}: {name} is {loss}: the weights are of no use and are not exported. A lower learning "
            f"rate (now {session.config.learning_rate:g}) is the usual remedy."
        )
