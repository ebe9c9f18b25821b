"""What a run leaves on disk, and where.

runs/<name>/
    config.json      model, training and data configuration
    run.json         preset, seed, task, renderer of the frames, commit, versions
    metrics.jsonl    one line per logged step
    timing.json      seconds of training, frames trained; other commands add their own keys
    tensorboard/     event files
    checkpoints/     step_*/ and best.json
    weights/         what save_pretrained exported at the end
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aime import __version__
from aime.training.checkpoint import write_json

OWN_ENTRIES = ("config.json", "run.json", "metrics.jsonl", "tensorboard", "checkpoints", "weights")


class RunDirectory:
    """Paths of a run, and its small JSON files."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

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
        return self.checkpoints.is_dir() or (self.path / "metrics.jsonl").is_file()

    def clear(self) -> None:
        """Remove what training wrote here, and nothing else (the data file and the report may lie beside it)."""
        for name in OWN_ENTRIES:
            entry = self.path / name
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

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
        there = json.loads(file.read_text()) if file.is_file() else {}
        write_json(file, {**there, **values})


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
