"""Layout of the project's own episode file (schema 1), shared by reader and writer.

One HDF5 file: flat arrays over all steps plus one table row per episode.

    attributes        format, schema_version, spec (JSON of EpisodeSpec), complete
    observations      (N, C, H, W) uint8, chunks of 16 frames, gzip 6
    actions           (N, A) float32             within the bounds that the spec gives
    rewards           (N,) float32
    continues         (N,) float32               in [0, 1]
    physics           (N, nq + nv) float64       where the spec has joints (float64: replays bit for bit)
    body_masks        (N, H, ceil(W / 8)) uint8  where masks are stored: numpy.packbits over W
    body_ids          (N, H, W) uint8            where the spec has bodies: 0 background, i + 1 the body spec.bodies[i]
    policy_parameters (E, P) float64             where the policy has parameters
    episodes          (E,) rows of offset, length, seed, reset_index
    splits/           train, validation, test: episode numbers

Every episode begins at a multiple of 16 steps, the chunk of the frames, so that joining files moves compressed chunks
as they are. The superblock and every index and header of the file carry the checksums of HDF5's newer format, the
arrays fletcher32: damage is an error, not another value. Files from before the checksums have the same layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from aime.data.errors import DataError
from aime.data.spec import EpisodeSpec

FORMAT = "aime-episodes"
SCHEMA_VERSION = 1
EPISODE_ROW = np.dtype([("offset", "i8"), ("length", "i8"), ("seed", "i8"), ("reset_index", "i8")])
CHUNK = 16  # frames; the usual training window, see the measurement in hdf5_writer.py
COMPRESSION = 6  # of gzip; see the measurement in hdf5_writer.py
ROW_CHUNK = 256  # steps in a chunk of the small arrays


@dataclass(frozen=True)
class StoredArray:
    """One array over all steps, as it is stored."""

    shape: tuple[int, ...]
    """of one step"""
    dtype: str
    picture: bool = False
    """One entry per pixel: chunks of 16 steps, compressed."""

    def __str__(self) -> str:
        return f"{self.dtype} (N{''.join(f', {size}' for size in self.shape)}{'' if self.shape else ','})"


def stored_arrays(spec: EpisodeSpec, *, body_masks: bool, physics: bool, body_ids: bool) -> dict[str, StoredArray]:
    """The arrays over steps that a file of this spec holds, by name."""
    channels, height, width = spec.image_shape
    arrays = {
        "observations": StoredArray((channels, height, width), "uint8", picture=True),
        "actions": StoredArray((spec.action_size,), "float32"),
        "rewards": StoredArray((), "float32"),
        "continues": StoredArray((), "float32"),
    }
    if physics:
        arrays["physics"] = StoredArray((spec.physics_size,), "float64")
    if body_masks:
        arrays["body_masks"] = StoredArray((height, -(-width // 8)), "uint8", picture=True)
    if body_ids:
        arrays["body_ids"] = StoredArray((height, width), "uint8", picture=True)
    return arrays


def create_layout(file: h5py.File, spec: EpisodeSpec, *, body_masks: bool, steps: int | None = None) -> None:
    """Make the attributes and the empty arrays of a new file; with ``steps``, of one that holds one such episode."""
    row_chunk, table_chunk = (ROW_CHUNK, ROW_CHUNK) if steps is None else (min(steps, ROW_CHUNK), 1)
    file.attrs.update({"format": FORMAT, "schema_version": SCHEMA_VERSION, "complete": False})
    write_spec(file, spec)
    arrays = stored_arrays(spec, body_masks=body_masks, physics=bool(spec.joints), body_ids=bool(spec.bodies))
    for name, array in arrays.items():
        file.create_dataset(
            name,
            (0, *array.shape),
            array.dtype,
            maxshape=(None, *array.shape),
            chunks=(CHUNK if array.picture else row_chunk, *array.shape),
            compression=COMPRESSION if array.picture else None,
            fletcher32=True,
        )
    file.create_dataset("episodes", (0,), EPISODE_ROW, maxshape=(None,), chunks=(table_chunk,), fletcher32=True)
    if size := len(spec.policy_parameters):
        chunks = (table_chunk, size)
        file.create_dataset("policy_parameters", (0, size), "f8", maxshape=(None, size), chunks=chunks, fletcher32=True)


def write_spec(file: h5py.File, spec: EpisodeSpec) -> None:
    """Store the spec, of fixed length: text of variable length lies in a heap that has no checksum."""
    file.attrs["spec"] = np.bytes_(spec.to_json().encode())


def next_offset(steps: int) -> int:
    """Where the episode after ``steps`` stored steps begins."""
    return -(-steps // CHUNK) * CHUNK


def check_steps(path: str | Path, episode: int, spec: EpisodeSpec, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Check the values of one episode, of those arrays that are given.

    Raises:
        DataError: values that are not finite, actions beyond the spec's bounds, continues outside 0..1, ids of bodies
            that the spec does not name.
    """
    for key, array in arrays.items():
        if array.dtype.kind == "f":
            # windows are float32, and so what is finite there
            _require(path, episode, key, array, np.abs(array) <= np.finfo(np.float32).max, "finite values")
    if "actions" in arrays and spec.action_minimum and spec.action_maximum:
        actions = arrays["actions"]
        # float32, as the actions are: a bound of .1 rounds up, and an action on it is within
        with np.errstate(over="ignore"):  # a bound beyond float32 is none
            low, high = (np.asarray(b, np.float32) for b in (spec.action_minimum, spec.action_maximum))
        within = (actions >= low) & (actions <= high)
        _require(path, episode, "actions", actions, within, f"values within {low.tolist()} and {high.tolist()}")
    if "continues" in arrays:
        continues = arrays["continues"]
        _require(path, episode, "continues", continues, (continues >= 0) & (continues <= 1), "values from 0 to 1")
    if "body_ids" in arrays:
        ids = arrays["body_ids"]
        _require(path, episode, "body_ids", ids, ids <= len(spec.bodies), f"values from 0 to {len(spec.bodies)}")


def _require(
    path: str | Path,
    episode: int,
    key: str,
    array: NDArray[np.generic],
    good: NDArray[np.bool_],
    expected: str,
) -> None:
    if good.all():
        return
    step = int(np.argwhere(~good)[0, 0])
    values = array[step] if array.ndim <= 2 else np.unique(array[step][~good[step]])
    raise DataError(path, episode=episode, key=key, expected=expected, found=f"{values} at step {step}")
