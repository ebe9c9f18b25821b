"""Files with one group per episode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from aime.data import DataError, GroupHDF5Source, open_source


def _write(path: Path, lengths: tuple[int, ...] = (9, 11, 10), **changes: Any) -> Path:
    """Episodes whose frame t is filled with t and whose action t is t; ``changes`` replace arrays of episode 1."""
    with h5py.File(path, "w") as file:
        file.attrs["domain"] = "walker"
        for number, length in enumerate(lengths):
            t = np.arange(length)
            arrays: dict[str, Any] = {
                "observations": np.broadcast_to(t[:, None, None, None], (length, 8, 6, 3)).astype(np.uint8),
                "actions": np.stack([t, t], axis=1).astype(np.float64),
                "rewards": t * 0.1,
                "dones": t == length - 1,
            }
            if number == 1:
                arrays |= changes
            for key, array in arrays.items():
                if array is not None:
                    file.create_dataset(f"episode_{number}/{key}", data=array, compression="gzip")
    return path


def test_windows_are_channel_first_and_aligned(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path / "groups.h5"))
    assert isinstance(source, GroupHDF5Source)
    assert source.spec.image_shape == (3, 8, 6)
    assert source.spec.action_size == 2
    assert source.spec.domain == "walker"
    assert source.lengths.tolist() == [9, 11, 10]
    window = source.window(2, 3, 4)
    assert window.observations.shape == (4, 3, 8, 6)
    assert window.observations.flags.c_contiguous
    np.testing.assert_array_equal(window.observations[:, 0, 0, 0], [3, 4, 5, 6])
    np.testing.assert_array_equal(window.actions[:, 0], [3, 4, 5, 6])
    assert window.actions.dtype == np.float32


def test_numbers_may_have_leading_zeros(tmp_path: Path) -> None:
    path = _write(tmp_path / "groups.h5", lengths=(9, 11, 10))
    with h5py.File(path, "r+") as file:
        for number in range(3):
            file.move(f"episode_{number}", f"episode_{number:06}")
    source = open_source(path)
    assert source.lengths.tolist() == [9, 11, 10]
    assert source.window(2, 3, 4).actions[:, 0].tolist() == [3, 4, 5, 6]


def test_names_that_could_become_paths_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "groups.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["domain"] = "../../x\x1b[2J"
    with pytest.raises(DataError, match=r"groups\.h5: .*domain: expected a name of letters.*\\x1b\[2J") as error:
        open_source(path)
    assert str(error.value).isprintable()


def test_continues_lie_between_0_and_1(tmp_path: Path) -> None:
    path = _write(tmp_path / "groups.h5", terminals=np.full(11, 2))
    with pytest.raises(DataError, match="episode 1, continues: expected values from 0 to 1, found -1"):
        open_source(path)


def test_episodes_are_ordered_by_number_not_by_name(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path / "groups.h5", lengths=tuple(range(5, 17))))
    assert source.lengths.tolist() == list(range(5, 17))


def test_dones_are_time_limits_unless_told_otherwise(tmp_path: Path) -> None:
    path = _write(tmp_path / "groups.h5")
    assert (GroupHDF5Source(path).window(0, 0, 9).continues == 1).all()
    assert GroupHDF5Source(path, dones_are_terminations=True).window(0, 0, 9).continues.tolist() == [1] * 8 + [0]
    stored = _write(tmp_path / "discounts.h5", discounts=np.full(11, 0.5))
    assert (GroupHDF5Source(stored).window(1, 0, 11).continues == 0.5).all()


def test_a_final_extra_observation_is_accepted(tmp_path: Path) -> None:
    frames = np.zeros((12, 8, 6, 3), np.uint8)
    assert open_source(_write(tmp_path / "extra.h5", observations=frames)).lengths[1] == 11


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (
            r"episode 1, observations: expected uint8 \(11, 8, 6, 3\), found float32",
            {"observations": np.zeros((11, 8, 6, 3), np.float32)},
        ),
        (
            r"episode 1, observations: .* found uint8 \(11, 8, 8, 3\)",
            {"observations": np.zeros((11, 8, 8, 3), np.uint8)},
        ),
        (r"episode 1, actions: expected \(11, 2\), found \(11, 3\)", {"actions": np.zeros((11, 3))}),
        (
            r"episode 1, actions: expected finite values, found \[nan nan\] at step 0",
            {"actions": np.full((11, 2), np.nan)},
        ),
        (r"episode 1, rewards: expected \(11,\), found \(7,\)", {"rewards": np.zeros(7)}),
        (r"episode 1, rewards: expected a dataset, found only actions, dones, observations", {"rewards": None}),
    ],
)
def test_errors_name_episode_and_key(tmp_path: Path, message: str, change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"bad\.h5: " + message):
        open_source(_write(tmp_path / "bad.h5", **change))
