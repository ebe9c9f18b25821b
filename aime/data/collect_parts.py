"""A collection in parts: processes, or tasks of a cluster, that each write files of their own, joined in the end.

Part p of a collection is an ordinary one of its own, with at most `part_episodes` episodes in `NAME.h5.parts/part_p.h5`
and seeds that no other part has. So whichever process plays it, on whatever machine, the part is the same; what is
finished is kept, and what is not is played again. Joining moves compressed chunks, no pixel is decoded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from aime.data.durable import disk_errors, is_temporary, write_file
from aime.data.errors import DataError
from aime.data.hdf5 import HDF5Source
from aime.data.hdf5_writer import hold_output, partial_of
from aime.data.joining import join
from aime.data.segments import is_segment
from aime.terminal import printable

SUFFIX = ".parts"
SETTINGS = "settings.json"
POLL_SECONDS = 0.2
_PART = re.compile(r"part_[0-9]{5}\.(h5|log)|\.part_[0-9]{5}\.h5\.lock|settings\.json")


@dataclass(frozen=True)
class Plan:
    """What parts a collection has, and which of them each worker plays.

    Args:
        path: the file that all are joined to.
        episodes: of the whole collection.
        part_episodes: of a part at most.
        workers: processes; worker w plays parts w, w + workers, w + 2 workers, ...
    """

    path: Path
    episodes: int
    part_episodes: int
    workers: int

    @property
    def directory(self) -> Path:
        """Where the parts lie."""
        return self.path.with_name(self.path.name + SUFFIX)

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-self.episodes // self.part_episodes)

    def file(self, part: int) -> Path:
        """The file of a part."""
        return self.directory / f"part_{part:05d}.h5"

    def size(self, part: int) -> int:
        """Episodes of a part."""
        return min(self.part_episodes, self.episodes - part * self.part_episodes)

    def of_worker(self, worker: int) -> list[int]:
        """The parts that a worker plays."""
        return list(range(worker, self.parts, self.workers))

    def unfinished(self, parts: Sequence[int]) -> list[int]:
        """Those whose file is not there: a file with its final name is whole."""
        return [part for part in parts if not self.file(part).is_file()]

    def played(self, parts: Sequence[int]) -> int:
        """Episodes of these parts that are stored by now, those in progress as well."""
        count = 0
        for part in parts:
            if self.file(part).is_file():
                count += self.size(part)
            else:
                with contextlib.suppress(OSError):
                    count += sum(is_segment(entry.name) for entry in partial_of(self.file(part)).iterdir())
        return count


def prepare(plan: Plan, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Make the directory of the parts, or check that the one that is there is of this collection.

    Raises:
        FileExistsError: the file, or parts of it, exist and are neither to be continued nor to be replaced.
        ValueError: the parts that are there were played with other settings.
        DiskError: the directory cannot be written.
    """
    text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
    file = plan.directory / SETTINGS
    if overwrite and plan.directory.is_dir():
        remove_parts(plan)
    if plan.directory.is_dir():
        if not resume:
            raise FileExistsError(
                f"{printable(plan.directory)} exists already, of a collection that has not finished: continue it "
                "(--resume) or replace it (--overwrite)"
            )
        found = json.loads(file.read_text()) if file.is_file() else {}
        different = [name for name in sorted({*settings, *found}) if settings.get(name) != found.get(name)]
        if found and different:
            pairs = ", ".join(f"{name} {found.get(name)!r} (now {settings.get(name)!r})" for name in different)
            raise ValueError(f"{printable(file)}: expected the settings of this collection, found others: {pairs}")
    with disk_errors(plan.directory):
        plan.directory.mkdir(parents=True, exist_ok=True)
        write_file(file, text.encode())


def play(plan: Plan, parts: Sequence[int], command: Any, *, at_once: int) -> Iterator[int]:
    """Play parts in processes of their own, so many at once; yields the episodes stored, again and again.

    Args:
        plan: of the collection.
        parts: to play, those that are finished already left out.
        command: (part) -> arguments of `aime` that play it.
        at_once: processes.

    Raises:
        RuntimeError: a part failed; its log is named and its last line told. The others are stopped.
    """
    waiting = list(parts)
    running: dict[int, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                part = waiting.pop(0)
                running[part] = _start(plan.file(part).with_suffix(".log"), command(part))
            time.sleep(POLL_SECONDS)
            yield plan.played(parts)
            for part, (process, log) in list(running.items()):
                if process.poll() is None:
                    continue
                log.close()
                del running[part]
                if process.returncode:
                    raise RuntimeError(f"part {part} failed: {_last_line(Path(log.name))} (all of it: {log.name})")
    finally:
        for process, log in running.values():
            process.send_signal(signal.SIGINT)
            process.wait()
            log.close()


def join_parts(plan: Plan, *, body_masks: bool, split_seed: int) -> None:
    """Join all parts to the file, and remove them.

    Raises:
        DataError: a part is damaged, or was made by another version of what renders.
        DiskError: no room.
    """
    files = [plan.file(part) for part in range(plan.parts)]
    specs = []
    for file in files:
        source = HDF5Source(file, body_masks=body_masks)
        specs.append(dataclasses.replace(source.spec, renderer_details=""))
        source.close()
        if specs[-1] != specs[0]:
            raise DataError(file, key="spec", expected=f"that of {files[0].name}", found="another")
    first = HDF5Source(files[0], body_masks=body_masks)
    first.close()
    with disk_errors(plan.path, safe=f"its parts stay in {plan.directory}"):
        join(files, plan.path, first.spec, body_masks=body_masks, split_seed=split_seed)
    remove_parts(plan)


def remove_parts(plan: Plan) -> None:
    """Remove the directory of the parts and what a collection makes in it, nothing else.

    Raises:
        LockedError: a part is being played.
        OSError: the directory holds other files.
    """
    for part in range(plan.parts):
        hold_output(plan.file(part), overwrite=True).release()
    for directory in plan.directory.glob("part_*.h5.partial"):
        for file in directory.iterdir():
            if is_segment(file.name) or is_temporary(file.name):
                file.unlink()
        directory.rmdir()
    for file in plan.directory.iterdir():
        if _PART.fullmatch(file.name) or is_temporary(file.name):
            file.unlink(missing_ok=True)
    plan.directory.rmdir()


def _start(log: Path, arguments: Sequence[str]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    file = log.open("wb")
    command = [sys.executable, "-m", "aime", *arguments]
    return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT), file


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
