"""The guard against NaN and infinite steps, and the running means of metrics; neither synchronises the device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aime.data import Batch
from aime.files import naming
from aime.ranks import Ranks
from aime.sharding import held, is_divided
from aime.tensor_files import first_non_finite
from aime.training.protocol import SequenceModel


class NonFiniteError(RuntimeError):
    """Gradients, parameters or losses are NaN or infinite, and the run cannot go on or be called finished."""


def check_parameters(model: SequenceModel, step: int, learning_rate: float) -> None:
    """Refuse NaN and infinity among parameters, and NaN among buffers (synchronises the device).

    A step can have finite gradients and still end there, when the learning rate is too high.

    Raises:
        NonFiniteError: names the first such tensor.
    """
    parameters: dict[str, Tensor] = {name: held(parameter) for name, parameter in model.named_parameters()}
    state = model.state_dict()
    buffers = {name: tensor for name, tensor in state.items() if name not in parameters and not is_divided(tensor)}
    name = first_non_finite(parameters) or first_non_finite(buffers, infinity_counts=False)
    if name is not None:
        tensor = {**buffers, **parameters}[name]
        count = int((~torch.isfinite(tensor)).sum())
        raise NonFiniteError(
            f"step {step}: {name} holds NaN or infinity in {count} of {tensor.numel()} values, after steps whose "
            "gradients were finite: nothing of it was saved or exported. Continue from the last checkpoint, or start "
            f"anew, with a lower learning rate (now {learning_rate:g}) or grad_clip."
        )


class FiniteGuard:
    """Counts skipped steps on the device; the host looks only when it reads metrics anyway.

    Args:
        allowed: skipped steps in a row that are tolerated.
        device: where `finite` flags live.
    """

    def __init__(self, allowed: int, device: torch.device) -> None:
        self.allowed = allowed
        self.consecutive = torch.zeros((), dtype=torch.int64, device=device)
        self.total = torch.zeros((), dtype=torch.int64, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {"consecutive": self.consecutive, "total": self.total}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore `tensors`."""
        self.consecutive.copy_(tensors["consecutive"])
        self.total.copy_(tensors["total"])

    def update(self, finite: Tensor) -> None:
        """Take in one step's flag, () bool or 0/1."""
        ok = finite.to(torch.bool)
        self.consecutive = torch.where(ok, torch.zeros_like(self.consecutive), self.consecutive + 1)
        self.total = torch.where(ok, self.total, self.total + 1)

    def check(self, batch: Batch, directory: Path | None, step: int, ranks: Ranks | None = None) -> None:
        """Save the batch and raise `NonFiniteError` if the last `allowed` + 1 steps were skipped (synchronises).

        In a distributed run all ranks come to the same conclusion, and each saves its rows of the batch.
        """
        consecutive = int(self.consecutive)
        if consecutive <= self.allowed:
            return
        where = ""
        if directory is not None:
            path = directory / f"bad_batch_step_{step}{'' if ranks is None else f'_rank_{ranks.rank}'}.npz"
            save_batch(path, batch)
            where = f" The last batch is in {path}."
        raise NonFiniteError(
            f"step {step}: {consecutive} steps in a row had NaN or infinite gradients ({self.allowed} are allowed); "
            f"every one was skipped, so the weights are those before the first.{where} "
            "A lower learning rate or grad_clip, or precision float32, are the usual remedies."
        )


def save_batch(path: Path, batch: Batch) -> None:
    """Write a batch as npz (observations, actions, rewards, continues, and where its windows came from)."""
    arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {}
    for name in ("observations", "actions", "rewards", "continues", "episodes", "starts"):
        tensor: Tensor | None = getattr(batch, name)
        if tensor is not None:
            arrays[name] = tensor.cpu().numpy()
    with naming(path):
        np.savez_compressed(path, allow_pickle=False, **arrays)


class RunningMeans:
    """Means of 0-d metrics over the steps since the last read; steps that were skipped do not enter.

    Args:
        ranks: of a distributed run: a mean is then over all of them too, and reading is a collective.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self._ranks = ranks
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._counts: dict[tuple[str, ...], Tensor] = {}

    def update(self, metrics: dict[str, Tensor]) -> None:
        """Add one step's metrics; `finite` among them says whether the step counts."""
        names = tuple(metrics)
        values = torch.stack([value.detach().float() for value in metrics.values()])
        finite = metrics["finite"].to(torch.bool)
        values = torch.where(finite, values, torch.zeros_like(values))
        if names in self._sums:
            self._sums[names] += values
            self._counts[names] += finite
        else:
            self._sums[names] = values
            self._counts[names] = finite.to(torch.int64)

    def read(self) -> dict[str, float]:
        """The means since the last read (synchronises); empty when no step counted."""
        means: dict[str, float] = {}
        for names, total in self._sums.items():
            count = int(self._counts[names])
            if count:
                mean = total / count if self._ranks is None else self._ranks.mean(total / count)
                means.update(zip(names, mean.tolist(), strict=True))
        means.pop("finite", None)
        self._sums.clear()
        self._counts.clear()
        return means
