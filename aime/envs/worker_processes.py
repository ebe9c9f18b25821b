"""Processes that hold some of the environments each: their start, the words they exchange, and their end.

A worker is a new interpreter (nothing is forked, and the program's main module is not imported again). It hears its
parent through a socket whose end it notices, so it never outlives the parent, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import IO, Any

from aime.envs.shared_steps import make_file

#: A worker that was told to end and has not is killed after this many seconds.
_PATIENCE = 20.0
_BOOT = (
    "import sys; from multiprocessing.connection import Connection; line = Connection(int(sys.argv[1])); "
    "sys.path[:] = line.recv(); from aime.envs.worker import serve; serve(line, int(sys.argv[2]))"
)


class Worker:
    """One process and the environments `first` ... `first + count - 1` that it holds."""

    def __init__(self, index: int, first: int, count: int, file: int) -> None:
        self.index, self.first, self.count = index, first, count
        here, there = socket.socketpair()
        with there:
            command = [sys.executable, "-c", _BOOT, str(there.fileno()), str(file)]
            # In a process group of its own: Ctrl-C in a terminal is for the parent, which then ends the workers.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=(there.fileno(), file), process_group=0
            )
        self.line: Connection[Any, Any] = Connection(here.detach())
        self.owes = 0  # answers that it has still to give

    @property
    def name(self) -> str:
        """The process and its environments, for messages."""
        last = self.first + self.count - 1
        which = f"environment {self.first}" if self.count == 1 else f"environments {self.first} to {last}"
        return f"worker process {self.index} ({which})"

    def ask(self, *message: Any) -> None:
        """Send a message that will be answered."""
        self.line.send(message)
        self.owes += 1

    def answer(self) -> Any:
        """The next answer, an exception included; EOFError or OSError when the process has ended."""
        answer = self.line.recv()
        self.owes -= 1
        return answer

    def fate(self) -> str:
        """How the process ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(_PATIENCE)
            return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return "does not answer"


class Workers:
    """All worker processes of one environment; every call speaks to all of them.

    Args:
        counts: environments of each process.
        task: "domain task", for messages.
    """

    def __init__(self, counts: Sequence[int], task: str) -> None:
        self._task, self._failure = task, ""
        self._owner, self._busy = os.getpid(), threading.Lock()
        self.file = make_file()
        self.workers: list[Worker] = []
        self._finalizer = weakref.finalize(self, _end, self.workers, self.file, self._owner)
        for index, count in enumerate(counts):
            self.workers.append(Worker(index, sum(counts[:index]), count, self.file.fileno()))
        for worker in self.workers:
            worker.line.send(sys.path)

    def ask(self, *messages: Any) -> list[Any]:
        """Send each worker its message (or all of them the only one), and return all answers.

        Raises:
            RuntimeError: a worker has ended (now or before), another thread or a forked child asks, or the environment
                is closed.
            Exception: what a worker raised.
        """
        with self._exclusive():
            self._collect(drop=True)
            try:
                for index, worker in enumerate(self.workers):
                    worker.ask(*(messages[index] if len(messages) > 1 else messages[0]))
            except OSError:
                pass  # that worker has ended: what it left unsaid says so below
            except BaseException:
                self._fail("it was interrupted while its worker processes were told to step")
                raise
            answers = self._collect()
        for worker, answer in zip(self.workers, answers, strict=True):
            if isinstance(answer, Exception):
                raise _retold(worker, answer)
        return answers

    def settle(self) -> None:
        """Wait for the answers of a call that was interrupted, and drop them; raises as `ask` does."""
        with self._exclusive():
            self._collect(drop=True)

    def close(self) -> None:
        """End the processes, in order where they answer; a second call does nothing."""
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("another thread is using this environment")
        self._finalizer()
        self._busy.release()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        if os.getpid() != self._owner:
            raise RuntimeError(
                "this environment was made before a fork: its worker processes belong to the parent. "
                "Make the environment in the child, or start processes with the 'spawn' method"
            )
        if self._failure:
            raise RuntimeError(f"the environment {self._task} is closed: {self._failure}")
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("another thread is using this environment")
        try:
            yield
        finally:
            self._busy.release()

    def _collect(self, *, drop: bool = False) -> list[Any]:
        answers: dict[Connection[Any, Any], Any] = {}
        waiting = {worker.line: worker for worker in self.workers if worker.owes or not drop}
        while waiting:
            for line in wait(list(waiting)):
                assert isinstance(line, Connection)
                worker = waiting[line]
                try:
                    answers[line] = worker.answer()
                except (EOFError, OSError):
                    raise RuntimeError(self._fail(f"{worker.name} of {self._task} {worker.fate()}")) from None
                if worker.owes == 0:
                    del waiting[line]
        return [answers.get(worker.line) for worker in self.workers]

    def _fail(self, reason: str) -> str:
        self._failure = reason
        self._finalizer()
        return reason


def _retold(worker: Worker, error: Exception) -> Exception:
    """The exception of a worker with the numbers of the whole environment."""
    if type(error) is not RuntimeError:
        error.add_note(f"in {worker.name}, which numbers its own from 0")
        return error
    return RuntimeError(f"{worker.name}, which numbers its own from 0: {error}")


def _end(workers: Sequence[Worker], file: IO[bytes], owner: int) -> None:
    """Hang up, which ends a worker after what it does, and wait; kill those that do not end."""
    file.close()
    if os.getpid() != owner:
        return
    for worker in workers:
        worker.line.close()
    for worker in workers:
        try:
            worker.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
