"""Checkpoints that survive a kill at any moment, hold everything, and load without running pickled code.

A checkpoint is a directory `step_00000500/`: the tensors, written by torch.distributed.checkpoint, and `state.json`
with every plain value. It is written under a temporary name, flushed to disk and renamed, so that a directory with the
final name is always complete. Which one is best stands in `best.json`.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

STATE_FILE = "state.json"
BEST_FILE = "best.json"
_NAME = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: tensors by name, and plain values for JSON."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class CheckpointDirectory:
    """The checkpoints of one run.

    Args:
        path: their directory; created at the first save.
        keep: how many of the latest to keep. The best one is kept besides.
    """

    def __init__(self, path: str | Path, keep: int = 2) -> None:
        self.path = Path(path)
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.path.is_dir():
            return []
        names = (_NAME.fullmatch(entry.name) for entry in self.path.iterdir() if entry.is_dir())
        return sorted(int(name.group(1)) for name in names if name)

    def latest(self) -> int | None:
        """Step of the last complete checkpoint."""
        steps = self.steps()
        return steps[-1] if steps else None

    def best(self) -> int | None:
        """Step of the best checkpoint, None when none was marked."""
        file = self.path / BEST_FILE
        if not file.is_file():
            return None
        step = int(json.loads(file.read_text())["step"])
        return step if step in self.steps() else None

    def directory(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.path / f"step_{step:08d}"

    def save(self, step: int, checkpoint: Checkpoint, *, best: bool = False) -> Path:
        """Write the checkpoint of a step, mark it as the best if it is, and drop those that need not be kept."""
        self.path.mkdir(parents=True, exist_ok=True)
        target = self.directory(step)
        if not target.exists():
            temporary = self.path / f".writing_{step:08d}_{os.getpid()}"
            writer = FileSystemWriter(temporary, single_file_per_rank=True, sync_files=True)
            with _single_process_is_meant():
                save_tensors(dict(checkpoint.tensors), storage_writer=writer)
            write_json(temporary / STATE_FILE, checkpoint.values)
            sync_directory(temporary)
            temporary.rename(target)
            sync_directory(self.path)
        if best:
            write_json(self.path / BEST_FILE, {"step": step})
        self._prune()
        return target

    def load(self, step: int | None = None) -> Checkpoint:
        """Read a checkpoint, the latest by default, to CPU.

        Raises:
            FileNotFoundError: there is none, or not this one; those there are get listed.
        """
        step = self.latest() if step is None else step
        if step is None or step not in self.steps():
            there = ", ".join(str(s) for s in self.steps()) or "none"
            raise FileNotFoundError(
                f"{self.path}: expected a checkpoint{'' if step is None else f' of step {step}'}, found {there}"
            )
        directory = self.directory(step)
        reader = SafeFileSystemReader(directory)
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in reader.read_metadata().state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        with _single_process_is_meant():
            load_tensors(tensors, storage_reader=reader)
        return Checkpoint(tensors, json.loads((directory / STATE_FILE).read_text()))

    def _prune(self) -> None:
        """Remove what an interrupted save left, and checkpoints that are neither recent nor best."""
        steps = self.steps()
        kept = {*steps[-self.keep :], self.best()}
        stale = [self.directory(step) for step in steps if step not in kept]
        for path in [*stale, *self.path.glob(".writing_*")]:
            shutil.rmtree(path, ignore_errors=True)


class SafeFileSystemReader(FileSystemReader):
    """Reads a checkpoint's index without letting it run code: only torch's own index classes are unpickled.

    The tensors themselves are read with `weights_only=True` by torch.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002
        """The index of the checkpoint.

        Raises:
            pickle.UnpicklingError: the index names a class that no index needs.
        """
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata: Metadata = _IndexUnpickler(file).load()
        meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        meta.load_id, metadata.storage_meta = self.load_id, meta
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    _MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
    _NAMES = (
        ("torch", "Size"),
        ("torch", "device"),
        ("torch.serialization", "_get_layout"),
        ("torch._utils", "_get_layout"),
        ("pathlib", "PosixPath"),
        ("pathlib", "WindowsPath"),
        ("pathlib._local", "PosixPath"),
        ("collections", "OrderedDict"),
    )

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if module in self._MODULES or (module, name) in self._NAMES or dtype:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"expected only torch's index classes in a checkpoint, found {module}.{name}")


@contextmanager
def _single_process_is_meant() -> Iterator[None]:
    """Without a process group torch.distributed.checkpoint works on one process and warns that it does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON so that a reader, or a crash, sees the old file or the new one."""
    temporary = path.with_name(path.name + ".writing")
    with temporary.open("w") as file:
        json.dump(values, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
