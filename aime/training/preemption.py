"""Whoever stops a run (a cluster, a closed terminal, Ctrl-C) sends a signal: remember it, so that the loop can save."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
STOPPING = "stopping after this step: a checkpoint is being written"


class Preemption:
    """Context in which SIGTERM, SIGUSR1, SIGHUP and SIGINT set `requested` instead of ending the process.

    The first one counts; any that follow it, in whatever order, change nothing: what the loop writes because of the
    first is written whole. A signal that is ignored (SIGHUP under nohup, SIGINT of a background job) stays ignored.
    Outside of the main thread, where Python cannot install handlers, it does nothing.

    Args:
        stopping: what Ctrl-C is answered with at once.
    """

    def __init__(self, stopping: str = STOPPING) -> None:
        self.stopping = stopping
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.requested is None:
            self.requested = signal.Signals(number)
            if number == signal.SIGINT:
                # a buffered stream may be in the middle of a write of its own
                os.write(2, f"\n{self.stopping}\n".encode())

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN:
                    self._previous[number] = before
                    signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
