"""Joins files of episodes, of single ones or of many, into one."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from aime.data.durable import create_file, sync_directory, write_all
from aime.data.hdf5 import HDF5Source
from aime.data.layout import (
    CHUNK,
    EPISODE_ROW,
    ROW_CHUNK,
    StoredArray,
    create_layout,
    next_offset,
    stored_arrays,
    write_spec,
)
from aime.data.spec import EpisodeSpec
from aime.data.splits import split_episodes

SLACK = 1 << 16  # bytes of the joined file's headers


def file_image(spec: EpisodeSpec, *, body_masks: bool, arrays: dict[str, np.ndarray] | None = None) -> bytes:
    """A new file as bytes, made in memory: empty, or of one whole episode.

    The HDF5 library never meets a full disk: it crashes the process there (version 2.0, a segmentation fault when the
    file is closed). What it writes is handed to the system by us, or lies in blocks that are reserved beforehand.

    Args:
        spec: of the file.
        body_masks: whether it has them.
        arrays: by the names of the layout; ``episodes`` and ``policy_parameters`` among them.
    """
    with h5py.File("image", "w", driver="core", backing_store=False, libver="latest") as file:
        create_layout(file, spec, body_masks=body_masks, steps=None if arrays is None else len(arrays["actions"]))
        for name, array in (arrays or {}).items():
            file[name].resize(len(array), axis=0)
            file[name][:] = array
        file.attrs["complete"] = arrays is not None
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def join(segments: Sequence[Path], target: Path, spec: EpisodeSpec, *, body_masks: bool, split_seed: int) -> None:
    """Write one file of all episodes at ``target``, durably, in place of what is there.

    Raises:
        OSError: no room, or another error of the disk; nothing is left that was not there before.
        DataError: a segment is damaged.
    """
    descriptor, temporary = create_file(segments[0].parent / target.name)
    try:
        try:
            write_all(descriptor, file_image(spec, body_masks=body_masks))
            _reserve(descriptor, _size_at_most(segments, spec, body_masks=body_masks))
            with h5py.File(temporary, "r+", libver="latest", locking=False) as file:
                _fill(file, segments, spec, body_masks=body_masks, split_seed=split_seed)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(target.parent)


def _arrays(spec: EpisodeSpec, *, body_masks: bool) -> dict[str, StoredArray]:
    return stored_arrays(spec, body_masks=body_masks, physics=bool(spec.joints), body_ids=bool(spec.bodies))


def _size_at_most(segments: Sequence[Path], spec: EpisodeSpec, *, body_masks: bool) -> int:
    """Bytes that the joined file will not exceed.

    Every segment has headers and tables of its own, so that all together are larger, but for what is not filled: up to
    a chunk of pictures between two episodes, of the small arrays, and up to a chunk of each in the end.
    """
    small = [array for array in _arrays(spec, body_masks=body_masks).values() if not array.picture]
    step = sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in small)
    row = EPISODE_ROW.itemsize + 8 * len(spec.policy_parameters)
    stored = sum(segment.stat().st_size for segment in segments)
    return stored + len(segments) * CHUNK * step + ROW_CHUNK * (step + row) + SLACK


def _reserve(descriptor: int, size: int) -> None:
    """Take blocks of the disk for the whole file, or raise OSError now; HDF5 cuts off what it does not use."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        disk = os.fstatvfs(descriptor)
        if disk.f_bavail * disk.f_frsize < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _fill(file: h5py.File, segments: Sequence[Path], spec: EpisodeSpec, *, body_masks: bool, split_seed: int) -> None:
    arrays = _arrays(spec, body_masks=body_masks)
    episodes = steps = 0
    for path in segments:
        source = HDF5Source(path)  # checks everything but the pictures, whose checksums go over as they are
        rows, first, offset = np.array(source.rows, EPISODE_ROW), episodes, next_offset(steps)
        rows["offset"] += offset
        episodes, steps = first + len(rows), int(rows["offset"][-1] + rows["length"][-1])
        with h5py.File(path, "r") as segment:
            for name, array in arrays.items():
                file[name].resize(steps, axis=0)
                if array.picture:
                    _copy_chunks(segment[name], file[name], offset)
                else:
                    file[name][offset:steps] = segment[name][:]
            if spec.policy_parameters:
                file["policy_parameters"].resize(episodes, axis=0)
                file["policy_parameters"][first:episodes] = segment["policy_parameters"][:]
        source.close()
        file["episodes"].resize(episodes, axis=0)
        file["episodes"][first:episodes] = rows
    if episodes >= 3:
        for name, ids in split_episodes(episodes, split_seed).items():
            file.create_dataset(f"splits/{name}", data=ids, chunks=ids.shape, fletcher32=True)
        file["splits"].attrs["seed"] = split_seed
    write_spec(file, spec)
    file.attrs["complete"] = True


def _copy_chunks(source: h5py.Dataset, target: h5py.Dataset, offset: int) -> None:
    """Move compressed chunks, with their checksums, without opening them: both sides have the same filters."""
    for index in range(source.id.get_num_chunks()):
        place = source.id.get_chunk_info(index).chunk_offset
        mask, data = source.id.read_direct_chunk(place)
        target.id.write_direct_chunk((place[0] + offset, *place[1:]), data, mask)
