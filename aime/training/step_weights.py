"""A model from wherever its weights are: an export, a run, one step's checkpoint, or a file that `torch.save` wrote."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from aime.files import DamagedFileError, read_json
from aime.training.checkpoint import CheckpointDirectory
from aime.training.run_directory import RunDirectory
from aime.training.training_state import load_weights
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig

STEP = re.compile(r"step_([0-9]+)")


@dataclass(frozen=True)
class StepCheckpoint:
    """The checkpoint of one step of a run."""

    run: RunDirectory
    step: int

    @property
    def directories(self) -> CheckpointDirectory:
        """All checkpoints of the run."""
        return CheckpointDirectory(self.run.checkpoints)

    def load_model(self, device: torch.device | str = "cpu") -> DPGMMVariationalRecurrentAutoencoder:
        """The run's model with the weights of the step, averaged ones where the run averages, in evaluation mode.

        Raises:
            FileNotFoundError: the run has no config.json, or no checkpoint of this step.
            ValueError: config.json has no model, or the weights are not exactly its tensors.
        """
        file = self.run.path / "config.json"
        if not file.is_file():
            raise FileNotFoundError(f"{file}: expected the configuration of the run, found none")
        sizes = read_json(file).get("model")
        if not isinstance(sizes, dict):
            raise DamagedFileError(file, expected="the model's configuration under 'model'", found=repr(sizes))
        try:
            model = DPGMMVariationalRecurrentAutoencoder(WorldModelConfig.from_dict(sizes))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from error
        load_weights(self.directories.load(self.step), model, averaged=True)
        return model.to(device).eval()

    def export(self, target: str | Path | None = None) -> Path:
        """Write the weights as `save_pretrained` does -> a directory that `aime evaluate` takes for a run.

        Args:
            target: where; RUN/exports/step_N by default. What was exported there before is replaced.
        """
        root = self.run.path / "exports" / f"step_{self.step:08d}" if target is None else Path(target)
        model = self.load_model()
        shutil.rmtree(root / "weights", ignore_errors=True)
        model.save_pretrained(root / "weights")
        if (self.run.path / "run.json").is_file():
            shutil.copy(self.run.path / "run.json", root / "run.json")
        return root


def find_step(path: str | Path) -> StepCheckpoint | None:
    """The step that a path names: its directory, a file in it, or `checkpoints/` for the newest; None for others."""
    place = Path(path)
    if place.is_file():
        place = place.parent
    named = STEP.fullmatch(place.name)
    if named and place.is_dir() and place.parent.name == "checkpoints":
        return StepCheckpoint(RunDirectory(place.parent.parent), int(named[1]))
    if place.name == "checkpoints" and (step := CheckpointDirectory(place).latest()) is not None:
        return StepCheckpoint(RunDirectory(place.parent), step)
    return None


def load_model(path: str | Path, device: torch.device | str = "cpu") -> DPGMMVariationalRecurrentAutoencoder:
    """The model of a run (its export, else its newest checkpoint), of an export, or of one step, in evaluation mode.

    Raises:
        FileNotFoundError: there is no model there.
        ValueError: the weights are damaged, or not those of the configuration.
    """
    place = Path(path)
    for weights in (place / "weights", place):
        if (weights / "model.safetensors").is_file():
            return DPGMMVariationalRecurrentAutoencoder.from_pretrained(weights, device)
    step = find_step(place) or find_step(place / "checkpoints")
    if step is None:
        raise FileNotFoundError(
            f"{place}: expected exported weights, a run with checkpoints, or one step's checkpoint, found none of them"
        )
    return step.load_model(device)
