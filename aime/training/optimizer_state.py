"""An optimizer's state by parameter name: into a checkpoint, checked against the parameters, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from aime.files import DamagedFileError
from aime.multi_task_learning.orthogonal_step import OrthogonalAdamW
from aime.sharding import divide
from aime.tensor_files import check_finite, check_tensor_like
from aime.terminal import printable

COUNT_IN_TENSORS = (torch.optim.Adam, torch.optim.AdamW, OrthogonalAdamW)
Plain = dict[str, dict[str, int | float]]


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """`NAME OF THE PARAMETER/NAME OF THE ENTRY` -> tensor."""
    return {
        f"{names[parameter]}/{key}": value for parameter, key, value in _entries(optimizer) if isinstance(value, Tensor)
    }


def optimizer_values(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> Plain:
    """Entries that are no tensors (RiemannianAdam counts its steps with an int), by parameter and name.

    Raises:
        TypeError: an entry is neither a tensor nor a number: a checkpoint could not hold it.
    """
    values: Plain = {}
    for parameter, key, value in _entries(optimizer):
        if isinstance(value, Tensor):
            continue
        if not isinstance(value, int | float):
            raise TypeError(f"{names[parameter]}/{key}: expected a tensor or a number, found {type(value).__name__}")
        values.setdefault(names[parameter], {})[key] = value
    return values


def check_optimizer(
    place: str,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    plain: Any,
) -> None:
    """Compare a saved state with the parameters that it is of.

    Fused optimizers walk through moments by the shape of their parameter: one of another shape would let them write
    outside of its memory.

    Args:
        place: where the state is from, for messages.
        optimizer: the one it is for.
        parameters: the model's, by name.
        moments: `optimizer_tensors` of the checkpoint.
        plain: `optimizer_values` of the checkpoint.

    Raises:
        ValueError: unknown parameters, entries that are missing or too many, another shape or dtype, NaN.
    """
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    entries = _by_parameter(place, moments, plain)
    for name, state in entries.items():
        parameter = parameters.get(name)
        if parameter is None or id(parameter) not in stepped:
            raise ValueError(f"{place}: optimizer: expected parameters of the model, found {printable(name)}")
        names = _expected_names(optimizer, parameter)
        if names is not None and state.keys() != names:
            found = ", ".join(printable(entry) for entry in sorted(state)) or "none"
            raise ValueError(f"{place}: optimizer/{name}: expected {', '.join(sorted(names))}, found {found}")
        for key, value in state.items():
            _check_entry(f"{place}: optimizer/{name}", key, value, parameter, own_family=names is not None)
        if type(optimizer) in COUNT_IN_TENSORS and not isinstance(state["step"], Tensor):
            raise ValueError(f"{place}: optimizer/{name}: step: expected a tensor, found {state['step']!r}")
    check_finite(f"{place}: optimizer", moments)


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], moments: Mapping[str, Tensor], plain: Plain
) -> None:
    """Through `load_state_dict`, which places every entry where this optimizer (fused or not) wants it.

    Entries are whole; of a divided parameter each process takes its rows.
    """
    template = optimizer.state_dict()
    entries = {id(parameters[name]): state for name, state in _by_parameter("", moments, plain).items()}
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {key: _divided(value, parameter) for key, value in entries[id(parameter)].items()}
        for index, parameter in enumerate(order)
        if id(parameter) in entries
    }
    optimizer.load_state_dict({"state": state, "param_groups": template["param_groups"]})
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            saved = entries[id(parameter)][key]
            if not isinstance(saved, Tensor):
                values[key] = saved  # `load_state_dict` made a float32 tensor of a count of steps
            elif value.shape == parameter.shape and value.stride() != parameter.stride():
                # Fused AdamW steps by address: moments need the memory layout of their parameter.
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _entries(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, str, Any]]:
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            yield parameter, key, value


def _divided(value: Any, parameter: Tensor) -> Any:
    """An entry as the parameter is divided, where it is one of its shape."""
    return divide(value, parameter) if isinstance(value, Tensor) and value.shape == parameter.shape else value


def _by_parameter(place: str, moments: Mapping[str, Tensor], plain: Any) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    for key, tensor in moments.items():
        name, _, entry = key.rpartition("/")
        entries.setdefault(name, {})[entry] = tensor
    if not isinstance(plain, dict) or not all(isinstance(values, dict) for values in plain.values()):
        raise DamagedFileError(place, expected="plain values of the optimizer by parameter", found=repr(plain)[:60])
    for name, values in plain.items():
        entries.setdefault(name, {}).update(values)
    return entries


def _expected_names(optimizer: torch.optim.Optimizer, parameter: Tensor) -> set[str] | None:
    """Entries of a parameter that was stepped; None for an optimizer of a family not known here."""
    if not isinstance(optimizer, torch.optim.Adam):  # AdamW and geoopt's RiemannianAdam are of this family
        return None
    group = next(group for group in optimizer.param_groups if any(parameter is entry for entry in group["params"]))
    if isinstance(optimizer, OrthogonalAdamW) and group.get("orthogonal"):
        return {"step", "momentum_buffer"}
    amsgrad = bool(group["amsgrad"])
    return {"step", "exp_avg", "exp_avg_sq"} | ({"max_exp_avg_sq"} if amsgrad else set())


def _check_entry(place: str, key: str, value: Any, parameter: Tensor, *, own_family: bool) -> None:
    """A count of steps is one number, anything else is like its parameter."""
    if isinstance(value, Tensor) and key != "step" and (own_family or value.dim() > 0):
        check_tensor_like(place, key, value, parameter)
        return
    if isinstance(value, Tensor) and value.dim() == 0 and (value.is_floating_point() or not own_family):
        value = value.item()
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{place}: {printable(key)}: expected one number of at least 0, found {found}")
