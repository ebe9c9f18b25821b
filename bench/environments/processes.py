"""Every contestant in a process of its own: libraries that would not live together do not have to.

A process stays for the whole run, opens one task after another, and works only while it is measured.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.environments.contestants import KINDS, Advance
from bench.environments.settings import Settings

PATIENCE = 120.0  # seconds to open a task, imports included


@dataclass(frozen=True)
class Measurement:
    """Work per second of wall clock, and per second of CPU time of the contestant with its processes."""

    per_second: float
    per_cpu_second: float


class ContestantProcess:
    """The handle of one contestant's process."""

    def __init__(self, kind: str, name: str, settings: Settings) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, kind, name, settings))
        with _variables(KINDS[kind][name].environment):
            self._process.start()
        far.close()

    def open(self, domain: str, task: str) -> None:
        """Begin a task and warm it up; raises RuntimeError with the contestant's reason where it cannot."""
        self._ask(("open", domain, task), PATIENCE)

    def measure(self, seconds: float) -> Measurement:
        """Work for about so long."""
        return Measurement(*self._ask(("measure", seconds), PATIENCE + seconds))

    def shut(self) -> None:
        """End the task."""
        self._ask(("shut",), PATIENCE)

    def end(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError, OSError):
            self._pipe.send(("end",))
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, question: tuple[Any, ...], patience: float) -> Any:
        try:
            self._pipe.send(question)
            if not self._pipe.poll(patience):
                raise RuntimeError(f"{self.name} did not answer {question[0]!r} in {patience:.0f} s")
            sound, answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self._process.join(5)
            raise RuntimeError(f"{self.name} died, exit status {self._process.exitcode}") from error
        if not sound:
            raise RuntimeError(f"{self.name}: {answer}")
        return answer


@contextlib.contextmanager
def _variables(entries: tuple[tuple[str, str], ...]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name, _ in entries}
    os.environ.update(entries)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _serve(pipe: Connection, kind: str, name: str, settings: Settings) -> None:
    """The process: answers (True, result) or (False, reason)."""
    stack, advance = contextlib.ExitStack(), None
    while True:
        try:
            question = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer: Any = None
            if question[0] == "open":
                advance = stack.enter_context(KINDS[kind][name].open(*question[1:], settings))
                advance()
            elif question[0] == "measure":
                assert advance is not None
                answer = _measure(advance, question[1])
            else:
                advance = None
                stack.close()
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is its answer
            traceback.print_exc()
            pipe.send((False, f"{type(error).__name__}: {error}"))
            continue
        pipe.send((True, answer))
        if question[0] == "end":
            return


def _measure(advance: Advance, seconds: float) -> tuple[float, float]:
    done, start, cpu = 0, time.perf_counter(), _cpu_seconds()
    while time.perf_counter() - start < seconds:
        done += advance()
    wall = time.perf_counter() - start
    return done / wall, done / max(_cpu_seconds() - cpu, 1e-9)


def _cpu_seconds() -> float:
    """CPU time of this process and its children that run."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total
