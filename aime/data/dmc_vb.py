"""Reader of DMC-VB and other RLDS episodes in TFRecord files, without TensorFlow.

A directory of TFDS has features.json and files NAME-SPLIT.tfrecord-00000-of-00001, one Example for each episode; the
earlier AIME's have one for each step. Keys are steps/observation/pixels, steps/action, steps/reward, steps/is_first,
is_last and is_terminal; frames are PNG or JPEG, zlib or raw bytes, or integers.

RLDS (Ramos et al. 2021): action, reward and discount of a step follow its observation, and those of the step marked
is_last mean nothing. So that step is left out; its is_terminal tells whether the action before it ended the episode.
"""

from __future__ import annotations

import io
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aime.data.decoded import DecodedSource, checked_steps, named_in, spec_of
from aime.data.errors import DataError
from aime.data.tfrecord import Feature, Record, is_tfrecord, parse_example, records

LARGEST_FRAME = 64 << 20  # bytes of a decoded frame
#: names of frames, the first that there is is read: locomotion's, other data sets', then the cameras of DMC-VB's mazes
PIXELS = (
    *("steps/observation/pixels", "observation/pixels", "steps/observation/image", "observation/image", "pixels"),
    *(
        f"steps/observation/{camera}{target}"
        for target in ("", "_hidden_target")
        for camera in ("lowres_top_camera", "walker/egocentric_camera", "walker/follow_camera")
    ),
)
_SHARD = re.compile(r"(.+\.tfrecord)-([0-9]{5})-of-([0-9]{5})")


def tfrecord_files(path: Path) -> list[Path]:
    """The TFRecord files at a path: itself, or those in a directory and below it, in order of their names."""
    if path.is_file():
        return [path] if ".tfrecord" in path.name or is_tfrecord(path) else []
    return sorted(file for file in path.rglob("*.tfrecord*") if file.is_file()) if path.is_dir() else []


def _check_complete(path: Path, files: list[Path]) -> None:
    """Raise DataError where shards of a directory are missing, or where its files are of several tasks."""
    shards: dict[tuple[Path, str, str], set[int]] = {}
    tasks: dict[str, Path] = {}
    for file in files:
        if match := _SHARD.fullmatch(file.name):
            shards.setdefault((file.parent, match[1], match[3]), set()).add(int(match[2]))
        if named := named_in(file.absolute()):
            tasks.setdefault("_".join(named.values()), file.parent)
    for (directory, name, count), numbers in shards.items():
        if missing := sorted(set(range(int(count))) - numbers):
            raise DataError(
                directory,
                expected=f"all {int(count)} files of {name} (one by itself is read when it is named)",
                found=f"{len(numbers)}, without {name}-{missing[0]:05d}-of-{count}",
            )
    if len(tasks) > 1:
        found = ", ".join(f"{task} in {place}" for task, place in sorted(tasks.items()))
        raise DataError(path, expected="episodes of one task: name its directory", found=found)


def find_task(path: Path, domain: str | None, task: str | None, policy_level: str | None) -> Path | None:
    """The directory of a task's TFRecord files: DOMAIN_TASK/POLICY_LEVEL at or below a path, or the path itself."""
    if not path.is_dir():
        return None
    name = f"{domain}_{task}"
    if not (domain and task) or name in path.absolute().parts:
        return path if tfrecord_files(path) else None
    for place in sorted(path.rglob(name)):
        for directory in (place / policy_level, place) if policy_level else (place,):
            if tfrecord_files(directory):
                return directory
    return None


def _shapes(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """(shape, dtype) by flat name, of the features.json beside or above the files; empty where there is none."""
    place = next((d / "features.json" for d in (path, path.parent) if (d / "features.json").is_file()), None)
    if place is None:
        place = next(iter(sorted(path.rglob("features.json"))), None) if path.is_dir() else None
    if place is None:
        return {}
    try:
        return dict(_walk(json.loads(place.read_bytes()), ""))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(place, expected="the features of a TFDS data set", found=repr(error)[:200]) from error


def _walk(node: Mapping[str, Any], name: str) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
    if "featuresDict" in node:
        for key, child in node["featuresDict"]["features"].items():
            yield from _walk(child, f"{name}/{key}".lstrip("/"))
    elif "sequence" in node:
        yield from _walk(node["sequence"]["feature"], name)
    else:
        for kind in ("image", "tensor"):
            if kind in node:
                sizes = tuple(int(size) for size in node[kind].get("shape", {}).get("dimensions", ()))
                yield name, (sizes, str(node[kind].get("dtype", "uint8")))


class DMCVBSource(DecodedSource):
    """Episodes of TFRecord files.

    Args:
        path: one file, a directory of TFDS, or a directory above several.

    Raises:
        DataError: no such files, damaged, or without pixels or actions.
    """

    def __init__(self, path: Path) -> None:
        self._files = tfrecord_files(path)
        if path.is_dir():
            _check_complete(path, self._files)
        self._declared = _shapes(path if path.is_dir() else path.parent)
        episodes = [episode for file in self._files for episode in _episodes(file)]
        if not episodes:
            raise DataError(path, expected="TFRecord files with episodes", found="none")
        self._records: list[list[Record]] = []
        self.path, steps = path, []
        for number, parts in enumerate(episodes):
            columns = self._columns(parts, number)
            if number == 0:
                self._key, frames = self._first_frames(parts)
                self.spec = spec_of(path, frames, columns["actions"].shape[-1], **named_in(parts[0].path.absolute()))
            if len(columns["actions"]):
                steps.append(checked_steps(parts[0].path, number, self.spec, columns))
                self._records.append(parts)
        super().__init__(path, self.spec, steps)

    def _place(self, episode: int) -> Path:
        return self._records[episode][0].path

    def _decode(self, episode: int) -> NDArray[np.uint8]:
        examples = [_parse(record) for record in self._records[episode]]
        return np.concatenate([self._pixels(record, example) for record, example in examples])

    def _first_frames(self, parts: list[Record]) -> tuple[str, NDArray[np.uint8]]:
        record, example = _parse(parts[0])
        key = next((name for name in PIXELS if name in example), None)
        if key is None:
            raise DataError(record.path, episode=0, expected=f"one of {', '.join(PIXELS)}", found=_names(example))
        self._key = key
        return key, self._pixels(record, example)

    def _pixels(self, record: Record, example: dict[str, Feature]) -> NDArray[np.uint8]:
        """(T, 3, H, W) of one record."""
        feature, shape = example.get(self._key), self._declared.get(self._key, ((), ""))[0]
        place = f"record {record.number}, {self._key}"
        if feature is None:
            raise DataError(record.path, key=place, expected="a feature", found=f"only {_names(example)}")
        try:
            if feature.kind == "bytes":
                frames = np.stack([_frame(bytes(value), shape) for value in feature.bytes_values()])
            else:
                frames = _integer_frames(feature, shape)
        except (ValueError, OSError, zlib.error, SyntaxError) as error:
            raise DataError(record.path, key=place, expected="frames (H, W, 3)", found=str(error)) from error
        return np.ascontiguousarray(frames.transpose(0, 3, 1, 2))  # (T, H, W, 3) -> (T, 3, H, W)

    def _columns(self, parts: list[Record], episode: int) -> dict[str, NDArray[Any]]:
        """Actions, rewards and continues of an episode, the step marked is_last left out."""
        found: dict[str, list[NDArray[Any]]] = {}
        for part in parts:
            record, example = _parse(part)
            for name in ("action", "reward", "is_last", "is_terminal"):
                key = next((key for key in (f"steps/{name}", name) if key in example), None)
                if key is None and name in ("action", "reward"):
                    raise DataError(record.path, episode=episode, key=name, expected="a feature", found=_names(example))
                if key is not None:
                    found.setdefault(name, []).append(self._numbers(record, key, example[key]))
        columns = {name: np.concatenate(values) for name, values in found.items()}
        length, actions = len(columns["reward"]), columns["action"]
        for name, values in columns.items():
            if (name != "action" and len(values) != length) or not length or len(values) % length:
                raise DataError(
                    parts[0].path,
                    episode=episode,
                    key=name,
                    expected=f"values of {length} steps",
                    found=str(len(values)),
                )
        actions = actions.reshape(length, -1)  # (T, A)
        last = bool(columns["is_last"][-1]) if "is_last" in columns else False
        terminal = columns.get("is_terminal", np.zeros(length)) != 0
        continues = 1.0 - (terminal[1:] if last else terminal)
        steps = slice(0, length - 1 if last else length)
        return {"actions": actions[steps], "rewards": columns["reward"][steps], "continues": continues}

    def _numbers(self, record: Record, key: str, feature: Feature) -> NDArray[Any]:
        """The values of a feature, flat; bytes are those of an array, compressed or not."""
        try:
            if feature.kind != "bytes":
                return feature.numbers()
            dtype = np.dtype(self._declared.get(key, ((), "float64"))[1])
            values = [bytes(value) for value in feature.bytes_values()]
            return np.concatenate([np.frombuffer(_inflated(value, dtype.itemsize), dtype) for value in values])
        except (ValueError, TypeError, zlib.error) as error:
            raise DataError(
                record.path, key=f"record {record.number}, {key}", expected="numbers", found=str(error)
            ) from error


def _parse(record: Record) -> tuple[Record, dict[str, Feature]]:
    try:
        return record, parse_example(record.read())
    except DataError:
        raise
    except ValueError as error:
        raise DataError(
            record.path, key=f"record {record.number}", expected="a tf.train.Example", found=str(error)
        ) from error


def _names(example: Mapping[str, Feature]) -> str:
    return ", ".join(sorted(example)[:12]) or "no feature"


def _episodes(file: Path) -> Iterator[list[Record]]:
    """The records of each episode of a file: one, or one for each step up to the next is_first."""
    parts: list[Record] = []
    for record in records(file):
        _, example = _parse(record)
        flag = example.get("steps/is_first", example.get("is_first"))
        reward = example.get("steps/reward", example.get("reward"))
        try:
            starts = flag is None or len(values := flag.numbers()) > 1 or bool(values.size and values[0])
            if flag is None and reward is not None and parts:
                starts = len(reward.numbers()) > 1
        except ValueError as error:
            raise DataError(file, key=f"record {record.number}", expected="numbers", found=str(error)) from error
        if starts and parts:
            yield parts
            parts = []
        parts.append(record)
    if parts:
        yield parts


def _inflated(data: bytes, itemsize: int) -> bytes:
    if data[:1] == b"\x78":
        try:
            return _inflate(data)
        except zlib.error:
            if len(data) % itemsize:
                raise
    return data


def _inflate(data: bytes) -> bytes:
    """zlib's inverse, bounded: a few bytes can claim any size."""
    stream = zlib.decompressobj()
    plain = stream.decompress(data, LARGEST_FRAME)
    if not stream.eof:
        raise zlib.error("the stream is truncated, or larger than any frame")
    return plain


def _integer_frames(feature: Feature, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """(T, H, W, 3) of frames stored as a list of integers, which says nothing about their shape."""
    values = feature.numbers()
    if feature.kind != "int" or len(shape) != 3 or shape[2] != 3 or len(values) % math.prod(shape):
        raise ValueError(f"{len(values)} {feature.kind} values of frames of shape {shape or 'not declared'}")
    if values.min(initial=0) < 0 or values.max(initial=0) > 255:
        raise ValueError("values outside 0..255")
    return values.astype(np.uint8).reshape(-1, *shape)


def _frame(data: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """(H, W, 3) of one frame; ValueError, OSError or zlib.error where it cannot be."""
    if data.startswith((b"\x89PNG", b"\xff\xd8\xff")):
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height * 3 > LARGEST_FRAME:
                raise ValueError(f"a picture of {image.width} x {image.height}")
            return np.asarray(image.convert("RGB"))
    sizes = {math.prod(shape)} if shape else set()
    if len(data) not in sizes and data[:1] == b"\x78":
        data = _inflate(data)
    if not shape:  # the earlier files declare none: they are square
        side = math.isqrt(len(data) // 3)
        shape = (side, side, 3)
    if len(shape) != 3 or shape[2] != 3 or not data or len(data) != math.prod(shape):
        raise ValueError(f"{len(data)} bytes where {shape} takes {math.prod(shape)}")
    return np.frombuffer(data, np.uint8).reshape(shape)
