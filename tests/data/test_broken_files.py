"""Damaged files: read with the right values or refused with one DataError, whatever the damage; and full disks."""

from __future__ import annotations

import dataclasses
import errno
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aime.data import DataError, EpisodeWriter, open_source
from aime.data.durable import disk_errors
from aime.data.errors import DiskError
from tests.data.scripted import SPEC, scripted_episode


def examined(seed: int, every: int, seconds: float) -> tuple[int, str]:
    """How many damaged files were examined, and the outcomes in words; fails where one is neither right nor refused."""
    command = [sys.executable, "-m", "tests.data.broken_files", "--every", str(every), "--seed", str(seed)]
    run = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=seconds, cwd=Path(__file__).parents[2]
    )
    assert run.returncode == 0, run.stdout + run.stderr
    count, _, outcomes = run.stdout.splitlines()[-1].partition(" damaged files: ")
    return int(count), outcomes


def test_no_damage_ends_in_a_traceback_a_hang_or_wrong_values() -> None:
    """A slice of `tests.data.broken_files`, which runs whole in `make faults`."""
    count, outcomes = examined(0, every=8, seconds=240)
    assert count >= 60
    assert outcomes.count(" ") > 10  # both outcomes occur, in words


@pytest.mark.faults
@pytest.mark.parametrize("seed", [0, 1])
def test_all_damage(seed: int) -> None:
    count, _ = examined(seed, every=1, seconds=1800)
    assert count >= 500


@pytest.fixture
def file_size_limit() -> Iterator[None]:
    """Files of this process end at 64 KiB: the kernel refuses writes beyond, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("file_size_limit")
def test_an_episode_that_does_not_fit_spoils_none_before_it(tmp_path: Path) -> None:
    episode = scripted_episode(9, 250)
    noise = np.random.default_rng(0).integers(0, 256, episode.observations.shape, np.uint8)
    large = dataclasses.replace(episode, observations=noise)  # does not compress: 90 KB
    writer = EpisodeWriter(tmp_path / "x.h5", SPEC, body_masks=True)
    writer.append(scripted_episode(0, 20))
    writer.append(scripted_episode(1, 33))
    kept = r"episode_000002\.h5: episode 2: .*disk mounted at /.*the 2 episodes before it are in .*partial"
    with pytest.raises(DiskError, match=kept) as error:
        writer.append(large)
    assert error.value.errno == errno.EFBIG
    assert sorted(entry.name for entry in writer.partial.iterdir()) == ["episode_000000.h5", "episode_000001.h5"]
    with pytest.raises(DiskError, match=r"x\.h5: .*disk mounted at /.*its 2 episodes stay in .*partial"):
        writer.close()
    assert sorted(entry.name for entry in writer.partial.iterdir()) == ["episode_000000.h5", "episode_000001.h5"]
    source = open_source(writer.partial)
    assert source.lengths.tolist() == [20, 33]
    np.testing.assert_array_equal(source.window(1, 0, 33).actions, scripted_episode(1, 33).actions)


def test_a_full_disk_is_named_with_what_is_free(tmp_path: Path) -> None:
    with (
        pytest.raises(
            DiskError, match=r"x\.h5: .*mounted at /.*No space left on device \([\d,]+ bytes free\)"
        ) as error,
        disk_errors(tmp_path / "x.h5"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.errno == errno.ENOSPC
    assert isinstance(error.value, DataError)


def test_a_path_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"x\.h5: expected to write to the disk mounted at /.*file/x\.h5"):
        EpisodeWriter(tmp_path / "file" / "x.h5", SPEC)
    partial = tmp_path / "y.h5.partial"
    partial.mkdir()
    (partial / "mine.txt").write_text("not of a collection")
    with pytest.raises(DiskError, match=r"y\.h5\.partial: .*'mine\.txt' in it is not of a collection"):
        EpisodeWriter(tmp_path / "y.h5", SPEC, overwrite=True)
    assert (partial / "mine.txt").exists()
    assert not list(tmp_path.glob(".*"))  # no lock is left
