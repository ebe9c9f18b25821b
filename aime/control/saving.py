"""Checkpoints of a control run: agent, optimizers and where it stands, as one directory that is whole or not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aime.files import (
    DamagedFileError,
    check_written,
    naming,
    read_json,
    record_written,
    remove,
    temporary_beside,
    write_json,
)
from aime.tensor_files import check_tensors, read_tensors, write_tensors

STATE, TENSORS = "state.json", "state.safetensors"


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """State of an optimizer by place: ``NAME/PARAMETER/ENTRY``."""
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(order):
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"optimizer/{name}/{index}/{key}", torch.as_tensor(value)


def load_optimizer(name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`; ValueError where a moment has not its parameter's shape."""
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition("/")
        if kind != "optimizer" or not rest.startswith(f"{name}/"):
            continue
        _, index, entry = rest.split("/")
        if not 0 <= int(index) < len(order) or (entry != "step" and value.shape != order[int(index)].shape):
            raise ValueError(
                f"{key}: expected the shape of a parameter of the {name} optimizer, found {tuple(value.shape)}"
            )
        state.setdefault(int(index), {})[entry] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, entries in optimizer.state.items():
        for entry, value in entries.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                # fused optimizers step by address: moments need the memory layout of their parameter
                entries[entry] = torch.empty_like(parameter).copy_(value)


def write_checkpoint(
    directory: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    extra: Mapping[str, Tensor],
    values: Mapping[str, Any],
) -> None:
    """Write a checkpoint in place of the one before, which stays until this one is whole.

    Raises:
        OSError: the disk is full, say; the checkpoint before it is still there.
        ValueError: parameters that are not finite; nothing is written.
    """
    tensors = {
        f"{prefix}/{name}": value for prefix, module in modules.items() for name, value in module.state_dict().items()
    }
    for name, module in modules.items():
        for parameter, value in module.named_parameters():
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name}/{parameter}: expected finite parameters to save, found NaN or infinity")
    for name, optimizer in optimizers.items():
        tensors |= dict(optimizer_tensors(name, optimizer))
    tensors |= {f"extra/{name}": value for name, value in extra.items()}
    temporary, old = temporary_beside(directory), directory.with_name(directory.name + ".old")
    try:
        with naming(directory):
            temporary.mkdir()
            write_tensors(temporary / TENSORS, tensors)
            write_json(temporary / STATE, values)
            record_written(temporary)
            remove(old)
            if directory.is_dir():
                directory.rename(old)
            temporary.rename(directory)
            remove(old)
    except BaseException:
        remove(temporary)
        raise


def checkpoint_at(directory: Path) -> Path | None:
    """The whole checkpoint there is: after a kill between two renames it is the one set aside."""
    old = directory.with_name(directory.name + ".old")
    return next((path for path in (directory, old) if (path / STATE).is_file()), None)


def read_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Put modules and optimizers back; returns the extra tensors and the values.

    Raises:
        DamagedFileError: a file is missing, cut or changed.
        ValueError: tensors of another model.
    """
    check_written(path)
    values, tensors = read_json(path / STATE), read_tensors(path / TENSORS)
    for prefix, module in modules.items():
        start = f"{prefix}/"
        own = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        check_tensors(f"{path / TENSORS}: {prefix}", own, module.state_dict())
        module.load_state_dict(own)
    for name, optimizer in optimizers.items():
        try:
            load_optimizer(name, optimizer, tensors)
        except (ValueError, KeyError) as error:
            raise DamagedFileError(path / TENSORS, expected="the optimizers' states", found=str(error)) from error
    extra = {name.removeprefix("extra/"): value for name, value in tensors.items() if name.startswith("extra/")}
    return extra, values
