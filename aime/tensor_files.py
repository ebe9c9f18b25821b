"""Tensors on disk, in safetensors: nothing that is read can run code, and what is read is checked before it is used."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aime.files import DamagedFileError, naming, replacing, require_file, sha256_of
from aime.terminal import printable

LISTED = 3  # names that a message lists before it counts the rest


@dataclass(frozen=True)
class FileRecord:
    """Size and checksum of a file that was written."""

    bytes: int
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileRecord:
    """Write tensors by name, flushed to disk and then renamed into place; their memory layout is not kept.

    Raises:
        OSError: the disk is full, or the file cannot be written; the error names it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        mode = temporary.stat().st_mode & 0o777
        try:
            save_file(_separate(tensors), temporary)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        temporary.chmod(mode)  # safetensors makes files that only their owner may read
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return FileRecord(temporary.stat().st_size, sha256_of(temporary))


def read_tensors(path: Path, record: FileRecord | None = None) -> dict[str, Tensor]:
    """Read all tensors of a file to CPU.

    Args:
        path: the file.
        record: what `write_tensors` returned; the file is compared with it first.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is cut or changed, or not in this format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    require_file(path)
    if record is not None:
        size = path.stat().st_size
        if size != record.bytes:
            raise DamagedFileError(path, expected=f"{record.bytes} bytes", found=f"{size}")
        if sha256_of(path) != record.sha256:
            raise DamagedFileError(path, expected="the content that was written (sha256)", found="another")
    try:
        with naming(path):
            tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        found = f"{type(error).__name__}: {printable(error)}"
        raise DamagedFileError(path, expected="tensors in safetensors format", found=found) from error
    return tensors


def check_tensors(place: str | Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compare names, shapes and dtypes with those of the tensors that are to be replaced.

    Args:
        place: where the tensors are from, for the message.
        found: tensors by name.
        expected: tensors by name; their values do not matter.

    Raises:
        ValueError: names are missing or too many, or a shape or dtype differs.
    """
    missing = [name for name in expected if name not in found]
    surplus = [name for name in found if name not in expected]
    if missing or surplus:
        parts = [f"no {_list(missing)}"] * bool(missing) + [f"{_list(surplus)} besides"] * bool(surplus)
        raise ValueError(f"{place}: expected exactly the model's {len(expected)} tensors, found {' and '.join(parts)}")
    for name, tensor in expected.items():
        check_tensor_like(place, name, found[name], tensor)


def check_tensor_like(place: str | Path, name: str, found: Any, like: Tensor) -> None:
    """Refuse anything but a tensor of the same shape and dtype as `like`; ValueError."""
    expected = _kind(like.shape, like.dtype)
    if not isinstance(found, Tensor):
        raise ValueError(f"{place}: {printable(name)}: expected {expected}, found {type(found).__name__}")  # noqa: TRY004
    if found.shape != like.shape or found.dtype != like.dtype:
        raise ValueError(f"{place}: {printable(name)}: expected {expected}, found {_kind(found.shape, found.dtype)}")


def check_finite(place: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity in floating-point tensors.

    Raises:
        ValueError: names the first such tensor and counts its values.
    """
    name = first_non_finite(tensors)
    if name is not None:
        count = int((~torch.isfinite(tensors[name])).sum())
        raise ValueError(
            f"{place}: {printable(name)}: expected finite values, found NaN or infinity in {count} of "
            f"{tensors[name].numel()}"
        )


def first_non_finite(tensors: Mapping[str, Tensor], *, infinity_counts: bool = True) -> str | None:
    """Name of the first floating-point tensor that holds NaN (or infinity), None where none does (synchronises)."""
    floating = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}
    filled = [tensor for tensor in floating.values() if tensor.numel()]
    # One fused pass: the largest magnitude is NaN where any value is. 7 ms for the laptop model on one core.
    if not filled or bool(torch.isfinite(torch.nn.utils.get_total_norm(filled, norm_type=float("inf")))):
        return None
    wrong = torch.isnan if not infinity_counts else lambda tensor: ~torch.isfinite(tensor)
    return next((name for name, tensor in floating.items() if bool(wrong(tensor).any())), None)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on CPU, none of which shares memory with another: the format has no views."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        on_cpu = tensor.detach().cpu().contiguous()
        start = on_cpu.untyped_storage().data_ptr()
        separate[name] = on_cpu.clone() if start in seen and on_cpu.numel() else on_cpu
        seen.add(start)
    return separate


def _list(names: list[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:LISTED])
    return shown if len(names) <= LISTED else f"{shown} and {len(names) - LISTED} more"


def _kind(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {tuple(shape)}"
