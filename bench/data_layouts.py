"""Files of the same episodes in many layouts, and a reader of windows for each: what `bench.data` measures."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aime.data import EpisodeSource, open_source
from aime.data.decoded import DecodedSource
from aime.data.layout import COMPRESSION
from aime.data.tfrecord import crc32c

OURS = f"ours: flat, chunk 16, gzip {COMPRESSION}, checksums"
#: (episode, start, length) -> frames (length, 3, H, W)
Reader = Callable[[int, int, int], NDArray[np.uint8]]
#: name -> options of h5py's create_dataset; chunks are of so many frames, 0 is one piece
FLAT: dict[str, tuple[int, dict[str, Any]]] = {
    "flat, contiguous": (0, {}),
    "flat, chunk 16, uncompressed": (16, {}),
    "flat, chunk 16, lzf": (16, {"compression": "lzf"}),
    "flat, chunk 16, gzip 1": (16, {"compression": 1}),
    "flat, chunk 16, gzip 9": (16, {"compression": 9}),
    "flat, chunk 16, gzip 4, shuffled": (16, {"compression": 4, "shuffle": True}),
    "flat, chunk 1, gzip 4": (1, {"compression": 4}),
    "flat, chunk 4, gzip 4": (4, {"compression": 4}),
    "flat, chunk 8, gzip 4": (8, {"compression": 4}),
    "flat, chunk 16, gzip 4": (16, {"compression": 4}),
    "flat, chunk 16, gzip 6": (16, {"compression": 6}),
    "flat, chunk 32, gzip 4": (32, {"compression": 4}),
    "flat, chunk 64, gzip 4": (64, {"compression": 4}),
}


def write_layouts(source: EpisodeSource, own: Path, directory: Path) -> dict[str, tuple[Reader, int]]:
    """Write all layouts; a reader and the bytes of each, by name. ``own`` is the file that the source reads."""
    episodes = [source.window(i, 0, int(length)) for i, length in enumerate(source.lengths)]
    frames = [episode.observations for episode in episodes]
    made: dict[str, tuple[Reader, int]] = {}
    for number, (name, (chunk, options)) in enumerate(FLAT.items()):
        file = directory / f"flat_{number}.h5"
        made[name] = (_flat(file, frames, chunk, options), file.stat().st_size)
    file = directory / "groups.h5"
    made["group an episode, chunk 16, gzip 4"] = (_groups(file, frames), file.stat().st_size)
    made[OURS] = (_of(open_source(own)), own.stat().st_size)
    for name, write in OTHERS.items():
        place = directory / name.split(",")[0].replace(" ", "_")
        place.mkdir()
        size = 0
        for number, episode in enumerate(episodes):
            arrays = {"action": episode.actions, "reward": episode.rewards}
            size += write(place, number, episode.observations.transpose(0, 2, 3, 1), arrays)
        made[name] = (_of(open_source(place)), size)
    return made


def _of(source: EpisodeSource) -> Reader:
    """A reader by our source; one that decodes whole episodes begins with none, as it does with more than memory."""

    def read(episode: int, start: int, length: int) -> NDArray[np.uint8]:
        if isinstance(source, DecodedSource):
            source._kept.clear()
        return source.window(episode, start, length).observations

    return read


def _flat(file: Path, frames: list[NDArray[np.uint8]], chunk: int, options: Mapping[str, Any]) -> Reader:
    shape, offsets = frames[0].shape[1:], np.cumsum([0, *map(len, frames)])
    with h5py.File(file, "w", libver="latest") as out:
        chunks = (chunk, *shape) if chunk else None
        stored = out.create_dataset("frames", (int(offsets[-1]), *shape), "u1", chunks=chunks, **options)
        for offset, part in zip(offsets.tolist(), frames, strict=False):
            stored[offset : offset + len(part)] = part
    dataset = h5py.File(file, "r")["frames"]
    return lambda episode, start, length: dataset[offsets[episode] + start : offsets[episode] + start + length]


def _groups(file: Path, frames: list[NDArray[np.uint8]]) -> Reader:
    with h5py.File(file, "w", libver="latest") as out:
        for number, part in enumerate(frames):
            out.create_dataset(f"episode_{number}/frames", data=part, chunks=(16, *part.shape[1:]), compression=4)
    opened = h5py.File(file, "r")
    return lambda episode, start, length: opened[f"episode_{episode}/frames"][start : start + length]


def _npz(place: Path, number: int, frames: NDArray[np.uint8], arrays: Mapping[str, NDArray[Any]]) -> int:
    file = place / f"{number:03d}.npz"
    np.savez_compressed(file, image=frames, **arrays)
    return file.stat().st_size


def _video(place: Path, number: int, frames: NDArray[np.uint8], arrays: Mapping[str, NDArray[Any]]) -> int:
    import av

    file, names = place / f"{number:03d}.mp4", [f"action_{i}" for i in range(arrays["action"].shape[1])]
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    rows = [",".join(map(str, [*action, reward])) for action, reward in zip(*arrays.values(), strict=True)]
    file.with_suffix(".csv").write_text("\n".join([",".join([*names, "reward"]), *rows]) + "\n")
    return file.stat().st_size


def _png(frame: NDArray[np.uint8]) -> bytes:
    image = BytesIO()
    Image.fromarray(frame).save(image, format="PNG")
    return image.getvalue()


def _rlds(pack: Callable[[NDArray[np.uint8]], bytes]) -> Callable[..., int]:
    """A TFRecord file an episode with one record a step, as DMC-VB has them."""

    def write(place: Path, number: int, frames: NDArray[np.uint8], arrays: Mapping[str, NDArray[Any]]) -> int:
        file = place / f"{number:03d}.tfrecord"
        with file.open("wb") as out:
            for t, frame in enumerate(frames):
                out.write(
                    _record(_example(pack(frame), arrays["action"][t], float(arrays["reward"][t]), t, len(frames)))
                )
        return file.stat().st_size

    return write


def _example(pixels: bytes, action: NDArray[np.float32], reward: float, step: int, count: int) -> bytes:
    """A tf.train.Example in the protobuf wire format."""
    features = {
        "steps/observation/pixels": _field(1, _field(1, pixels)),
        "steps/action": _field(2, _field(1, action.astype("<f4").tobytes())),
        "steps/reward": _field(2, _field(1, struct.pack("<f", reward))),
        "steps/is_first": _field(3, _field(1, bytes([step == 0]))),
        "steps/is_last": _field(3, _field(1, bytes([step == count - 1]))),
        "steps/is_terminal": _field(3, _field(1, b"\0")),
    }
    entries = [_field(1, _field(1, name.encode()) + _field(2, feature)) for name, feature in features.items()]
    return _field(1, b"".join(entries))


def _field(number: int, data: bytes) -> bytes:
    """A field of bytes: tag, length as a varint, bytes."""
    size, length = len(data), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


def _record(data: bytes) -> bytes:
    def masked(part: bytes) -> bytes:
        checksum = crc32c(part)
        return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


#: name -> (directory, number, frames (T, H, W, 3), arrays) -> bytes written
OTHERS: dict[str, Callable[..., int]] = {
    "npz, one an episode": _npz,
    "RLDS zlib, one record a step": _rlds(lambda frame: zlib.compress(frame.tobytes())),
    "RLDS PNG, one record a step": _rlds(_png),
    "video H.264, one an episode": _video,
}
