"""Everything a run is, into a checkpoint and back: an interrupted run and an uninterrupted one cannot be told apart.

Coming back is all or nothing: every tensor and value is compared with what it replaces before the first is changed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from aime.data import PrefetchLoader
from aime.files import DamagedFileError
from aime.ranges import Range, check_ranges
from aime.ranks import Ranks
from aime.sharding import load_whole_state, whole_to_leader
from aime.tensor_files import check_finite, check_tensor_like, check_tensors, first_non_finite
from aime.training.checkpoint import Checkpoint
from aime.training.guard import FiniteGuard
from aime.training.optimizer_state import check_optimizer, optimizer_tensors, optimizer_values, restore_optimizer
from aime.training.protocol import SequenceModel, optimizers_of, second_player_of

SECTIONS = ("counters", "sampler", "random", "config")


@dataclass
class Counters:
    """How far a run is."""

    step: Annotated[int, Range(0)] = 0
    """Optimizer steps, skipped ones included."""
    seconds: Annotated[float, Range(0)] = 0.0
    """Wall-clock time of training, over all sessions of the run."""
    cpu_seconds: Annotated[float, Range(0)] = 0.0
    """CPU time of the process while it trained, over all sessions of the run."""
    frames: Annotated[int, Range(0)] = 0
    """Frames trained on, repeats included."""
    best: Annotated[float, Range()] | None = None
    """Lowest validation loss so far."""


class TensorHolder(Protocol):
    """What a run keeps besides the model: weight averages, remembered posteriors."""

    def tensors(self) -> dict[str, Tensor]:
        """All that it holds."""
        ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`."""
        ...


def capture(
    model: SequenceModel,
    loader: PrefetchLoader,
    counters: Counters,
    guard: FiniteGuard,
    generator: torch.Generator,
    kept: Mapping[str, TensorHolder] | None = None,
    ranks: Ranks | None = None,
) -> Checkpoint:
    """Tensors and plain values of the whole run; nothing is copied that need not be.

    Of a model that is divided among ``ranks`` (a collective) rank 0 gets them whole, one after the other into the
    host's memory, and the others only shapes.
    """
    optimizer, balancer = optimizers_of(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    players = _players(model, optimizer)
    for prefix, player in players.items():
        tensors.update({f"{prefix}/{name}": tensor for name, tensor in optimizer_tensors(player, names).items()})
    tensors.update({f"balancer/{name}": tensor for name, tensor in balancer.state_dict().items()})
    tensors.update(_random_tensors(generator))
    tensors.update({f"guard/{name}": tensor for name, tensor in guard.tensors().items()})
    for prefix, holder in (kept or {}).items():
        tensors.update({f"{prefix}/{name}": tensor for name, tensor in holder.tensors().items()})
    python_version, python_words, python_gauss = random.getstate()
    name, words, *rest = np.random.get_state()  # noqa: NPY002 - whoever uses the global one must resume too
    values = {
        "counters": vars(counters).copy(),
        "sampler": loader.state_dict(),
        **{prefix: optimizer_values(player, names) for prefix, player in players.items()},
        "random": {
            "python": [python_version, list(python_words), python_gauss],
            "numpy": [name, np.asarray(words).tolist(), *rest],
        },
        "config": model.config.to_dict(),
    }
    return Checkpoint({name: whole_to_leader(tensor, ranks) for name, tensor in tensors.items()}, values)


def restore(
    checkpoint: Checkpoint,
    model: SequenceModel,
    loader: PrefetchLoader,
    guard: FiniteGuard,
    generator: torch.Generator,
    kept: Mapping[str, TensorHolder] | None = None,
) -> Counters:
    """Put the run back to where `capture` took it; where anything does not fit, nothing is changed.

    Raises:
        ValueError: the checkpoint is of a model with another configuration (the differing fields are named), a tensor
            has another name, shape or dtype than what it replaces, or holds NaN, or a value is not what it should be.
    """
    optimizer, balancer = optimizers_of(model)
    place, tensors, values = _place(checkpoint), checkpoint.tensors, checkpoint.values
    for section in SECTIONS:
        if section not in values:
            raise DamagedFileError(place, expected=f"a checkpoint of a run, with {section}", found="none")
    _check_config(place, values["config"], model.config.to_dict())
    kept = kept or {}
    players = _players(model, optimizer)
    known = ("model/", "balancer/", "random/", "guard/", *(f"{prefix}/" for prefix in (*players, *kept)))
    surplus = [name for name in tensors if not name.startswith(known)]
    if surplus:
        raise DamagedFileError(place, expected=f"names that begin with {', '.join(known)}", found=repr(surplus[0]))
    weights, parameters = _under(tensors, "model/"), dict(model.named_parameters())
    check_weights(place, weights, model)
    for prefix, player in players.items():
        check_optimizer(place, player, parameters, _under(tensors, f"{prefix}/"), values.get(prefix, {}))
    state = _under(tensors, "balancer/")
    try:
        balancer.check_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{place}: balancer: {error}") from error
    check_tensors(f"{place}: guard", _under(tensors, "guard/"), guard.tensors())
    for prefix, holder in kept.items():
        check_tensors(f"{place}: {prefix}", _under(tensors, f"{prefix}/"), holder.tensors())
        check_finite(f"{place}: {prefix}", _under(tensors, f"{prefix}/"))
    _check_random(place, tensors, values["random"], generator)
    _check_sampler(place, values["sampler"], loader)
    counters = _counters(place, values["counters"])

    load_whole_state(model, weights)
    for prefix, player in players.items():
        restore_optimizer(player, parameters, _under(tensors, f"{prefix}/"), values.get(prefix, {}))
    balancer.load_state_dict(state)
    guard.load_tensors(_under(tensors, "guard/"))
    for prefix, holder in kept.items():
        holder.load_tensors(_under(tensors, f"{prefix}/"))
    _restore_random(tensors, values["random"], generator)
    loader.load_state_dict(values["sampler"])
    return counters


def load_weights(checkpoint: Checkpoint, model: SequenceModel, *, averaged: bool = False) -> None:
    """Put only the model's parameters and buffers back; ValueError, and nothing changed, where they do not fit.

    Args:
        checkpoint: of a run of this model.
        model: whose parameters are replaced.
        averaged: take the moving averages of the parameters where the checkpoint has them.
    """
    weights = _under(checkpoint.tensors, "model/")
    if averaged:
        means = _under(checkpoint.tensors, "average/")
        weights |= {name: means[name] for name in weights if name in means}
    check_weights(_place(checkpoint), weights, model)
    load_whole_state(model, weights)


def check_weights(place: str, weights: Mapping[str, Tensor], model: SequenceModel) -> None:
    """Compare names, shapes and dtypes with the model's, and refuse NaN in parameters; ValueError."""
    check_tensors(f"{place}: model", weights, model.state_dict())
    check_finite(f"{place}: model", {name: weights[name] for name, _ in model.named_parameters()})
    buffer = first_non_finite(weights, infinity_counts=False)
    if buffer is not None:
        raise ValueError(f"{place}: model: {buffer}: expected no NaN, found some")


def _players(model: SequenceModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.optim.Optimizer]:
    """Optimizers by their prefix in a checkpoint: the model's, and the second player's where there is one."""
    player = second_player_of(model)
    return {"optimizer": optimizer} | ({} if player is None else {"opponent": player.optimizer})


def _place(checkpoint: Checkpoint) -> str:
    return "checkpoint" if checkpoint.path is None else str(checkpoint.path)


def _check_config(place: str, saved: Any, found: dict[str, Any]) -> None:
    if not isinstance(saved, dict):
        raise DamagedFileError(place, expected="the model's configuration", found=type(saved).__name__)
    different = [name for name in sorted({*saved, *found}) if saved.get(name) != found.get(name)]
    if different:
        pairs = ", ".join(f"{name} {saved.get(name)!r} (now {found.get(name)!r})" for name in different)
        raise ValueError(f"{place}: expected the model configuration of the checkpoint, found other values: {pairs}")


def _check_sampler(place: str, saved: Any, loader: PrefetchLoader) -> None:
    """The sampler checks what it is of; here, that it will be able to."""
    now = loader.state_dict()
    if not isinstance(saved, dict) or saved.keys() != now.keys():
        found = sorted(saved) if isinstance(saved, dict) else type(saved).__name__
        raise DamagedFileError(place, expected=f"a sampler with {', '.join(sorted(now))}", found=str(found))
    for name, value in saved.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise DamagedFileError(place, expected=f"sampler {name} to be a whole number", found=repr(value))
        if name in ("window_count", "batch_size") and value != now[name]:
            raise ValueError(
                f"{place}: cannot resume the sampler: expected {name} {value} as in the checkpoint, found {now[name]} "
                "(other data, window length or batch size)"
            )


def _counters(place: str, saved: Any) -> Counters:
    names = [entry.name for entry in fields(Counters)]
    if not isinstance(saved, dict) or sorted(saved) != sorted(names):
        raise DamagedFileError(place, expected=f"counters {', '.join(names)}", found=repr(saved))
    counters = Counters(**saved)
    try:
        check_ranges(counters)
    except ValueError as error:
        raise ValueError(f"{place}: counters: {error}") from error
    return counters


def _random_tensors(generator: torch.Generator) -> dict[str, Tensor]:
    tensors = {"random/torch": torch.get_rng_state(), "random/generator": generator.get_state()}
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    return tensors


def _check_random(place: str, tensors: Mapping[str, Tensor], values: Any, generator: torch.Generator) -> None:
    """Shapes and dtypes, and then each state tried on a generator that nobody uses."""
    for name, now in _random_tensors(generator).items():
        if name == "random/cuda" and name not in tensors:
            continue  # the run began on a machine without CUDA
        check_tensor_like(place, name, tensors.get(name), now)
    scratch = {"random/torch": torch.Generator(), "random/generator": torch.Generator(generator.device)}
    try:
        for name, unused in scratch.items():
            unused.set_state(tensors[name])
        random.Random().setstate(_python_state(values))  # noqa: S311 - nothing is drawn from it
        np.random.RandomState().set_state(_numpy_state(values))
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        found = f"{type(error).__name__}: {error}"
        raise DamagedFileError(place, expected="states of the random generators", found=found) from error


def _restore_random(tensors: Mapping[str, Tensor], values: Any, generator: torch.Generator) -> None:
    torch.set_rng_state(tensors["random/torch"])
    generator.set_state(tensors["random/generator"])
    if torch.cuda.is_available() and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"])
    random.setstate(_python_state(values))
    np.random.set_state(_numpy_state(values))  # noqa: NPY002


def _python_state(values: Any) -> tuple[Any, ...]:
    version, words, gauss = values["python"]
    return version, tuple(words), gauss


def _numpy_state(values: Any) -> Any:
    name, words, *rest = values["numpy"]
    return name, np.asarray(words, np.uint32), *rest


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
