"""Finding a trained model, and what its run directory tells about it.

A run directory holds ``weights/`` (``config.json`` and ``model.safetensors``), and, where the trainer and the collector
wrote them, ``run.json`` (preset, seed, task, renderer, commit), ``timing.json`` (seconds of setup, collect and train,
and frames_trained), ``metrics.jsonl`` (the training log) and ``data.h5``. Only the weights are needed.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from aime.data import EpisodeSource
from aime.evaluation.record import RunFacts
from aime.files import read_json
from aime.tensor_files import check_finite, first_non_finite

VERSIONS = ("aime", "torch", "numpy", "mujoco", "dm_control", "torchmetrics")


@dataclass(frozen=True)
class RunDirectory:
    """Where things are: ``root`` is the run, ``weights`` the exported model in it."""

    root: Path
    weights: Path

    @classmethod
    def find(cls, path: str | Path) -> RunDirectory:
        """Accept a run directory, a directory of exported weights, or a file inside either.

        Raises:
            FileNotFoundError: when there are no exported weights; the message says where they were looked for.
        """
        given = Path(path)
        start = given.parent if given.is_file() else given
        for weights in (start / "weights", start):
            if (weights / "config.json").is_file() and (weights / "model.safetensors").is_file():
                root = weights.parent if weights.name == "weights" else weights
                return cls(root, weights)
        if not given.exists():
            near = get_close_matches(given.name, [item.name for item in given.parent.glob("*")], n=3)
            hint = f"; near names there: {', '.join(near)}" if near else ""
            raise FileNotFoundError(f"{given}: no such run directory{hint}")
        raise FileNotFoundError(
            f"{given}: expected exported weights (config.json and model.safetensors) there or in {start / 'weights'}; "
            "training exports them when it ends (an interrupted one can be resumed); a step's checkpoint has none"
        )

    def _json(self, name: str) -> dict[str, Any]:
        path = self.root / name
        return read_json(path) if path.is_file() else {}

    def data(self) -> Path | None:
        """The episodes recorded in the run directory, if they are there."""
        path = self.root / "data.h5"
        return path if path.is_file() else None

    def timing(self) -> dict[str, Any]:
        """Contents of timing.json, empty without one."""
        return self._json("timing.json")

    def training_cpu_seconds(self) -> float | None:
        """CPU seconds that the model's training spent, if recorded."""
        seconds = self.timing().get("train_cpu")
        return None if seconds is None else float(seconds)

    def history(self) -> list[dict[str, float]]:
        """Numeric entries of each row of the training log that has a step; a torn last line is left out."""
        path = self.root / "metrics.jsonl"
        if not path.is_file():
            return []
        rows = []
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the line that was being written when a training was killed
                continue
            numbers = {
                key: float(value)
                for key, value in row.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
            if "step" in numbers:
                rows.append(numbers)
        return rows

    def facts(self, model: torch.nn.Module, source: EpisodeSource, device: torch.device) -> RunFacts:
        """What metrics.json says about the run; the task falls back to the data's own."""
        run, timing = self._json("run.json"), self.timing()
        spec = source.spec
        task = f"{spec.domain}-{spec.task}" if spec.domain and spec.task else None
        return RunFacts(
            task=run.get("task") or task,
            preset=run.get("preset"),
            seed=run.get("seed"),
            commit=run.get("commit"),
            device=device_name(device),
            setup_seconds=timing.get("setup"),
            collect_seconds=timing.get("collect"),
            train_seconds=timing.get("train"),
            train_cpu_seconds=timing.get("train_cpu"),
            frames_trained=timing.get("frames_trained"),
            parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
            training_renderer=run.get("renderer"),
            evaluation_renderer=spec.drawn_by or None,
            versions=installed_versions(spec.versions),
        )

    def load_model(self, device: torch.device) -> torch.nn.Module:
        """The world model on ``device``, in evaluation mode; what is wrong with its files is said with their name.

        Raises:
            DamagedFileError: a file of the weights is cut, changed or of another kind.
            ValueError: configuration and weights do not fit each other, or a weight is not finite: every figure of
                such a model would be NaN.
        """
        from aime.world_model import DPGMMVariationalRecurrentAutoencoder

        file = self.weights / "model.safetensors"
        try:
            model = DPGMMVariationalRecurrentAutoencoder.from_pretrained(self.weights)
        except (RuntimeError, KeyError, AttributeError, ZeroDivisionError, OverflowError) as error:
            raise ValueError(f"{self.weights}: expected weights that fit config.json, found {error}") from error
        trained = dict(model.named_parameters())
        check_finite(file, trained)
        constants = {name: values for name, values in model.state_dict().items() if name not in trained}
        broken = first_non_finite(constants, infinity_counts=False)  # a bound may be infinite
        if broken is not None:
            raise ValueError(f"{file}: {broken}: expected numbers, found NaN")
        return model.to(device).eval()


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with its core count."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        models = [
            line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        name = f"{models[0]} x {len(models)}" if models else name
    return name


def installed_versions(of_data: Mapping[str, str]) -> dict[str, str]:
    """Versions here, and of the software that made the data where it is not installed here."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            if name in of_data:
                found[name] = f"{of_data[name]} (of the data)"
    return found
