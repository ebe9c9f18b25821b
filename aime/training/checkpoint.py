"""Checkpoints that survive a kill at any moment, hold everything, and run no code when they are loaded.

A checkpoint is a directory `step_00000500/`: its tensors in safetensors, one file for each process that trains (one
today), and `checkpoint.json` with every plain value, the names, shapes and dtypes of the tensors, and the size and
sha256 of each file. It is written under a temporary name, flushed to disk and renamed, so that a directory with the
final name is complete; the checksums find what was damaged afterwards. Which one is best stands in `best.json`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from aime.files import DamagedFileError, naming, read_json, remove, sync_directory, write_json
from aime.tensor_files import FileRecord, read_tensors, write_tensors

KIND = "aime checkpoint"
SCHEMA = 2
INDEX_FILE = "checkpoint.json"
BEST_FILE = "best.json"
FORMER_FILES = (".metadata", "state.json")  # of schema 1, which needed pickle
_NAME = re.compile(r"step_([0-9]+)")
#: what reading a damaged disk or directory fails with, besides a file that is there and wrong
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)


class CheckpointSchemaError(ValueError):
    """A checkpoint was written by another version of aime."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: tensors by name, and plain values for JSON."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    path: Path | None = None
    """Where it was read from."""


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
        """Steps of the checkpoints, ascending."""
        if not self.path.is_dir():
            return []
        names = (_NAME.fullmatch(entry.name) for entry in self.path.iterdir() if entry.is_dir())
        return sorted(int(name.group(1)) for name in names if name)

    def latest(self) -> int | None:
        """Step of the last checkpoint."""
        steps = self.steps()
        return steps[-1] if steps else None

    def best(self) -> int | None:
        """Step of the best checkpoint, None when none was marked; DamagedFileError where best.json is unreadable."""
        file = self.path / BEST_FILE
        if not file.is_file():
            return None
        step = read_json(file).get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            raise DamagedFileError(file, expected='{"step": a whole number}', found=f"step {step!r}")
        return step if step in self.steps() else None

    def directory(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.path / f"step_{step:08d}"

    def save(self, step: int, checkpoint: Checkpoint, *, best: bool = False) -> Path:
        """Write the checkpoint of a step, mark it as the best if it is, and drop those that need not be kept.

        Raises:
            OSError: it cannot be written, because the disk is full for example; nothing of it is left then.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        target = self.directory(step)
        if not target.exists():
            temporary = self.path / f".writing_{step:08d}_{os.getpid()}"
            remove(temporary)
            temporary.mkdir()
            try:
                with naming(target):
                    write_checkpoint(temporary, step, checkpoint)
                    temporary.rename(target)
            except BaseException:
                remove(temporary)
                raise
            sync_directory(self.path)
        if best:
            write_json(self.path / BEST_FILE, {"step": step})
        self._prune()
        return target

    def load(self, step: int | None = None) -> Checkpoint:
        """Read a checkpoint to CPU: that of a step, or `newest`.

        Raises:
            FileNotFoundError: there is none, or not this one; those there are get listed.
            DamagedFileError: it is damaged.
            CheckpointSchemaError: another version of aime wrote it.
        """
        checkpoint = self.newest() if step is None else None
        if checkpoint is not None:
            return checkpoint
        if step is None or step not in self.steps():
            there = ", ".join(str(s) for s in self.steps()) or "none"
            raise FileNotFoundError(
                f"{self.path}: expected a checkpoint{'' if step is None else f' of step {step}'}, found {there}"
            )
        return read_checkpoint(self.directory(step), step)

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, None where there is no checkpoint at all; warns of each that is skipped.

        Raises:
            DamagedFileError: there are checkpoints, and every one is damaged.
            CheckpointSchemaError: another version of aime wrote the newest.
        """
        damaged: list[str] = []
        for step in reversed(self.steps()):
            try:
                checkpoint = read_checkpoint(self.directory(step), step)
            except DamagedFileError as error:
                damaged.append(str(error))
                continue
            for reason in damaged:
                warnings.warn(f"skipped a damaged checkpoint, going on from step {step}: {reason}", stacklevel=3)
            return checkpoint
        if damaged:
            raise DamagedFileError(self.path, expected="one whole checkpoint at least", found="; ".join(damaged))
        return None

    def set_aside_after(self, step: int) -> None:
        """Rename the checkpoints after a step, which `newest` found damaged: the run will write these steps again."""
        for later in self.steps():
            if later > step:
                source, number = self.directory(later), 1
                while (target := self.path / f"damaged_{number}_{source.name}").exists():
                    number += 1
                source.rename(target)

    def _prune(self) -> None:
        """Remove what an interrupted save left, and checkpoints that are neither recent nor best."""
        steps = self.steps()
        kept = {*steps[-self.keep :], self.best()}
        stale = [self.directory(step) for step in steps if step not in kept]
        for path in [*stale, *self.path.glob(".writing_*")]:
            remove(path)


def write_checkpoint(directory: Path, step: int, checkpoint: Checkpoint) -> None:
    """Write the files of a checkpoint, the index last, all flushed to disk."""
    name = "tensors_00000_of_00001.safetensors"
    record = write_tensors(directory / name, checkpoint.tensors)
    tensors = {
        key: {"file": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        for key, tensor in checkpoint.tensors.items()
    }
    content = {"step": step, "files": {name: asdict(record)}, "tensors": tensors, "values": checkpoint.values}
    content = json.loads(json.dumps(content, allow_nan=False))  # as it will be read: the digest is of that
    write_json(directory / INDEX_FILE, {"kind": KIND, "schema": SCHEMA, "sha256": _digest(content), "content": content})
    sync_directory(directory)


def read_checkpoint(directory: Path, step: int) -> Checkpoint:
    """Read and verify the checkpoint of a step; errors as in `CheckpointDirectory.load`."""
    try:
        content = _read_index(directory, step)
        return Checkpoint(_read_files(directory, content), dict(content["values"]), directory)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        found = f"{Path(error.filename or directory).name}: {error.strerror}"
        raise DamagedFileError(directory, expected="a whole checkpoint", found=found) from error
    except (KeyError, TypeError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise DamagedFileError(directory / INDEX_FILE, expected="the index of a checkpoint", found=found) from error


def _read_files(directory: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    listed: dict[str, dict[str, Any]] = content["tensors"]
    tensors: dict[str, Tensor] = {}
    for name, record in content["files"].items():
        if Path(name).name != name:
            raise DamagedFileError(directory / INDEX_FILE, expected="files beside it", found=repr(name))
        tensors.update(read_tensors(directory / name, FileRecord(**record)))
    found = {name: (str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for name, tensor in tensors.items()}
    if found != {name: (entry["dtype"], entry["shape"]) for name, entry in listed.items()}:
        raise DamagedFileError(directory, expected=f"the {len(listed)} tensors of its index", found="others")
    return {name: tensors[name] for name in listed}


def _read_index(directory: Path, step: int) -> dict[str, Any]:
    path = directory / INDEX_FILE
    if not path.exists() and any((directory / name).exists() for name in FORMER_FILES):
        raise CheckpointSchemaError(
            f"{directory}: expected a checkpoint of schema {SCHEMA}, found schema 1, which an earlier version of aime "
            "wrote and which this one does not load: finish the run with that version, or start it anew (--overwrite)"
        )
    index = read_json(path)
    if index.get("kind") != KIND:
        raise DamagedFileError(
            path, expected=f"the index of a checkpoint (kind {KIND!r})", found=f"{index.get('kind')!r}"
        )
    if index.get("schema") != SCHEMA:
        raise CheckpointSchemaError(
            f"{path}: expected a checkpoint of schema {SCHEMA}, found {index.get('schema')!r}: another version of aime "
            "wrote it"
        )
    content = index.get("content")
    if not isinstance(content, dict) or _digest(content) != index.get("sha256"):
        raise DamagedFileError(path, expected="the content that was written (sha256)", found="another")
    if content["step"] != step:
        raise DamagedFileError(path, expected=f"the checkpoint of step {step}", found=f"that of step {content['step']}")
    return content


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
