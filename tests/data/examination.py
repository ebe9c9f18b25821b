"""What the reader makes of damaged files: each is opened and read in a process with a limit on time and memory."""

from __future__ import annotations

import os
import resource
import select
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aime.data import EpisodeSource, open_source

SECONDS = 20.0  # for one file, on a busy machine; a sound one takes a hundredth of a second
MEMORY = 1 << 30  # bytes that opening and reading a file of some kilobytes may take at most
RIGHT, REFUSED = "read in full with the right values", "one DataError that names the file"


@dataclass(frozen=True)
class Broken:
    """One damaged file."""

    name: str
    path: Path
    verified: bool = True
    """Whether reading it tells its values from others; without checksums a flipped bit of an array is just a value."""


def contents(source: EpisodeSource) -> dict[str, Any]:
    """Everything that a source gives, by name."""
    values: dict[str, Any] = {"lengths": source.lengths.tolist()}
    for episode, length in enumerate(source.lengths.tolist()):
        window = source.window(episode, 0, length)
        for name in ("observations", "actions", "rewards", "continues", "body_masks", "physics", "body_ids"):
            array = getattr(window, name, None)
            if array is not None:
                values[f"{episode} {name}"] = array
        for name in ("seed", "reset_index"):
            if hasattr(source, "rows"):
                values[f"{episode} {name}"] = int(source.rows[name][episode])
    for name, ids in (getattr(source, "splits", None) or {}).items():
        values[f"split {name}"] = ids
    values["spec"] = source.spec.to_json()
    return values


def outcome_of(path: Path, expected: list[dict[str, Any]], *, verified: bool = True) -> str:
    """What opening a file and reading all of it leads to; ``expected`` are the contents of the undamaged ones."""
    from aime.data import DataError

    try:
        found = contents(open_source(path))
    except DataError as error:
        text = str(error)
        return REFUSED if str(path) in text and text.isprintable() else f"DataError without its file: {text}"
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the outcome
        return f"{type(error).__name__}: {str(error)[:200]}"
    for one in expected:
        # splits and optional arrays may be missing: nothing false is told
        if found["lengths"] == one["lengths"] and all(
            key in one and np.array_equal(value, one[key]) for key, value in found.items()
        ):
            return RIGHT
    return RIGHT if not verified else "wrong values accepted"


def examine(files: list[Broken], bases: list[Path]) -> list[str]:
    """The outcome of each file, each in a forked process."""
    expected = [contents(open_source(base)) for base in bases]
    return [_examine(file, expected) for file in files]


def _examine(file: Broken, expected: list[dict[str, Any]]) -> str:
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
        outcome = outcome_of(file.path, expected, verified=file.verified)
        os.write(send, outcome.encode("utf-8", "replace")[:4000])
        os._exit(0)
    os.close(send)
    try:
        if not select.select([receive], [], [], SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
            return f"hang: more than {SECONDS} s"
        text = os.read(receive, 4000).decode()
        return text or "crash"
    finally:
        os.close(receive)
        os.waitpid(child, 0)
