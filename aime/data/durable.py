"""Files that are there whole or not at all, and errors of the disk that name disk and file."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from aime.data.errors import DiskError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is what `write_file` or `create_file` left when its process was killed."""
    return _TEMPORARY.fullmatch(name) is not None


def create_file(target: Path) -> tuple[int, Path]:
    """A new, empty temporary file beside ``target``: its descriptor and its path.

    It is created exclusively and no link is followed, so that nobody who guesses the name can direct the writing
    elsewhere; it has the mode that the umask gives.
    """
    path = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o666), path


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes, however many calls that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_file(path: Path, data: bytes) -> None:
    """Put a file in place, durably: after a crash there is the old file (or none), or the new one, whole."""
    descriptor, temporary = create_file(path)
    try:
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames in ``path`` durable (POSIX: the directory itself is synced)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: Path, *, episode: int | None = None, safe: str = "") -> Iterator[None]:
    """Turn an OSError of the block into one `DiskError`.

    Args:
        path: the file that was to be written.
        episode: the one that was to be stored.
        safe: what the user need not worry about, for the end of the message.
    """
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        found = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            found += f" ({_free(path)})"
        wrapped = DiskError(
            path,
            episode=episode,
            expected=f"to write to the disk mounted at {_mount_point(path)}",
            found=found + (f"; {safe}" if safe else ""),
        )
        wrapped.errno = error.errno
        raise wrapped from error


def _existing(path: Path) -> Path:
    """The path itself, or its nearest parent that exists."""
    path = path.absolute()
    return next((place for place in (path, *path.parents) if place.exists()), Path("/"))


def _mount_point(path: Path) -> Path:
    place = _existing(path)
    return next((parent for parent in (place, *place.parents) if parent.is_mount()), Path("/"))


def _free(path: Path) -> str:
    try:
        status = os.statvfs(_existing(path))
    except OSError:
        return "free space unknown"
    return f"{status.f_bavail * status.f_frsize:,} bytes free"
