"""Everything a run is, into a checkpoint and back: an interrupted run and an uninterrupted one cannot be told apart."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aime.data import PrefetchLoader
from aime.training.checkpoint import Checkpoint
from aime.training.guard import FiniteGuard
from aime.training.protocol import SequenceModel, optimizers_of


@dataclass
class Counters:
    """How far a run is."""

    step: int = 0
    """Optimizer steps, skipped ones included."""
    seconds: float = 0.0
    """Wall-clock time of training, over all sessions of the run."""
    cpu_seconds: float = 0.0
    """CPU time of the process while it trained, over all sessions of the run."""
    frames: int = 0
    """Frames trained on, repeats included."""
    best: float | None = None
    """Lowest validation loss so far."""


def capture(
    model: SequenceModel, loader: PrefetchLoader, counters: Counters, guard: FiniteGuard, generator: torch.Generator
) -> Checkpoint:
    """Tensors and plain values of the whole run; nothing is copied that need not be."""
    optimizer, balancer = optimizers_of(model)
    tensors: dict[str, Tensor] = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    names = {parameter: name for name, parameter in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        tensors.update({f"optimizer/{names[parameter]}/{key}": value for key, value in state.items()})
    tensors.update({f"balancer/{name}": tensor for name, tensor in balancer.state_dict().items()})
    tensors["random/torch"] = torch.get_rng_state()
    tensors["random/generator"] = generator.get_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    tensors["guard/consecutive"], tensors["guard/total"] = guard.consecutive, guard.total
    python_version, python_words, python_gauss = random.getstate()
    name, words, *rest = np.random.get_state()  # noqa: NPY002 - whoever uses the global one must resume too
    values = {
        "schema": 1,
        "counters": vars(counters).copy(),
        "sampler": loader.state_dict(),
        "random": {
            "python": [python_version, list(python_words), python_gauss],
            "numpy": [name, np.asarray(words).tolist(), *rest],
        },
        "config": model.config.to_dict(),
    }
    return Checkpoint(tensors, values)


def restore(
    checkpoint: Checkpoint,
    model: SequenceModel,
    loader: PrefetchLoader,
    guard: FiniteGuard,
    generator: torch.Generator,
) -> Counters:
    """Put the run back to where `capture` took it.

    Raises:
        ValueError: the checkpoint is of a model with another configuration; the differing fields are named.
        RuntimeError: the weights do not fit (strict loading).
    """
    _check_config(checkpoint.values["config"], model.config.to_dict())
    tensors = checkpoint.tensors
    load_weights(checkpoint, model)
    optimizer, balancer = optimizers_of(model)
    parameters = dict(model.named_parameters())
    states: dict[Tensor, dict[str, Tensor]] = {}
    for key, tensor in _under(tensors, "optimizer/").items():
        name, _, entry = key.rpartition("/")
        states.setdefault(parameters[name], {})[entry] = tensor
    _restore_optimizer(optimizer, states)
    balancer.load_state_dict(_under(tensors, "balancer/"))
    torch.set_rng_state(tensors["random/torch"])
    generator.set_state(tensors["random/generator"])
    if torch.cuda.is_available() and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"])
    guard.consecutive.copy_(tensors["guard/consecutive"])
    guard.total.copy_(tensors["guard/total"])
    python_version, python_words, python_gauss = checkpoint.values["random"]["python"]
    random.setstate((python_version, tuple(python_words), python_gauss))
    name, words, *rest = checkpoint.values["random"]["numpy"]
    np.random.set_state((name, np.asarray(words, np.uint32), *rest))  # noqa: NPY002
    loader.load_state_dict(checkpoint.values["sampler"])
    return Counters(**checkpoint.values["counters"])


def load_weights(checkpoint: Checkpoint, model: SequenceModel) -> None:
    """Put only the model's parameters and buffers back (strict)."""
    model.load_state_dict(_under(checkpoint.tensors, "model/"))


def _restore_optimizer(optimizer: torch.optim.Optimizer, states: dict[Tensor, dict[str, Tensor]]) -> None:
    """Through `load_state_dict`, which places every entry where this optimizer (fused or not) wants it."""
    template = optimizer.state_dict()
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {index: states[parameter] for index, parameter in enumerate(order) if parameter in states}
    optimizer.load_state_dict({"state": state, "param_groups": template["param_groups"]})
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                # Fused AdamW steps by address: moments need the memory layout of their parameter.
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _check_config(saved: dict[str, Any], found: dict[str, Any]) -> None:
    different = [name for name in sorted({*saved, *found}) if saved.get(name) != found.get(name)]
    if different:
        pairs = ", ".join(f"{name} {saved.get(name)!r} (now {found.get(name)!r})" for name in different)
        raise ValueError(f"expected the model configuration of the checkpoint, found other values: {pairs}")


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
