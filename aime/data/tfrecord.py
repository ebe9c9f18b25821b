"""TFRecord files and tf.train.Example messages, read without TensorFlow.

A record is its length (uint64), the masked CRC-32C of the length, the bytes, and their masked CRC-32C, little-endian
(tensorflow/core/lib/io/record_writer.h). An Example is a map from names to lists of bytes, floats or integers in the
protobuf wire format (tensorflow/core/example/{example,feature}.proto).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aime.data.errors import DataError

LARGEST_RECORD = 1 << 31  # bytes; protobuf itself ends there
_HEADER = struct.Struct("<QI")
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, reflected
_LANE = 1024  # bytes that one lane of the vectorised checksum walks
_MASK = 0xA282EAD8


@functools.cache
def _table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


@functools.cache
def _shifts() -> NDArray[np.uint32]:
    """(4, 256): what a register becomes when _LANE zero bytes follow, by the value of each of its bytes."""
    table = _table()
    register = (np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32))[:, None]).astype(np.uint32)
    for _ in range(_LANE):
        register = table[register & 0xFF] ^ (register >> 8)
    return register


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C (Castagnoli) of some bytes (RFC 3720, B.4).

    The checksum is linear: lanes of 1024 bytes are walked side by side, and their registers are joined. That is some
    hundred times faster than a byte at a time in Python.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    table, size = _table(), len(data)
    if size < 4:
        register = 0xFFFFFFFF
        for byte in bytes(data):
            register = int(table[(register ^ byte) & 0xFF]) ^ register >> 8
        return register ^ 0xFFFFFFFF
    # zeros in front leave a register of 0 as it is, and the initial ones are added to the first four bytes
    lanes = np.zeros(-(-size // _LANE) * _LANE, np.uint8)
    lanes[-size:] = np.frombuffer(data, np.uint8)
    lanes[len(lanes) - size : len(lanes) - size + 4] ^= 0xFF
    registers = np.zeros(len(lanes) // _LANE, np.uint32)
    for column in np.ascontiguousarray(lanes.reshape(-1, _LANE).T):
        registers = table[(registers ^ column) & 0xFF] ^ (registers >> 8)
    shifts = _shifts().tolist()
    total = 0
    for register in registers.tolist():
        total = (
            shifts[0][total & 0xFF]
            ^ shifts[1][total >> 8 & 0xFF]
            ^ shifts[2][total >> 16 & 0xFF]
            ^ shifts[3][total >> 24]
        ) ^ register
    return total ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """A checksum as the files store it: rotated and offset, since a checksum of data that holds checksums is weak."""
    return ((checksum >> 15 | checksum << 17) + _MASK) & 0xFFFFFFFF


@dataclass(frozen=True)
class Record:
    """Where the bytes of one record lie."""

    path: Path
    offset: int
    length: int
    number: int

    def read(self) -> bytes:
        """The record's bytes, checked.

        Raises:
            DataError: the file ends before, or they do not match their checksum.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.length + 4)
        except OSError as error:
            raise DataError(self.path, expected="a readable file", found=error.strerror or str(error)) from error
        body, stored = memoryview(data)[: self.length], data[self.length :]
        if len(data) != self.length + 4 or masked(crc32c(body)) != int.from_bytes(stored, "little"):
            raise DataError(
                self.path,
                key=f"record {self.number}",
                expected=f"{self.length} bytes that match their checksum",
                found="others: the file is damaged",
            )
        return bytes(body)


def records(path: Path) -> Iterator[Record]:
    """The records of a file, by their headers alone.

    Raises:
        DataError: truncated, or a header that does not match its checksum.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            offset = number = 0
            while offset < size:
                file.seek(offset)
                header = file.read(_HEADER.size)
                key = f"record {number}"
                if len(header) < _HEADER.size:
                    raise DataError(path, key=key, expected="a header of 12 bytes", found=f"{len(header)}: truncated")
                length, stored = _HEADER.unpack(header)
                if masked(crc32c(header[:8])) != stored:
                    raise DataError(
                        path, key=key, expected="a length that matches its checksum", found="another: not TFRecord"
                    )
                end = offset + _HEADER.size + length + 4
                if end > size or length > LARGEST_RECORD:
                    raise DataError(
                        path, key=key, expected=f"a record up to byte {end}", found=f"a file of {size}: truncated"
                    )
                yield Record(path, offset + _HEADER.size, length, number)
                offset, number = end, number + 1
    except OSError as error:
        raise DataError(path, expected="a readable TFRecord file", found=error.strerror or str(error)) from error


def is_tfrecord(path: Path) -> bool:
    """Whether a file begins with the header of a record."""
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    return len(header) == _HEADER.size and masked(crc32c(header[:8])) == int.from_bytes(header[8:], "little")


@dataclass(frozen=True)
class Feature:
    """One list of an Example, not yet decoded."""

    kind: str
    """bytes, float or int"""
    data: memoryview

    def bytes_values(self) -> list[memoryview]:
        """The values of a list of bytes. Raises ValueError where it is damaged."""
        return [value for number, value in _fields(self.data) if number == 1 and isinstance(value, memoryview)]

    def numbers(self) -> NDArray[np.float32] | NDArray[np.int64]:
        """The values of a list of floats or integers. Raises ValueError where it is damaged."""
        parts = [value for number, value in _fields(self.data) if number == 1]
        if self.kind == "float":
            raw = b"".join(bytes(part) for part in parts if isinstance(part, memoryview))
            if len(raw) % 4:
                raise ValueError("a list of floats of a size that is no multiple of 4")
            return np.frombuffer(raw, "<f4").astype(np.float32)
        values = [_packed(part) if isinstance(part, memoryview) else np.array([part], np.uint64) for part in parts]
        return np.concatenate([np.zeros(0, np.uint64), *values]).view(np.int64)


def parse_example(data: bytes) -> dict[str, Feature]:
    """The features of a tf.train.Example by name. Raises ValueError where it is damaged."""
    kinds = {1: "bytes", 2: "float", 3: "int"}
    found: dict[str, Feature] = {}
    for number, features in _fields(memoryview(data)):
        if number != 1 or not isinstance(features, memoryview):
            continue
        for _, entry in _fields(features):
            if not isinstance(entry, memoryview):
                raise ValueError("an entry of the map of features that is no message")  # noqa: TRY004 - of the data
            parts = dict(_fields(entry))
            name, feature = parts.get(1), parts.get(2)
            if not isinstance(name, memoryview) or not isinstance(feature, memoryview):
                continue  # a feature without a value, which TensorFlow writes for an empty list
            for kind, values in _fields(feature):
                if kind in kinds and isinstance(values, memoryview):
                    found[bytes(name).decode()] = Feature(kinds[kind], values)
    return found


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("an integer that does not end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(number, value) of each field of a message: bytes, or an integer where the wire type is a varint."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value & 0xFFFFFFFFFFFFFFFF
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of wire type {wire}")
        if at + size > len(data):
            raise ValueError("a field that goes beyond its message")
        yield tag >> 3, data[at : at + size]
        at += size


def _packed(data: memoryview) -> NDArray[np.uint64]:
    """The integers of a packed list, all at once: frames stored as integers are a million of them."""
    raw = np.frombuffer(data, np.uint8)
    if not len(raw):
        return np.zeros(0, np.uint64)
    ends = np.flatnonzero(raw < 0x80)
    if not len(ends) or ends[-1] != len(raw) - 1:
        raise ValueError("a list of integers that does not end")
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 9:
        raise ValueError("an integer of more than 10 bytes")
    place = np.arange(len(raw)) - np.repeat(starts, ends - starts + 1)
    parts = (raw & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.bitwise_or.reduceat(parts, starts)
