"""What a run leaves on disk, and where.

runs/<name>/
    config.json      model, training and data configuration
    run.json         preset, seed, task, renderer of the frames, commit, versions
    metrics.jsonl    one line per logged step
    timing.json      seconds of training, frames trained; other commands add their own keys
    tensorboard/     event files
    wandb/           those of W&B, where it is asked for
    checkpoints/     step_*/ and best.json
    weights/         what save_pretrained exported at the end
    .trainer.lock    while a trainer writes here
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aime import __version__
from aime.files import read_json, remove, require_writable, write_json
from aime.locking import hold
from aime.ranges import show

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
OWN_ENTRIES = ("config.json", "run.json", "metrics.jsonl", "tensorboard", "wandb", "checkpoints", "weights")


class RunDirectory:
    """Paths of a run, and its small JSON files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @contextmanager
    def locked(self) -> Iterator[RunDirectory]:
        """Make the directory, and keep every other trainer out of it meanwhile.

        Raises:
            aime.locking.LockedError: another trainer writes there; its process is named.
            OSError: it cannot be made or written to.
        """
        require_writable(self.path)
        # The lock lies inside: the directory above may belong to somebody else.
        with hold(self.path / "trainer", "training"):
            for left_by_a_kill in self.path.glob(".writing_*"):
                remove(left_by_a_kill)
            yield self

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """Directory of the exported weights."""
        return self.path / "weights"

    def holds_a_run(self) -> bool:
        """Whether something was trained here."""
        return os.path.lexists(self.checkpoints) or os.path.lexists(self.path / "metrics.jsonl")

    def clear(self) -> None:
        """Remove what training wrote here, and nothing else (the data file and the report may lie beside it).

        Of a link the link goes, not what it leads to.
        """
        for name in OWN_ENTRIES:
            remove(self.path / name)

    def write_configuration(self, sections: Mapping[str, Any]) -> None:
        """Write config.json."""
        write_json(self.path / "config.json", dict(sections))

    def write_provenance(self, values: Mapping[str, Any]) -> None:
        """Write run.json: the given values, the commit and the versions."""
        versions = {
            "aime": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        }
        write_json(self.path / "run.json", {**values, "commit": commit(), "versions": versions})

    def add_timing(self, values: Mapping[str, float | int]) -> None:
        """Merge keys into timing.json, keeping those of other commands."""
        file = self.path / "timing.json"
        there = read_json(file) if file.is_file() else {}
        write_json(file, {**there, **values})


def default_path(domain: str, task: str, suffix: str = "") -> Path:
    """runs/<domain>-<task><suffix>, for names that an episode file gives.

    Raises:
        ValueError: a name could lead out of runs/, or is none.
    """
    for name in (domain, task):
        if not NAME.fullmatch(name):
            raise ValueError(
                "run directory: expected the data to name its domain and task with letters, digits, '_', '-' and '.', "
                f"found {show(name)}: say where to write (--out)"
            )
    return Path("runs") / f"{domain}-{task}{suffix}"


def commit() -> str | None:
    """The commit of the source tree this package runs from, None for an installed package or without git."""
    try:
        root = Path(__file__).resolve().parents[2]
        if not (root / ".git").exists():
            return None
        command = ["git", "rev-parse", "HEAD"]
        found = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
