"""How a command ends: what went wrong is one line on stderr and an exit status, never a traceback unless asked for."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from aime.files import describe_os_error
from aime.ranges import OptionError
from aime.terminal import printable

TRACEBACK = "--traceback"
FAILED, MISUSED, INTERRUPTED = 1, 2, 130
LONGEST = 600  # characters of a message


class SaidElsewhereError(Exception):
    """What went wrong is reported by another process of the job: this one ends with status 1 and says nothing."""


def wants_traceback(arguments: Sequence[str] = ()) -> bool:
    """Whether `--traceback` is given or AIME_TRACEBACK is 1."""
    return TRACEBACK in arguments or os.environ.get("AIME_TRACEBACK") == "1"


def guarded(run: Callable[[], int | None], *, with_traceback: bool | None = None) -> int:
    """Run a command; returns its exit status.

    0 on success, 1 when something went wrong, 2 for options that make no sense, 130 for Ctrl-C. Errors are one line on
    stderr; with `with_traceback` (AIME_TRACEBACK=1 by default) they are raised instead. Warnings are one line as well.
    """
    with_traceback = wants_traceback() if with_traceback is None else with_traceback
    with plain_warnings():
        try:
            try:
                return run() or 0
            finally:
                flush_output()
        except BrokenPipeError:  # whoever read the output has seen enough: `aime train --help | head`
            settle_output()
            return FAILED
        except KeyboardInterrupt:
            say("interrupted")
            return INTERRUPTED
        except SaidElsewhereError:
            return FAILED
        except Exception as error:
            settle_output()
            if with_traceback:
                raise
            say(f"error: {describe(error)}")
            return MISUSED if isinstance(error, OptionError) else FAILED


def describe(error: Exception) -> str:
    """An error as one line without control characters."""
    if isinstance(error, OSError):
        return one_line(describe_os_error(error))
    text = one_line(str(error))
    if isinstance(error, MemoryError) or "not enough memory" in text or "out of memory" in text:
        return f"out of memory: {text or 'an allocation failed'} (smaller batches or sizes need less)"
    if isinstance(error, ValueError | ImportError | RuntimeError) and not isinstance(error, UnicodeError) and text:
        return text
    return f"unexpected {type(error).__name__}: {text}{_place(error)} ({TRACEBACK} shows the rest)"


def one_line(text: str) -> str:
    """The text in one line, printable, and cut where it is very long; frames of C++ that torch appends are left out."""
    text = text.partition("Exception raised from")[0]
    line = printable("; ".join(part.strip() for part in text.splitlines() if part.strip()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}... ({TRACEBACK} shows the rest)"


def refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse an empty argument, such as that of `--out ""`, which would mean the current directory; OptionError."""
    for before, argument in pairwise(["", *arguments]):
        flag, equals, value = argument.partition("=")
        if argument == "" or (flag.startswith("--") and equals and value == ""):
            name = flag or before or "the first argument"
            raise OptionError(f"{printable(name)}: expected a value, found an empty one")


def say(text: str) -> None:
    """Print to stderr; where nobody can read that, nothing can be said."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)


def flush_output() -> None:
    """Write out what was printed: a full disk or a closed pipe shows here, where it can still be told."""
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


def settle_output() -> None:
    """Send what cannot be written nowhere, so that the interpreter's own flush at its end succeeds."""
    try:
        flush_output()
    except OSError:
        pass
    else:
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings as one line, without the place in the code that they are from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        say(f"warning: {one_line(str(message))}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _place(error: Exception) -> str:
    """` at FILE:LINE`, the innermost one in this package where there is one."""
    frames = traceback.extract_tb(error.__traceback__)
    package = str(Path(__file__).parent)
    inside = [frame for frame in frames if frame.filename.startswith(package)] or frames
    if not inside:
        return ""
    frame = inside[-1]
    return f" at {Path(frame.filename).name}:{frame.lineno}"
