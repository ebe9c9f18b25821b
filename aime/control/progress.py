"""Where a control run stands, and what its phases took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch

PHASES = ("collect", "model", "actor_critic", "evaluate")


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        rounds: whole rounds played and trained.
        frames: environment frames, action repeat counted.
        updates: steps of training.
        seconds, cpu_seconds: of all sessions.
        phases, cpu_phases: wall-clock and CPU seconds by phase.
        best: highest mean return of an evaluation.
        curve: one row for each evaluation.
    """

    rounds: int = 0
    frames: int = 0
    updates: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    cpu_phases: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    best: float | None = None
    curve: list[dict[str, float]] = field(default_factory=list)


class Stopwatch:
    """Wall-clock and CPU seconds of a round by phase; on a shared core the first say little.

    Args:
        clock: wall-clock seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.wall, self.cpu = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0.0)
        self.begin = self.last = clock(), time.process_time()

    def lap(self, phase: str) -> None:
        """What went by since the last lap was this phase's."""
        now = self.clock(), time.process_time()
        self.wall[phase] += now[0] - self.last[0]
        self.cpu[phase] += now[1] - self.last[1]
        self.last = now

    def settle(self) -> None:
        """Have every lap accounted for."""

    @property
    def total(self) -> tuple[float, float]:
        """Wall-clock and CPU seconds so far."""
        return self.clock() - self.begin[0], time.process_time() - self.begin[1]


class DeviceStopwatch(Stopwatch):
    """Laps of a CUDA device, which is behind the host: marks are left in its queue and read when it has come by.

    Between two settlements wall-clock and CPU seconds are shared out by the device's own account.

    Args:
        clock: wall-clock seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.marks = [("", self._mark())]

    @staticmethod
    def _mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def lap(self, phase: str) -> None:
        """See `Stopwatch.lap`; the host does not wait."""
        self.marks.append((phase, self._mark()))

    def settle(self) -> None:
        """Wait for the device and share out what went by."""
        marks = self.marks
        if len(marks) < 2:
            return
        marks[-1][1].synchronize()
        now = self.clock(), time.process_time()
        wall, cpu = now[0] - self.last[0], now[1] - self.last[1]
        spans = [(name, max(before.elapsed_time(mark), 0.0)) for (_, before), (name, mark) in pairwise(marks)]
        total = sum(span for _, span in spans) or 1.0
        for name, span in spans:
            self.wall[name] += wall * span / total
            self.cpu[name] += cpu * span / total
        self.last, self.marks = now, marks[-1:]
