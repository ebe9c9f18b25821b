"""The episode file: round trip, crash safety, and an error for each way to be wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from aime.data import DataError, EpisodeSource, EpisodeSpec, EpisodeWriter, HDF5Source, formats, open_source
from aime.data.segments import SegmentSource
from tests.data.conftest import LENGTHS
from tests.data.scripted import SPEC, scripted_episode


def test_round_trip_of_everything(episode_file: Path) -> None:
    source = open_source(episode_file)
    assert isinstance(source, HDF5Source)
    assert isinstance(source, EpisodeSource)
    assert source.complete
    assert source.spec == SPEC
    assert source.lengths.tolist() == list(LENGTHS)
    for number, length in enumerate(LENGTHS):
        written = scripted_episode(number, length)
        window = source.window(number, 0, length)
        for name in ("observations", "actions", "rewards", "continues", "body_masks", "body_ids"):
            np.testing.assert_array_equal(getattr(window, name), getattr(written, name))
            assert getattr(window, name).dtype == getattr(written, name).dtype
        assert window.physics is not None
        assert window.physics.dtype == np.float32
        np.testing.assert_array_equal(source.physics(number), written.physics)  # float64, bit for bit
        assert source.rows[number]["seed"] == 1000 + number
        assert source.rows[number]["reset_index"] == number
        assert source.policy_parameters(number) == {"correlation_steps": number, "amplitude": 0.5}
    assert not episode_file.with_name("scripted.h5.partial").exists()


def test_windows_keep_observation_and_action_aligned(episode_file: Path) -> None:
    source = open_source(episode_file)
    for episode, start in ((0, 0), (1, 13), (3, 40), (4, 9)):
        window = source.window(episode, start, 7)
        t = np.arange(start, start + 7)
        assert (window.observations == t[:, None, None, None]).all()
        np.testing.assert_array_equal(window.actions, np.stack([t, np.full(7, episode)], axis=1))
        np.testing.assert_array_equal(window.rewards, t + np.float32(0.5))
        assert (window.episode, window.start) == (episode, start)


def test_masks_and_physics_are_optional(episode_file: Path) -> None:
    window = open_source(episode_file, body_masks=False, physics=False).window(0, 0, 4)
    assert window.body_masks is None
    assert window.physics is None


def test_spec_names_each_physics_entry() -> None:
    assert SPEC.qpos_names == ("slider", *["root"] * 7, "hinge")
    assert SPEC.qpos_kinds == ("slide", *["free"] * 7, "hinge")
    assert (SPEC.qpos_size, SPEC.qvel_size, SPEC.physics_size) == (9, 8, 17)
    assert EpisodeSpec.from_json(SPEC.to_json()) == SPEC


def test_spec_says_what_drew_the_frames() -> None:
    drawn = dataclasses.replace(SPEC, renderer="raycast", renderer_details="avx2", samples=4)
    assert EpisodeSpec.from_json(drawn.to_json()) == drawn
    assert drawn.drawn_by == "raycast, 4 samples a pixel"
    assert dataclasses.replace(SPEC, renderer="gl", quality="high").drawn_by == "gl, quality high"
    assert EpisodeSpec(image_shape=(3, 8, 8), action_size=1).drawn_by == ""


def test_spec_of_a_file_from_before_the_ray_caster_is_read() -> None:
    old = json.loads(dataclasses.replace(SPEC, renderer="EGL device 0 (software)", quality="high").to_json())
    del old["renderer_details"], old["samples"]
    spec = EpisodeSpec.from_json(json.dumps(old))
    assert (spec.renderer, spec.renderer_details) == ("gl", "EGL device 0 (software)")
    assert spec.drawn_by == "gl, quality high"


def test_source_pickles_by_path(episode_file: Path) -> None:
    source = pickle.loads(pickle.dumps(open_source(episode_file)))
    assert (source.window(1, 2, 3).observations[:, 0, 0, 0] == [2, 3, 4]).all()


def test_a_source_survives_a_change_of_the_working_directory(
    episode_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(episode_file.parent)
    source = open_source(episode_file.name)
    monkeypatch.chdir(tmp_path)
    assert isinstance(source, HDF5Source)
    source.close()
    for reader in (source, pickle.loads(pickle.dumps(source))):
        assert (reader.window(1, 2, 3).observations[:, 0, 0, 0] == [2, 3, 4]).all()


def test_window_outside_the_episode_is_an_index_error(episode_file: Path) -> None:
    source = open_source(episode_file)
    with pytest.raises(IndexError, match="episode 0: expected a window inside its 20 steps, found start 15, length 6"):
        source.window(0, 15, 6)
    with pytest.raises(IndexError, match=r"episode in 0\.\.4, found 5"):
        source.window(5, 0, 1)


KILLED_WRITERS = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from aime.data import EpisodeWriter, durable, hdf5_writer, joining
from tests.data.scripted import SPEC, scripted_episode

def die(*arguments, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)

def write(moment):
    writer = EpisodeWriter(os.path.join(sys.argv[1], moment + ".h5"), SPEC, body_masks=True)
    for number in range(3):
        writer.append(scripted_episode(number, 37))
    if moment == "append":  # the fourth episode is written; it has not got its name
        os.replace = die
        writer.append(scripted_episode(3, 37))
    elif moment == "join":  # the joined file is begun
        joining._copy_chunks = die
    elif moment == "remove":  # the joined file is in place; the single ones have not been removed
        hdf5_writer._remove_partial = die
    writer.close()

for moment in sys.argv[3:]:
    child = os.fork()
    if not child:
        write(moment)
    status = os.waitpid(child, 0)[1]
    assert os.WTERMSIG(status) == signal.SIGKILL, status
"""
MOMENTS = ("append", "join", "remove")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what writers left that were killed, each at the moment it is named after."""
    directory = tmp_path_factory.mktemp("killed")
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", KILLED_WRITERS, str(directory), root, *MOMENTS], check=True)
    return directory


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_9_loses_only_the_episode_in_flight(killed: Path, moment: str) -> None:
    path = killed / f"{moment}.h5"
    assert path.exists() == (moment == "remove")
    for place in (Path(f"{path}.partial"), *([path] if moment == "remove" else [])):
        source = open_source(place)
        assert isinstance(source, HDF5Source if place == path else SegmentSource)
        assert source.complete == (place == path)
        assert source.lengths.tolist() == [37, 37, 37]
        for number in range(3):
            written = scripted_episode(number, 37)
            np.testing.assert_array_equal(source.window(number, 0, 37).observations, written.observations)
            np.testing.assert_array_equal(source.window(number, 0, 37).body_masks, written.body_masks)
            np.testing.assert_array_equal(source.window(number, 0, 37).actions, written.actions)
            np.testing.assert_array_equal(source.physics(number), written.physics)
    if moment != "remove":
        with pytest.raises(FileNotFoundError, match=rf"{moment}\.h5\.partial is there"):
            open_source(path)
    with pytest.raises(FileExistsError, match="exists already"):
        EpisodeWriter(path, SPEC, body_masks=True)
    with EpisodeWriter(path, SPEC, body_masks=True, overwrite=True) as writer:
        writer.append(scripted_episode(7, 5))
    assert [entry.name for entry in killed.glob(f"*{moment}*")] == [path.name]
    assert open_source(path).lengths.tolist() == [5]


def test_a_partial_file_is_readable_while_it_is_written(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "live.h5", SPEC, body_masks=True) as writer:
        writer.append(scripted_episode(0, 21))
        assert open_source(writer.partial).lengths.tolist() == [21]
        writer.append(scripted_episode(1, 5))
    assert open_source(tmp_path / "live.h5").lengths.tolist() == [21, 5]


def test_an_exception_keeps_the_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "stopped.h5"
    with contextlib.suppress(KeyboardInterrupt), EpisodeWriter(path, SPEC, body_masks=True) as writer:
        writer.append(scripted_episode(0, 21))
        raise KeyboardInterrupt
    assert not path.exists()
    assert open_source(writer.partial).lengths.tolist() == [21]


def test_a_reader_outlives_the_collection_it_opened(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "live.h5", SPEC, body_masks=True) as writer:
        for number in range(3):
            writer.append(scripted_episode(number, 21))
        source = open_source(writer.partial)
        unmoved = open_source(writer.partial)
        source.window(1, 2, 3)  # holds a file open
        writer.append(scripted_episode(3, 5))
    assert not writer.partial.exists()
    copy = pickle.loads(pickle.dumps(source))
    for reader in (source, copy):
        assert isinstance(reader, SegmentSource)
        for number in range(3):
            window = reader.window(number, 2, 3)
            assert (window.episode, window.start) == (number, 2)
            np.testing.assert_array_equal(window.actions, scripted_episode(number, 21).actions[2:5])
            np.testing.assert_array_equal(reader.physics(number), scripted_episode(number, 21).physics)
    with pytest.raises(FileNotFoundError, match=r"collection has finished: open .*live\.h5"):
        open_source(writer.partial)
    with EpisodeWriter(tmp_path / "live.h5", SPEC, body_masks=True, overwrite=True) as writer:
        writer.append(scripted_episode(9, 21))
    with pytest.raises(DataError, match=r"live\.h5: episodes: expected the episodes of .*partial, found others"):
        unmoved.window(0, 0, 1)


def test_the_writer_refuses_to_replace_a_file(episode_file: Path) -> None:
    with pytest.raises(FileExistsError, match="exists already"):
        EpisodeWriter(episode_file, SPEC)


def test_the_writer_refuses_bad_episodes(tmp_path: Path) -> None:
    good = scripted_episode(0, 8)
    bad_actions = good.actions.copy()
    bad_actions[5, 1] = np.nan
    beyond = good.actions.copy()
    beyond[2, 0] = -0.5
    assert good.body_ids is not None
    cases: dict[str, dict[str, Any]] = {
        r"episode 0, actions: expected values within \[0.0, -2.0\] and \[255.0, 100.0\], found .* at step 2": {
            "actions": beyond
        },
        r"episode 0, continues: expected values from 0 to 1, found 5.0 at step 0": {"continues": good.continues * 5},
        r"episode 0, body_ids: expected values from 0 to 2, found \[3\] at step": {"body_ids": good.body_ids + 2},
        r"episode 0, actions: expected finite values, found \[.*nan\] at step 5": {"actions": bad_actions},
        r"episode 0, observations: expected uint8 \(8, 3, 12, 10\)": {"observations": good.observations[:, :, :8]},
        r"episode 0, rewards: expected float32 \(8,\).*found float64": {"rewards": good.rewards.astype(np.float64)},
        r"episode 0, body_masks: .* found nothing": {"body_masks": None},
        r"episode 0, policy_parameters: expected 2 values": {"policy_parameters": ()},
    }
    with EpisodeWriter(tmp_path / "x.h5", SPEC, body_masks=True) as writer:
        for message, change in cases.items():
            with pytest.raises(DataError, match=message):
                writer.append(dataclasses.replace(good, **change))
        writer.append(good)
    assert open_source(tmp_path / "x.h5").lengths.tolist() == [8]


def test_a_flipped_bit_of_any_array_is_an_error(episode_file: Path, tmp_path: Path) -> None:
    """Each stored chunk has a checksum: a value that is damaged on disk never comes out as another value."""
    with h5py.File(episode_file) as file:
        names = [name for name, item in file.items() if isinstance(item, h5py.Dataset)]
        places = {name: file[name].id.get_chunk_info(0) for name in (*names, "splits/train")}
    assert {"observations", "actions", "physics", "episodes", "body_ids"} <= set(places)
    for name, chunk in places.items():
        data = bytearray(episode_file.read_bytes())
        data[chunk.byte_offset + chunk.size // 2] ^= 4
        path = tmp_path / "flipped.h5"
        path.write_bytes(data)
        with pytest.raises(DataError, match=rf"flipped\.h5: .*{name}"):
            open_source(path).window(0, 0, 16)


def _open_other(path: Path, body_masks: bool, physics: bool) -> HDF5Source:
    return HDF5Source(path, body_masks=body_masks, physics=physics)


def test_the_format_whose_package_is_missing_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanting = formats.Format(
        "other", "a format of another house", lambda path: path.suffix == ".other", _open_other, ("no_h5",)
    )
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS[:1], wanting))
    (tmp_path / "x.other").touch()
    with pytest.raises(ImportError, match=r"x\.other: a format of another house: reading it needs no_h5, found not"):
        open_source(tmp_path / "x.other")


def _copy(source: Path, target: Path) -> Path:
    target.write_bytes(source.read_bytes())
    return target


def test_missing_truncated_and_foreign_files(episode_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"near names there: scripted\.h5"):
        open_source(episode_file.with_name("scriptd.h5"))
    with pytest.raises(FileNotFoundError, match="found an empty directory"):
        open_source(tmp_path)
    truncated = _copy(episode_file, tmp_path / "truncated.h5")
    os.truncate(truncated, truncated.stat().st_size // 2)
    with pytest.raises(DataError, match=r"truncated\.h5: expected a readable HDF5 file, found .*truncated"):
        open_source(truncated)
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(DataError, match="expected a readable HDF5 file"):
        open_source(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["pixels"] = np.zeros(3)
    with pytest.raises(DataError, match=r"other\.h5: expected a file of .*AIME's own HDF5; .*, found pixels"):
        open_source(tmp_path / "other.h5")


def test_damaged_contents_name_file_episode_and_key(episode_file: Path, tmp_path: Path) -> None:
    def damaged(name: str) -> h5py.File:
        return h5py.File(_copy(episode_file, tmp_path / name), "r+")

    with damaged("nan.h5") as file:
        offset = int(file["episodes"][1]["offset"])
        file["actions"][offset + 4, 0] = np.nan
    with pytest.raises(DataError, match=r"nan\.h5: episode 1, actions: expected finite values, found .* at step 4"):
        open_source(tmp_path / "nan.h5")
    with damaged("dtype.h5") as file:
        shape = file["observations"].shape
        del file["observations"]
        file["observations"] = np.zeros(shape, np.float32)
    with pytest.raises(DataError, match=r"observations: expected uint8 \(N, 3, 12, 10\), found float32"):
        open_source(tmp_path / "dtype.h5")
    with damaged("missing.h5") as file:
        del file["rewards"]
    with pytest.raises(DataError, match=r"rewards: expected float32 \(N,\), found nothing"):
        open_source(tmp_path / "missing.h5")
    with damaged("short.h5") as file:
        file["actions"].resize(50, axis=0)
    with pytest.raises(DataError, match=r"episode 1, episodes: expected steps 32 to 65, found arrays of 50 steps"):
        open_source(tmp_path / "short.h5")
    with damaged("schema.h5") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(DataError, match="schema_version: expected 1, found 99"):
        open_source(tmp_path / "schema.h5")
    with damaged("splits.h5") as file:
        file["splits/test"][...] = file["splits/train"][0]
    with pytest.raises(DataError, match="every episode in one split only"):
        open_source(tmp_path / "splits.h5")


def test_a_spec_of_bodies_does_not_ask_for_ids_that_the_episodes_lack(tmp_path: Path) -> None:
    """A spec is often read from another file; where its episodes come without ids, none are stored."""
    assert SPEC.bodies
    path = tmp_path / "data.h5"
    with EpisodeWriter(path, SPEC, body_masks=True) as writer:
        for number in range(2):
            writer.append(dataclasses.replace(scripted_episode(number, 6), body_ids=None))
    source = HDF5Source(path, body_masks=True)
    window = source.window(1, 0, 6)
    assert source.spec.bodies == () and window.body_ids is None and window.body_masks is not None
