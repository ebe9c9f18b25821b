"""Frames of video files, decoded by PyAV (FFmpeg's libraries), which the extras ``video`` and ``lerobot`` bring."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aime.data.errors import DataError

#: suffix -> FFmpeg's demuxer: the one that the name promises and no other, since some open further files
DEMUXERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mp4", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi"}
LARGEST_SIDE = 8192  # pixels
LARGEST_EPISODE = 1 << 32  # bytes of decoded frames: a few compressed bytes can claim any number


def is_video(path: Path) -> bool:
    """Whether the name is that of a video."""
    return path.suffix.lower() in DEMUXERS


@contextlib.contextmanager
def opened(path: Path, *, episode: int) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream, and one DataError for whatever PyAV raises in the block.

    Raises:
        DataError: damaged, without a video, or larger than frames may be.
        ImportError: PyAV is not installed.
    """
    av = importlib.import_module("av")
    try:
        with av.open(str(path.absolute()), format=DEMUXERS[path.suffix.lower()]) as container:
            yield container, _pictures(path, episode, container)
    except DataError:
        raise
    except (av.FFmpegError, OSError, ValueError, LookupError, RuntimeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(path, episode=episode, key="video", expected="a readable video", found=reason) from error


def _pictures(path: Path, episode: int, container: Any) -> Any:
    """The stream of pictures of a container, whose size is not beyond reason."""
    stream = next(iter(container.streams.video), None)
    width, height = (0, 0) if stream is None else (int(stream.width or 0), int(stream.height or 0))
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
        expected = f"a stream of pictures of at most {LARGEST_SIDE} x {LARGEST_SIDE}"
        found = "none" if stream is None else f"{width} x {height}"
        raise DataError(path, episode=episode, key="video", expected=expected, found=found)
    return stream


def picture(frame: Any) -> NDArray[np.uint8]:
    """(3, H, W) of a decoded frame."""
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return pixels.transpose(2, 0, 1)


def read_all(path: Path, *, episode: int, most: int) -> NDArray[np.uint8]:
    """(T, 3, H, W): every frame of a video, in the order in which they are shown.

    Args:
        path: the file.
        episode: for messages.
        most: frames after which reading ends.

    Raises:
        DataError: it cannot be read, holds none, or frames of different sizes.
    """
    frames: list[NDArray[np.uint8]] = []
    with opened(path, episode=episode) as (container, stream):
        for frame in container.decode(stream):
            frames.append(picture(frame))
            if len(frames) >= most:
                break
            _check_size(path, episode, frames)
    return _stacked(path, episode, frames)


def read_times(path: Path, times: NDArray[np.float64], *, tolerance: float, episode: int) -> NDArray[np.uint8]:
    """(T, 3, H, W): the frame that is shown at each of some times.

    Args:
        path: the file.
        times: (T,) seconds from the beginning of the video, not decreasing.
        tolerance: seconds that a frame's own time may be away from the one asked for.
        episode: for messages.

    Raises:
        DataError: it cannot be read, or has no frame at one of the times.
    """
    frames: list[NDArray[np.uint8]] = []
    with opened(path, episode=episode) as (container, stream):
        first = float((stream.start_time or 0) * stream.time_base)
        target = int((times[0] + first - tolerance) / stream.time_base)
        container.seek(max(target, stream.start_time or 0), stream=stream, backward=True)
        for frame in container.decode(stream):
            if len(frames) == len(times):
                break
            shown = float(frame.pts * stream.time_base) - first
            if shown > times[len(frames)] + tolerance:
                break
            if shown >= times[len(frames)] - tolerance:
                frames.append(picture(frame))
                _check_size(path, episode, frames)
    if len(frames) < len(times):
        expected = f"a frame within {tolerance:.4f} s of {times[len(frames)]:.4f} s"
        raise DataError(path, episode=episode, key=f"step {len(frames)}", expected=expected, found="none")
    return _stacked(path, episode, frames)


def _check_size(path: Path, episode: int, frames: list[NDArray[np.uint8]]) -> None:
    if frames[-1].shape != frames[0].shape:
        raise DataError(
            path,
            episode=episode,
            key=f"frame {len(frames) - 1}",
            expected=f"the size of the first, {frames[0].shape}",
            found=str(frames[-1].shape),
        )
    if len(frames) * frames[0].nbytes > LARGEST_EPISODE:
        found = f"more than {len(frames)} frames"
        raise DataError(path, episode=episode, expected=f"at most {LARGEST_EPISODE} bytes of frames", found=found)


def _stacked(path: Path, episode: int, frames: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    if not frames:
        raise DataError(path, episode=episode, key="video", expected="at least one frame", found="none")
    return np.stack(frames)
