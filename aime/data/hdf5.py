"""Reader of the project's own episode file; `aime.data.layout` documents it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np
from numpy.typing import NDArray

from aime.data.checked_hdf5 import FileHandle, attribute, check_stored, has_member, member, read
from aime.data.errors import DataError
from aime.data.layout import EPISODE_ROW, FORMAT, SCHEMA_VERSION, check_steps, stored_arrays
from aime.data.source import check_window
from aime.data.spec import EpisodeSpec
from aime.data.splits import SPLITS, check_disjoint
from aime.data.window import Window

BLOCK = 8 << 20  # bytes of the physics state that are checked at once


class HDF5Source:
    """Episodes of one file.

    Actions, rewards and continues are held in memory (they are small), frames, masks and physics are read per window.
    Pickles by path, and reopens its file in a forked process.

    Args:
        path: the file.
        body_masks: read masks and ids of bodies where the file has them.
        physics: read the physics state where the file has it.

    Raises:
        DataError: naming the file, the episode, the key, what was expected and what was found.
    """

    def __init__(self, path: str | Path, *, body_masks: bool = True, physics: bool = True) -> None:
        self._handle = FileHandle(Path(path))
        self.path = self._handle.path
        file = self._handle.open()
        found = attribute(self.path, file, "format", str)
        if found != FORMAT:
            raise DataError(self.path, key="format", expected=repr(FORMAT), found=repr(found))
        version = attribute(self.path, file, "schema_version", int)
        if version != SCHEMA_VERSION:
            raise DataError(self.path, key="schema_version", expected=str(SCHEMA_VERSION), found=str(version))
        self.complete: bool = attribute(self.path, file, "complete", bool)
        self.spec = self._read_spec(file)
        self.has_body_masks = body_masks and has_member(self.path, file, "body_masks")
        self.has_body_ids = body_masks and bool(self.spec.bodies)
        for key, names in (("body_ids", self.spec.bodies), ("policy_parameters", self.spec.policy_parameters)):
            if has_member(self.path, file, key) != bool(names):
                found = "no such dataset" if names else f"a dataset {key}"
                raise DataError(self.path, key=key, expected=f"what the spec names: {names or 'none'}", found=found)
        self.has_physics = physics and has_member(self.path, file, "physics")
        self._arrays = self._checked_arrays(file)
        self.rows: NDArray[np.void] = self._checked_rows(file)
        self.lengths: NDArray[np.int64] = self.rows["length"].astype(np.int64)
        steps = int((self.rows["offset"] + self.rows["length"]).max())
        for key, array in self._arrays.items():
            check_stored(self.path, array, steps, key=key)
        self._actions: NDArray[np.float32] = read(self.path, self._arrays["actions"], slice(0, steps), key="actions")
        self._rewards: NDArray[np.float32] = read(self.path, self._arrays["rewards"], slice(0, steps), key="rewards")
        self._continues: NDArray[np.float32] = read(
            self.path, self._arrays["continues"], slice(0, steps), key="continues"
        )
        self._check_values()
        self._policy_parameters = self._read_policy_parameters(file)
        self.splits = self._read_splits(file)
        self._arrays = {}

    def window(self, episode: int, start: int, length: int) -> Window:
        """Steps ``start`` to ``start + length - 1`` of an episode."""
        check_window(self, episode, start, length)
        begin = int(self.rows["offset"][episode]) + start
        steps = slice(begin, begin + length)
        masks = ids = physics = None
        observations = self._read(episode, "observations", steps)
        if self.has_body_masks:
            packed = self._read(episode, "body_masks", steps)  # (T, H, ceil(W / 8))
            masks = np.unpackbits(packed, axis=-1, count=self.spec.image_shape[2]).astype(np.bool_)
        if self.has_body_ids:
            ids = self._read(episode, "body_ids", steps)
            check_steps(self.path, episode, self.spec, {"body_ids": ids})
        if self.has_physics:
            physics = self._read(episode, "physics", steps).astype(np.float32)
        return Window(
            observations=observations,
            actions=self._actions[steps],
            rewards=self._rewards[steps],
            continues=self._continues[steps],
            body_masks=masks,
            physics=physics,
            episode=episode,
            start=start,
            body_ids=ids,
        )

    def physics(self, episode: int) -> NDArray[np.float64]:
        """(N, nq + nv) float64 physics states of a whole episode, as recorded: enough to replay it."""
        row = self.rows[episode]
        steps = slice(int(row["offset"]), int(row["offset"] + row["length"]))
        states: NDArray[np.float64] = self._read(episode, "physics", steps)
        check_steps(self.path, episode, self.spec, {"physics": states})
        return states

    def policy_parameters(self, episode: int) -> dict[str, float]:
        """The parameters with which the policy played an episode, by name."""
        values = self._policy_parameters[episode]
        return {name: float(value) for name, value in zip(self.spec.policy_parameters, values, strict=True)}

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        self._handle.close()

    def _read(self, episode: int, key: str, steps: slice) -> NDArray[Any]:
        return read(self.path, self._handle.dataset(key, episode=episode), steps, episode=episode, key=key)

    def _read_spec(self, file: h5py.File) -> EpisodeSpec:
        text = attribute(self.path, file, "spec", str)
        try:
            return EpisodeSpec.from_json(text)
        except (ValueError, TypeError) as error:
            raise DataError(self.path, key="spec", expected="the JSON of an episode spec", found=str(error)) from error

    def _checked_arrays(self, file: h5py.File) -> dict[str, h5py.Dataset]:
        """The datasets over steps, each of the shape and type that the spec asks for."""
        wanted = stored_arrays(
            self.spec, body_masks=self.has_body_masks, physics=self.has_physics, body_ids=self.has_body_ids
        )
        datasets = {}
        for key, array in wanted.items():
            dataset = member(self.path, file, key, h5py.Dataset, expected=str(array))
            if dataset.shape[1:] != array.shape or dataset.dtype != np.dtype(array.dtype) or not dataset.shape:
                raise DataError(self.path, key=key, expected=str(array), found=f"{dataset.dtype} {dataset.shape}")
            datasets[key] = dataset
        return datasets

    def _checked_rows(self, file: h5py.File) -> NDArray[np.void]:
        """Rows of whole episodes; an unfinished file's last ones may be missing their steps, a complete one's never."""
        expected = f"a table of rows {', '.join(EPISODE_ROW.names or ())}"
        table = member(self.path, file, "episodes", h5py.Dataset, expected=expected)
        if table.ndim != 1 or table.dtype != EPISODE_ROW:
            raise DataError(self.path, key="episodes", expected=expected, found=f"{table.dtype} {table.shape}")
        check_stored(self.path, table, len(table), key="episodes")
        rows = read(self.path, table, slice(0, len(table)), key="episodes")
        steps = min(len(array) for array in self._arrays.values())
        offset, length = rows["offset"], rows["length"]
        # compared without a sum, which could overflow
        whole = (offset >= 0) & (length > 0) & (length <= steps) & (offset <= steps - np.minimum(length, steps))
        if not whole.all():
            bad = int(np.argmin(whole))
            if self.complete:
                self._refuse_row(rows, bad, steps)
            rows = rows[:bad]
        if not len(rows):
            raise DataError(self.path, key="episodes", expected="at least one whole episode", found="none")
        if (rows["reset_index"] < 0).any():
            bad = int(np.argmax(rows["reset_index"] < 0))
            found = str(rows["reset_index"][bad])
            raise DataError(self.path, episode=bad, key="episodes", expected="a reset_index >= 0", found=found)
        order = np.argsort(rows["offset"], kind="stable")
        ends = (rows["offset"] + rows["length"])[order]
        overlaps = rows["offset"][order][1:] < ends[:-1]
        if overlaps.any():
            first, second = sorted(order[int(np.argmax(overlaps)) :][:2].tolist())
            expected = f"steps that do not overlap those of episode {first}"
            found = f"{rows['offset'][second]} to {rows['offset'][second] + rows['length'][second]}"
            raise DataError(self.path, episode=second, key="episodes", expected=expected, found=found)
        return rows

    def _refuse_row(self, rows: NDArray[np.void], episode: int, steps: int) -> NoReturn:
        offset, length = int(rows["offset"][episode]), int(rows["length"][episode])
        expected, found = f"steps {offset} to {offset + length}", f"arrays of {steps} steps"
        if offset < 0 or length < 1:
            expected, found = "an offset >= 0 and a length >= 1", f"{offset} and {length}"
        raise DataError(self.path, episode=episode, key="episodes", expected=expected, found=found)

    def _check_values(self) -> None:
        held = {"actions": self._actions, "rewards": self._rewards, "continues": self._continues}
        for episode, row in enumerate(self.rows):
            steps = slice(int(row["offset"]), int(row["offset"] + row["length"]))
            check_steps(self.path, episode, self.spec, {key: array[steps] for key, array in held.items()})
            if self.has_physics:
                block = max(1, BLOCK // max(1, 8 * self.spec.physics_size))
                for begin in range(steps.start, steps.stop, block):
                    part = slice(begin, min(begin + block, steps.stop))
                    values = read(self.path, self._arrays["physics"], part, episode=episode, key="physics")
                    check_steps(self.path, episode, self.spec, {"physics": values})

    def _read_policy_parameters(self, file: h5py.File) -> NDArray[np.float64]:
        """(E, P), P 0 where the policy has none."""
        count, size, key = len(self.rows), len(self.spec.policy_parameters), "policy_parameters"
        if not size:
            return np.zeros((count, 0))
        expected = f"float64 ({count}, {size})"
        dataset = member(self.path, file, key, h5py.Dataset, expected=expected)
        if dataset.ndim != 2 or dataset.shape[1] != size or dataset.dtype != np.float64:
            raise DataError(self.path, key=key, expected=expected, found=f"{dataset.dtype} {dataset.shape}")
        check_stored(self.path, dataset, count, key=key)
        values: NDArray[np.float64] = read(self.path, dataset, slice(0, count), key=key)
        if not np.isfinite(values).all():
            episode = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise DataError(self.path, episode=episode, key=key, expected="finite values", found=str(values[episode]))
        return values

    def _read_splits(self, file: h5py.File) -> dict[str, NDArray[np.int64]] | None:
        if not has_member(self.path, file, "splits"):
            return None
        group = member(self.path, file, "splits", h5py.Group, expected="a group of episode numbers")
        count, splits = len(self.rows), {}
        for name in SPLITS:
            key, expected = f"splits/{name}", f"at most {count} episode numbers below {count}"
            dataset = member(self.path, group, name, h5py.Dataset, expected=expected)
            if dataset.ndim != 1 or dataset.dtype.kind not in "iu" or len(dataset) > count:
                raise DataError(self.path, key=key, expected=expected, found=f"{dataset.dtype} {dataset.shape}")
            check_stored(self.path, dataset, len(dataset), key=key)
            ids = read(self.path, dataset, slice(0, len(dataset)), key=key)
            if len(ids) and (ids.min() < 0 or ids.max() >= count):
                raise DataError(self.path, key=key, expected=expected, found=f"{ids.min()} to {ids.max()}")
            splits[name] = ids.astype(np.int64)
        check_disjoint(self.path, splits)
        if (divided := sum(map(len, splits.values()))) != count:
            raise DataError(self.path, key="splits", expected=f"every episode of {count} in one", found=f"{divided}")
        return splits
