"""One writer at a time: a lock on a file or a directory that the kernel releases when its holder ends, in whatever way.

The lock is ``flock`` on a small file beside the path, ``.NAME.lock``, which tells who holds it. It is removed on
release; one that a killed process left behind locks nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import warnings
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self

from aime.terminal import printable

#: what `flock` says where the file system has no such locks
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class LockedError(ValueError):
    """Another process (or another writer of this one) holds the path."""


class Lock:
    """A lock that is held, from `hold`, until `release` or the end of the ``with`` block."""

    def __init__(self, path: Path, file: Path, descriptor: int) -> None:
        self.path, self.file = path, file
        self._descriptor = descriptor
        _held.add(self)

    def release(self) -> None:
        """Give the path free; a second call does nothing."""
        if self._descriptor < 0:
            return
        if _is_file(self._descriptor, self.file):
            self.file.unlink(missing_ok=True)
        self._forget()

    def _forget(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _forget_in_child() -> None:
    """A forked child must not keep its parent's locks alive: they end with the parent."""
    for lock in list(_held):
        lock._forget()


os.register_at_fork(after_in_child=_forget_in_child)


def hold(path: str | Path, purpose: str) -> Lock:
    """Lock a file or directory, which need not exist yet; its parent directories are made.

    On a file system without such locks this warns and goes on.

    Args:
        path: what is going to be written.
        purpose: for the message a second process gets, such as "collecting episodes".

    Raises:
        LockedError: it is held; the message names path, purpose, and process and command of the holder.
        OSError: the lock's file cannot be made (a read-only directory, say); the message names it.

    >>> import tempfile
    >>> with hold(Path(tempfile.mkdtemp()) / "run", "training") as lock:
    ...     lock.path.name
    'run'
    """
    resolved = Path(path).resolve()  # two ways to one file are one lock
    file = resolved.with_name(f".{resolved.name}.lock") if resolved.name else resolved / ".lock"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        while True:
            # no link is followed: the name is known in advance, and a link there would open another's file for writing
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            if _lock(descriptor, path, purpose) and _is_file(descriptor, file):
                break
            os.close(descriptor)  # its holder removed it between our opening and locking it
    except OSError as error:
        reason = f"cannot lock {printable(path)} for {purpose}: {error.strerror}"
        raise OSError(error.errno, reason, str(file)) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, _description(purpose).encode("utf-8", "replace"), 0)
    return Lock(Path(path), file, descriptor)


def _lock(descriptor: int, path: str | Path, purpose: str) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = printable(os.pread(descriptor, 1000, 0).decode("utf-8", "replace")) or "another process"
        os.close(descriptor)
        raise LockedError(
            f"{printable(path)}: expected it to be free for {purpose}, found it in use by {holder}"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            os.close(descriptor)
            raise
        warnings.warn(
            f"{printable(path)}: the file system has no locks ({error.strerror}); a second process that writes there "
            f"while {purpose} goes on would not be refused",
            RuntimeWarning,
            stacklevel=3,
        )
    return True


def _description(purpose: str) -> str:
    command = " ".join(sys.orig_argv)
    command = command if len(command) <= 200 else command[:197] + "..."
    return f"process {os.getpid()} on {socket.gethostname()} for {purpose}: {command}"


def _is_file(descriptor: int, file: Path) -> bool:
    """Whether the name still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.lstat())
    except FileNotFoundError:
        return False
