"""Small files: written so that a crash leaves the old one or the new one whole, read with errors that name them."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from aime.terminal import printable

CHECKSUMS = "checksums.json"
_numbers = itertools.count()


class DamagedFileError(ValueError):
    """A file is not what was written: it is cut, changed or of another kind. `FILE: expected ..., found ...`."""

    def __init__(self, path: str | Path, *, expected: str, found: str) -> None:
        self.path, self.expected, self.found = Path(path), expected, found
        super().__init__(f"{path}: expected {expected}, found {found}")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by keyword, so that the error survives the trip out of a worker process."""
        return _rebuild, (self.path, self.expected, self.found)


def _rebuild(path: Path, expected: str, found: str) -> DamagedFileError:
    return DamagedFileError(path, expected=expected, found=found)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError that names no file (a full disk while writing, say) the name of this one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def temporary_beside(path: Path) -> Path:
    """A name in the same directory that nothing else has: hidden, with this process's number."""
    return path.with_name(f".writing_{path.name}_{os.getpid()}_{next(_numbers)}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty new file to be filled, which takes the place of `path` at the end; removed when that fails.

    It is created exclusively and with the mode that the umask gives: no link that lies in wait is followed.
    """
    temporary = temporary_beside(path)
    with naming(path):
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write text so that a reader, or a crash, sees the old file or the new one."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as JSON, as `write_text` does; ValueError for NaN and infinity, which JSON has not."""
    write_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is no regular file, no JSON, or no object.
    """
    require_file(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(path, expected="a JSON object", found=f"text that is no JSON ({error})") from None
    if not isinstance(values, dict):
        raise DamagedFileError(path, expected="a JSON object", found=f"a {type(values).__name__}")
    return values


def require_file(path: Path) -> None:
    """Raise FileNotFoundError or DamagedFileError where a path leads to no regular file (a pipe would never end)."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        found = "a directory" if stat.S_ISDIR(mode) else "a pipe or device"
        raise DamagedFileError(path, expected="a file", found=found)


def require_writable(directory: Path) -> None:
    """Make a directory if it is not there, and see that files can be made in it, before hours of work are for nothing.

    Raises:
        OSError: it cannot be made or written to; the message names it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    probe = temporary_beside(directory / "probe")
    with naming(directory):
        try:
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as error:
            raise OSError(error.errno, f"cannot write there: {error.strerror}", str(directory)) from error
        probe.unlink()


def mode_of_new_files(directory: Path) -> int:
    """Permissions that a new file gets there, by the process's umask (asking for the umask would change it)."""
    probe = temporary_beside(directory / "probe")
    os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()


def remove(path: Path) -> None:
    """Remove a file or a directory with what is in it; of a link the link alone. Nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    with path.open("rb") as file, naming(path):
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_written(directory: Path) -> None:
    """Write checksums.json: size and sha256 of every file in a directory, for `check_written`."""
    files = sorted(path for path in directory.iterdir() if path.is_file() and path.name != CHECKSUMS)
    record = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}
    write_json(directory / CHECKSUMS, record)


def check_written(directory: Path) -> None:
    """Compare the files of a directory with its checksums.json; without one there is nothing to compare.

    Raises:
        DamagedFileError: a file is missing, cut or changed; it is named.
    """
    index = directory / CHECKSUMS
    if not index.is_file():
        return
    for name, record in read_json(index).items():
        if Path(name).name != name or not isinstance(record, dict):
            raise DamagedFileError(index, expected="size and sha256 by file name", found=f"{name!r}")
        path = directory / name
        if not path.is_file():
            raise DamagedFileError(path, expected="the file that was written", found="none")
        if path.stat().st_size != record.get("bytes"):
            raise DamagedFileError(path, expected=f"{record.get('bytes')} bytes", found=f"{path.stat().st_size}")
        if sha256_of(path) != record.get("sha256"):
            raise DamagedFileError(path, expected="the content that was written (sha256)", found="another")


def describe_os_error(error: OSError) -> str:
    """One line for an OSError: file, reason, and for a full disk which one it is and what is left on it."""
    if error.strerror is None:
        return printable(error)
    reason = error.strerror[:1].lower() + error.strerror[1:]
    if error.filename is None:
        return printable(reason)
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else str(error.filename)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason += _disk_of(Path(name))
    return printable(f"{name}: {reason}")


def _disk_of(path: Path) -> str:
    """` (the disk at MOUNT has N MB left)`."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
        while not place.is_mount() and place != place.parent:
            place = place.parent
    except OSError:
        return ""
    return f" (the disk at {place} has {free / 1e6:.1f} MB left)"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")
