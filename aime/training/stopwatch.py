"""The time of a run: what it is at each step, on every rank alike, and what passed since the last logged line."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

from aime.ranks import Ranks
from aime.training.preemption import Preemption
from aime.training.session import Session
from aime.training.training_state import Counters

LARGEST_WORLD_THAT_AGREES_EACH_STEP = 16


@dataclass
class Stopwatch:
    """Time of a run, and who asked it to stop: the same on every rank, so that all do the same at each step.

    Args:
        counters: whose seconds are moved.
        clock: seconds.
        cpu_clock: CPU seconds of this process.
        preemption: signals to this process.
        ranks: the processes; the slowest clock counts, CPU seconds are summed, and a signal to one is one to all.
    """

    counters: Counters
    clock: Callable[[], float]
    cpu_clock: Callable[[], float]
    preemption: Preemption
    ranks: Ranks | None = None

    def __post_init__(self) -> None:
        self._base, self._cpu_base = self.counters.seconds - self.clock(), self.cpu_clock()
        self._cpu_before = self.counters.cpu_seconds
        self._requested: signal.Signals | None = None
        size = 1 if self.ranks is None else self.ranks.size
        self._every = max(1, size // LARGEST_WORLD_THAT_AGREES_EACH_STEP)

    @property
    def requested(self) -> signal.Signals | None:
        """The signal that stops the run."""
        return self.preemption.requested if self.ranks is None else self._requested

    def step(self) -> None:
        """After a step: in a large world only every few steps, since a message to all takes as long as they are many.

        Through gloo it took .12 ms with 2 ranks and .38 ms with 4; with 1,000 ranks it is asked for every 62 steps.
        """
        if self.counters.step % self._every == 0:
            self.read()

    def read(self) -> None:
        """Set the counters' seconds, and agree on who stopped the run."""
        seconds, cpu = self._base + self.clock(), self.cpu_clock() - self._cpu_base
        if self.ranks is not None:
            requested = self.preemption.requested
            seconds, number = self.ranks.largest([seconds, 0.0 if requested is None else float(requested.value)])
            self._requested = signal.Signals(int(number)) if number else None
            cpu = self.ranks.total(cpu)
        self.counters.seconds, self.counters.cpu_seconds = seconds, self._cpu_before + cpu


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
