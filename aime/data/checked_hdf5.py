"""HDF5 read with distrust: whatever a file holds, the answer is the values that were written or one DataError.

The library may raise any of a dozen exceptions for a damaged file, allocates what a header claims, follows links to
other files and waits for a writer that a flag announces. Here every read is wrapped, sizes are held against what is
stored before anything is allocated, links, external and virtual storage are refused, and nothing is waited for.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from aime.data.errors import DataError

#: what h5py raises, depending on where the damage is
HDF5_ERRORS = (OSError, LookupError, ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError, AttributeError)
#: gzip, shuffle, fletcher32, szip, nbit, scaleoffset, lzf; others would load a plugin from the user's search path
FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})
LARGEST_CHUNK = 1 << 28  # bytes; a chunk is read whole, and a few compressed bytes can claim any size
LARGEST_TEXT = 1 << 20  # bytes of an attribute
LARGEST_UNCLOSED = 4 << 30  # bytes; such a file is read into memory


@contextlib.contextmanager
def reading(
    path: Path, *, episode: int | None = None, key: str | None = None, expected: str = "readable values"
) -> Iterator[None]:
    """Turn whatever h5py raises in the block into one DataError."""
    try:
        yield
    except DataError:
        raise
    except HDF5_ERRORS as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(path, episode=episode, key=key, expected=expected, found=reason) from error


def open_file(path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises:
        FileNotFoundError: no such file.
        DataError: not a file that can be read, not HDF5, or truncated.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(path, expected="an HDF5 file", found="something that is not a regular file")
        with path.open("rb") as file:
            head = file.read(48)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(path, expected="a readable HDF5 file", found=error.strerror or str(error)) from error
    with reading(path, expected="a readable HDF5 file"):
        return _open_unclosed(path, head) if _has_open_writer(head) else h5py.File(path, "r")


def _has_open_writer(head: bytes) -> bool:
    """Whether the superblock (HDF5 file format, section II.A, version 3) carries a writer's mark."""
    return len(head) == 48 and head[:8] == b"\x89HDF\r\n\x1a\n" and head[8] == 3 and bool(head[11] & 5)


def _open_unclosed(path: Path, head: bytes) -> h5py.File:
    """Open what a killed writer of an earlier version left, in single-writer-multiple-reader mode.

    The library opens such a file in that mode alone, in which it tries again and again to read what is damaged, for
    minutes. So a copy in memory without the mark is opened. The end of the file is that of the file: the superblock's
    is from when the writer began.
    """
    if head[9] != 8 or _lookup3(head[:44]) != int.from_bytes(head[44:], "little"):
        raise DataError(path, expected="a sound superblock", found="one that does not match its checksum")
    size, end = path.stat().st_size, int.from_bytes(head[28:36], "little")
    if size < end:
        raise DataError(path, expected=f"an HDF5 file of {end} bytes, as its header says", found=f"{size}: truncated")
    if size > LARGEST_UNCLOSED:
        raise DataError(
            path, expected=f"at most {LARGEST_UNCLOSED} bytes in a file of a killed writer", found=str(size)
        )
    image = bytearray(path.read_bytes())
    image[11] = 0
    image[28:36] = len(image).to_bytes(8, "little")
    image[44:48] = _lookup3(bytes(image[:44])).to_bytes(4, "little")
    return h5py.File(h5py.h5f.open_file_image(bytes(image)))


def _lookup3(data: bytes) -> int:
    """Bob Jenkins' lookup3 (hashlittle, initial value 0), the checksum of HDF5's metadata, of at least 13 bytes."""
    mask = 0xFFFFFFFF
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    words += [0] * (-len(words) % 3)
    a = b = c = (0xDEADBEEF + len(data)) & mask

    def rotate(x: int, k: int) -> int:
        return (x << k | x >> (32 - k)) & mask

    for i in range(0, len(words) - 3, 3):
        a, b, c = (a + words[i]) & mask, (b + words[i + 1]) & mask, (c + words[i + 2]) & mask
        for k in (4, 6, 8, 16, 19, 4):
            a, c = (a - c & mask) ^ rotate(c, k), c + b & mask
            a, b, c = b, c, a
    a, b, c = ((x + word) & mask for x, word in zip((a, b, c), words[-3:], strict=True))
    for k in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - rotate(b, k) & mask
        a, b, c = b, c, a
    # seven turns of the names leave the last result in b
    return b


class FileHandle:
    """An HDF5 file that is opened when needed: again after `close`, in a forked process, or when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()  # a later change of the working directory must not lose the file
        self._file: h5py.File | None = None
        self._datasets: dict[str, h5py.Dataset] = {}
        self._owner = 0

    def open(self) -> h5py.File:
        """The open file."""
        if self._file is None or self._owner != os.getpid():  # an HDF5 handle must not be shared with a forked process
            self._file, self._datasets, self._owner = open_file(self.path), {}, os.getpid()
        return self._file

    def dataset(self, name: str, *, episode: int | None = None) -> h5py.Dataset:
        """A dataset of the open file, checked once for each opening (that takes as long as reading a short window)."""
        file = self.open()
        if name not in self._datasets:
            group, _, key = name.rpartition("/")
            parent = file if not group else member(self.path, file, group, h5py.Group, expected="a group")
            self._datasets[name] = member(self.path, parent, key, h5py.Dataset, expected="a dataset", episode=episode)
        return self._datasets[name]

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        if self._file is not None and self._owner == os.getpid():
            self._file.close()
        self._file, self._datasets = None, {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_datasets": {}}


def has_member(path: Path, parent: h5py.Group, name: str) -> bool:
    """Whether the group has something of this name, be it a link that leads nowhere."""
    with reading(path, key=name):
        return bool(parent.id.links.exists(name.encode()))


def member(
    path: Path, parent: h5py.Group, name: str, kind: type[Any], *, expected: str, episode: int | None = None
) -> Any:
    """A dataset or group that lies in the file itself.

    Raises:
        DataError: missing, of another kind, behind a soft or external link, or in external or virtual storage.
    """
    place = f"{parent.name.strip('/')}/{name}".lstrip("/") if episode is None else name
    with reading(path, episode=episode, key=place, expected=expected):
        link = parent.get(name, getlink=True)
        found = None
        if link is None:
            found = "nothing" if episode is None else f"only {', '.join(sorted(parent)[:12])}"
        elif not isinstance(link, h5py.HardLink):
            found = f"a link to {link.path!r}{f' in {link.filename!r}' if isinstance(link, h5py.ExternalLink) else ''}"
        elif not isinstance(item := parent[name], kind):
            found = f"a {type(item).__name__.lower()}"
        elif isinstance(item, h5py.Dataset):
            found = _unwanted_storage(item)
        if found is not None:
            raise DataError(path, episode=episode, key=place, expected=expected, found=found)
    return item


def _unwanted_storage(dataset: h5py.Dataset) -> str | None:
    properties = dataset.id.get_create_plist()
    if dataset.shape is None:
        return "an empty dataset"
    if dataset.is_virtual:
        return "a virtual dataset, whose values lie in other files"
    if properties.get_external_count():
        return f"external storage in {properties.get_external(0)[0]!r}"
    filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
    if not filters <= FILTERS:
        return f"a compression of number {min(filters - FILTERS)}, which is not read"
    if dataset.chunks and math.prod(dataset.chunks) * dataset.dtype.itemsize > LARGEST_CHUNK:
        return f"chunks of {dataset.chunks} {dataset.dtype}, too large to read"
    return None


def check_stored(path: Path, dataset: h5py.Dataset, count: int, *, episode: int | None = None, key: str) -> None:
    """Check that the first ``count`` entries along the first axis exist on disk, before memory is taken for them.

    What was never written reads as zeros, and a header can claim any size.

    Raises:
        DataError: fewer entries, or not all of them stored.
    """
    expected = f"{count} stored entries"
    with reading(path, episode=episode, key=key, expected=expected):
        found = None
        room, stored = path.stat().st_size, dataset.id.get_storage_size()
        if len(dataset) < count:
            found = f"{len(dataset)}"
        elif dataset.chunks:
            sizes = (count, *dataset.shape[1:])
            chunks = math.prod(-(-size // chunk) for size, chunk in zip(sizes, dataset.chunks, strict=True))
            if (there := dataset.id.get_num_chunks()) < chunks:
                found = f"{there} chunks where they take {chunks}"
        elif stored < math.prod((count, *dataset.shape[1:])) * dataset.dtype.itemsize:
            found = f"{stored} bytes"
        if found is None and stored > room:
            found = f"a claim of {stored} bytes in a file of {room}"
        if found is not None:
            raise DataError(path, episode=episode, key=key, expected=expected, found=found)


def read(path: Path, dataset: h5py.Dataset, entries: slice, *, episode: int | None = None, key: str) -> NDArray[Any]:
    """Entries of a dataset (`check_stored` comes first, once)."""
    with reading(path, episode=episode, key=key, expected="readable values"):
        values: NDArray[Any] = dataset[entries]
    if len(values) != entries.stop - entries.start:
        raise DataError(
            path, episode=episode, key=key, expected=f"{entries.stop - entries.start} entries", found=str(len(values))
        )
    return values


def attribute(path: Path, item: h5py.Group, name: str, kind: type[Any]) -> Any:
    """An attribute of one value, as str, int or bool.

    Raises:
        DataError: missing, or of another type.
    """
    expected = f"an attribute of type {kind.__name__}"
    with reading(path, key=name, expected=expected):
        if name not in item.attrs:
            raise DataError(path, key=name, expected=expected, found="nothing")
        stored = item.attrs.get_id(name)
        if stored.shape != () or stored.get_storage_size() > LARGEST_TEXT:
            raise DataError(path, key=name, expected=expected, found=f"values of shape {stored.shape}")
        value = item.attrs[name]
        if kind is str and isinstance(value, bytes):
            value = value.decode()
        numbers: dict[type[Any], type[Any]] = {int: np.integer, bool: np.bool_, str: str}
        if not isinstance(value, numbers[kind]):
            raise DataError(path, key=name, expected=expected, found=f"{str(value)[:80]!r} ({type(value).__name__})")
        return kind(value)
