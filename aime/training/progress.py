"""What a person sees while training: loss, frames/s, time left, and how long the step waited for data."""

from __future__ import annotations

import importlib.util
import sys
import time
from typing import Any, Protocol

LINE_SECONDS = 10.0  # between two lines where there is no terminal to draw a bar on


class Progress(Protocol):
    """Shows how far a run is."""

    def update(self, fraction: float, seconds_left: float | None, text: str) -> None:
        """Show the elapsed fraction in [0, 1], the time left, and a line of figures."""
        ...

    def close(self) -> None:
        """Leave the last state on screen."""
        ...


class Silent:
    """Shows nothing."""

    def update(self, fraction: float, seconds_left: float | None, text: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Lines:
    """A plain line every few seconds: for logs, and for machines without rich."""

    def __init__(self) -> None:
        self._last = -LINE_SECONDS
        self._pending = ""

    def update(self, fraction: float, seconds_left: float | None, text: str) -> None:
        """Print a line if the last one is old enough."""
        self._pending = f"{fraction:6.1%}  {text}  left {duration(seconds_left)}"
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._print()

    def close(self) -> None:
        """Print the last line if it was held back."""
        if self._pending:
            self._print()

    def _print(self) -> None:
        print(self._pending, file=sys.stderr, flush=True)
        self._last, self._pending = time.monotonic(), ""


class Bar:
    """A rich progress bar."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._progress: Any = RichProgress(
            TextColumn("training"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}  left {task.fields[left]}"),
        )
        self._progress.start()
        self._task = self._progress.add_task("training", total=1.0, text="", left="?")

    def update(self, fraction: float, seconds_left: float | None, text: str) -> None:
        """Redraw."""
        self._progress.update(self._task, completed=fraction, text=text, left=duration(seconds_left))

    def close(self) -> None:
        """Stop redrawing."""
        self._progress.stop()


def make_progress(show: bool) -> Progress:
    """A bar on a terminal, lines in a log, nothing when not shown."""
    if not show:
        return Silent()
    if sys.stderr.isatty() and sys.stdout.isatty():
        if importlib.util.find_spec("rich") is not None:
            return Bar()
        print("rich is not installed: progress is shown as lines")
    return Lines()


def duration(seconds: float | None) -> str:
    """Seconds as 1:02:03 or 2:03."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
