"""One error for bad data: it names the file, the episode and key where known, what was expected and what was found."""

from __future__ import annotations

from pathlib import Path

from aime.terminal import printable


class DataError(ValueError):
    """Bad episode data.

    The message reads ``FILE: episode E, KEY: expected X, found Y``; the parts stay available as attributes. Control
    characters, which a damaged or hostile file may hold, are escaped in it.
    """

    def __init__(
        self, path: str | Path, *, expected: str, found: str, episode: int | None = None, key: str | None = None
    ) -> None:
        self.path, self.episode, self.key, self.expected, self.found = str(path), episode, key, expected, found
        place = ", ".join(part for part in (None if episode is None else f"episode {episode}", key) if part is not None)
        super().__init__(printable(f"{path}: {place + ': ' if place else ''}expected {expected}, found {found}"))

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by keyword, so that the error survives the trip out of a loader process."""
        return _rebuild, (type(self), self.path, self.expected, self.found, self.episode, self.key)


class DiskError(DataError, OSError):
    """A file could not be written: the disk is full or read-only, a directory is not ours, ...

    Attributes:
        errno: of the system's error, such as `errno.ENOSPC`.
    """


def _rebuild(
    cls: type[DataError], path: str, expected: str, found: str, episode: int | None, key: str | None
) -> DataError:
    return cls(path, expected=expected, found=found, episode=episode, key=key)
