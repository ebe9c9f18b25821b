"""Files of other formats, written by the libraries that define them (`tests/data/formats/make.py`), read by ours."""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from aime import cli
from aime.data import DataError, open_source
from aime.data.tfrecord import crc32c, masked, parse_example, records
from aime.training import DMCVBDataset
from tests.data.formats.make import LENGTHS, LEROBOT_SIDE, SIDE, VIDEO_SCALE, actions, frames, rewards

FORMATS = Path(__file__).parent / "formats"
#: path -> (domain, task), and whether episode 1 is known to have ended by termination
FILES = {
    "dmc_vb_png": ("walker", "walk", True),
    "dmc_vb_zlib": ("walker", "walk", True),
    "dmc_vb_integers": ("walker", "walk", True),
    "steps_zlib": ("humanoid", "walk", True),
    "steps_raw": ("humanoid", "walk", True),
    "v_d4rl/cheetah_run/64px": ("cheetah", "run", True),
    "v_d4rl/cheetah_run/84px.hdf5": ("cheetah", "run", True),
    "minari": ("", "", True),
    "robomimic.hdf5": ("", "", False),
    "videos/walker_walk": ("walker", "walk", True),
    "videos_one_table": ("", "", True),
    "lerobot_video": ("", "", False),
    "lerobot_image": ("", "", False),
}
#: format -> what a pixel was multiplied with before a codec took a few levels of it
LOSSY = {"videos/walker_walk": VIDEO_SCALE, "lerobot_video": VIDEO_SCALE}


@pytest.fixture(autouse=True)
def _needs_its_extra(request: pytest.FixtureRequest) -> None:
    """Videos and Parquet tables are read by packages of extras, which the test extra contains."""
    name = getattr(request.node, "callspec", None)
    if name is not None and str(name.params.get("name", "")).startswith(("videos", "lerobot")):
        pytest.importorskip("av")
        pytest.importorskip("pyarrow")


@pytest.mark.parametrize("name", FILES)
def test_every_value_is_where_it_was_written(name: str) -> None:
    """Frame t, the action taken after it and the reward of that action: in one row, whatever the format's own order."""
    source = open_source(FORMATS / name)
    domain, task, tells_ends = FILES[name]
    assert (source.spec.domain, source.spec.task) == (domain, task)
    side = LEROBOT_SIDE if name == "lerobot_video" else SIDE
    assert source.spec.image_shape == (3, side, side)
    order = [next(i for i, length in enumerate(LENGTHS) if length == found) for found in source.lengths.tolist()]
    assert sorted(order) == list(range(len(LENGTHS)))  # TFDS shuffles episodes
    for number, episode in enumerate(order):
        length = LENGTHS[episode]
        window = source.window(number, 0, length)
        shown, scale = window.observations.transpose(0, 2, 3, 1).astype(float), LOSSY.get(name, 1)
        assert np.abs(shown - scale * frames(episode)[:-1, :1, :1]).max() <= (scale - 1) / 2.5
        np.testing.assert_array_equal(window.actions, actions(episode))
        np.testing.assert_array_equal(window.rewards, rewards(episode))
        ended = tells_ends and episode == 1
        assert window.continues.tolist() == [1.0] * (length - 1) + [0.0 if ended else 1.0]
        part = source.window(number, 1, 3)
        np.testing.assert_array_equal(part.observations, window.observations[1:4])
        np.testing.assert_array_equal(part.actions, window.actions[1:4])


def test_pictures_of_minari_are_read_and_damage_is_named(tmp_path: Path) -> None:
    """Minari stores frames of 32 x 32 and more as JPEG."""
    source = open_source(FORMATS / "minari_pictures")
    assert source.spec.image_shape == (3, 2 * SIDE, 2 * SIDE) and source.lengths.tolist() == list(LENGTHS)
    for episode, length in enumerate(LENGTHS):
        shown = source.window(episode, 0, length).observations.astype(float)  # (T, 3, H, W)
        expected = VIDEO_SCALE * frames(episode)[:-1, :1, :1, 0].astype(float)  # (T, 1, 1), of one colour
        assert np.abs(shown - expected[..., None]).max() <= 2
    place = shutil.copytree(FORMATS / "minari_pictures", tmp_path / "minari")
    with h5py.File(place / "data" / "main_data.hdf5", "r+") as file:
        rows = file["episode_1/observations"]
        row = np.array(rows[2])
        row[3:] = 0
        rows[2] = row
    with pytest.raises(DataError, match=r"main_data\.hdf5: episode 1, picture of step 2: expected the bytes of a PNG"):
        open_source(place).window(1, 0, 3)


@pytest.mark.parametrize("name", FILES)
def test_converting_keeps_every_value(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.h5"
    assert cli.main(["convert", str(FORMATS / name), str(out)]) == 0
    assert f"3 episodes, {sum(LENGTHS)} steps" in capsys.readouterr().out
    before, after = open_source(FORMATS / name), open_source(out)
    assert before.spec.to_json() == after.spec.to_json()
    assert before.lengths.tolist() == after.lengths.tolist()
    for episode, length in enumerate(before.lengths.tolist()):
        one, other = before.window(episode, 0, length), after.window(episode, 0, length)
        for key in ("observations", "actions", "rewards", "continues"):
            np.testing.assert_array_equal(getattr(one, key), getattr(other, key))


def _shards(place: Path, parts: int) -> Path:
    """V-D4RL's file cut into 0.hdf5, 1.hdf5, ... by rows, as its own script cuts them: where episodes end or not."""
    place.mkdir(parents=True)
    with h5py.File(FORMATS / "v_d4rl" / "cheetah_run" / "84px.hdf5") as file:
        for key in file:
            for number, rows in enumerate(np.array_split(file[key][:], parts)):
                with h5py.File(place / f"{number}.hdf5", "a") as shard:
                    shard.create_dataset(key, data=rows, compression="gzip")
    return place


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 12])
def test_shards_of_v_d4rl_are_the_file_that_they_were_cut_from(parts: int, tmp_path: Path) -> None:
    whole = open_source(FORMATS / "v_d4rl" / "cheetah_run" / "84px.hdf5")
    cut = open_source(_shards(tmp_path / "cheetah_run" / "84px", parts))  # 10.hdf5 comes after 9.hdf5
    assert cut.spec.to_json() == whole.spec.to_json() and cut.lengths.tolist() == whole.lengths.tolist()
    for episode, length in enumerate(whole.lengths.tolist()):
        one, other = whole.window(episode, 0, length), cut.window(episode, 0, length)
        for key in ("observations", "actions", "rewards", "continues"):
            np.testing.assert_array_equal(getattr(one, key), getattr(other, key))


def test_a_shard_that_is_missing_or_another_is_named(tmp_path: Path) -> None:
    place = _shards(tmp_path / "cheetah_run", 5)
    with h5py.File(place / "4.hdf5", "r+") as file:
        actions = file["action"][:, :1]
        del file["action"]
        file["action"] = actions
    with pytest.raises(DataError, match=r"4\.hdf5: action: expected rows of shape \(2,\), as in 0\.hdf5, found \(1,\)"):
        open_source(place)
    (place / "1.hdf5").unlink()
    (place / "4.hdf5").unlink()
    with pytest.raises(DataError, match=r"2\.hdf5: step_type: .*or the shard before it, found .*0\.hdf5 before it"):
        open_source(place)
    (place / "0.hdf5").unlink()
    with pytest.raises(DataError, match=r"2\.hdf5: step_type: expected 0 at the first row"):
        open_source(place)


def test_files_of_tfds_that_are_missing_are_named(tmp_path: Path) -> None:
    """Half a download is no small data set; one file by itself may be read."""
    place = shutil.copytree(FORMATS / "dmc_vb_png", tmp_path / "dmc_vb")
    (file,) = place.rglob("*.tfrecord-*")
    half = file.rename(file.with_name(file.name.replace("of-00001", "of-00003")))
    with pytest.raises(DataError, match=r"expected all 3 files of dmc_vb_png-train.*found 1, without .*00001-of-00003"):
        open_source(place)
    assert len(open_source(half).lengths) == len(LENGTHS)


def test_two_tasks_in_a_directory_are_not_one_data_set(tmp_path: Path) -> None:
    for task in ("walker_walk", "cheetah_run"):  # as many actions
        shutil.copytree(FORMATS / "dmc_vb_png" / "walker_walk", tmp_path / "dmc_vb" / task)
    with pytest.raises(DataError, match="expected episodes of one task.*found cheetah_run in .*, walker_walk in"):
        open_source(tmp_path / "dmc_vb")
    assert open_source(tmp_path / "dmc_vb" / "cheetah_run").spec.task == "run"


def _field(number: int, data: bytes) -> bytes:
    """One field of a protobuf message, of bytes."""
    size, digits = len(data), bytearray()
    while size >= 0x80:
        digits.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *digits, size]) + data


def _with_pixels_as(source: Path, name: str) -> bytes:
    """The TFRecord file with its frames under another name."""
    kinds, file = {"bytes": 1, "float": 2, "int": 3}, b""
    for record in records(source):
        example = parse_example(record.read())
        example[name] = example.pop("steps/observation/pixels")
        body = b"".join(
            _field(1, _field(1, key.encode()) + _field(2, _field(kinds[feature.kind], bytes(feature.data))))
            for key, feature in example.items()
        )
        body, size = _field(1, body), struct.pack("<Q", len(_field(1, body)))
        file += size + struct.pack("<I", masked(crc32c(size))) + body + struct.pack("<I", masked(crc32c(body)))
    return file


@pytest.mark.parametrize("camera", ["lowres_top_camera", "walker/follow_camera_hidden_target"])
def test_the_cameras_of_mazes_are_read(camera: str, tmp_path: Path) -> None:
    """DMC-VB's mazes have several cameras, none of them called pixels."""
    (source,) = (FORMATS / "dmc_vb_png").rglob("*.tfrecord-*")
    (tmp_path / source.name).write_bytes(_with_pixels_as(source, f"steps/observation/{camera}"))
    before, after = open_source(source), open_source(tmp_path)
    for episode, length in enumerate(before.lengths.tolist()):
        one, other = before.window(episode, 0, length), after.window(episode, 0, length)
        np.testing.assert_array_equal(one.observations, other.observations)
    (tmp_path / source.name).write_bytes(_with_pixels_as(source, "steps/observation/thermometer"))
    with pytest.raises(DataError, match="expected one of steps/observation/pixels.*found .*thermometer"):
        open_source(tmp_path)


def test_a_frame_of_another_size_is_named_with_its_file(tmp_path: Path) -> None:
    for number, side in enumerate((16, 24)):
        image, rows = np.zeros((6, side, side, 3), np.uint8), np.zeros(6)
        np.savez(tmp_path / f"ep_{number}.npz", image=image, action=np.zeros((6, 2)), reward=rows, discount=rows)
    with pytest.raises(DataError, match=r"ep_1\.npz: episode 1, observations: expected uint8 \(5, 3, 16, 16\)"):
        open_source(tmp_path).window(1, 0, 5)


def test_the_dataset_reads_dmc_vb(tmp_path: Path) -> None:
    """At its root, by the names that its directories carry."""
    shutil.copytree(FORMATS / "dmc_vb_png", tmp_path / "dmc_vb")
    dataset = DMCVBDataset(
        tmp_path / "dmc_vb", "walker", "walk", "expert", sequence_length=3, frame_stack=1, normalize_images=False
    )
    item = dataset[0]
    assert item["observations"].shape == (3, 3, SIDE, SIDE)
    assert item["observations"][:, 0, 0, 0].diff().tolist() == [1, 1]
    assert item["actions"][:, 0].diff().tolist() == [1, 1]
    with pytest.raises(FileNotFoundError, match="walker_run"):
        DMCVBDataset(tmp_path / "dmc_vb", "walker", "run")


def test_info_tells_contents_and_draws_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import imageio.v3 as imageio

    sheet = tmp_path / "sheet.png"
    assert cli.main(["data", "info", str(FORMATS / "dmc_vb_png"), "--sheet", str(sheet), "--columns", "4"]) == 0
    text = capsys.readouterr().out
    assert "TFRecord files of DMC-VB" in text and "walker walk" in text and "3 of 5 to 7 steps, 18 in all" in text
    picture = imageio.imread(sheet)
    assert picture.shape == (3 * SIDE, 4 * SIDE, 3)
    source = open_source(FORMATS / "dmc_vb_png")
    last = source.window(2, int(source.lengths[2]) - 1, 1).observations
    np.testing.assert_array_equal(picture[-SIDE:, -SIDE:], last[0].transpose(1, 2, 0))


def test_info_writes_nothing_unless_a_sheet_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(FORMATS.rglob("*"))
    assert cli.main(["data", "info", str(FORMATS / "dmc_vb_png")]) == 0
    assert not list(tmp_path.iterdir()) and sorted(FORMATS.rglob("*")) == before


def test_what_is_of_no_format_is_told_with_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(FileNotFoundError, match=r"found a directory of notes\.txt.*DMC-VB.*V-D4RL.*Minari.*robomimic"):
        open_source(tmp_path)
    shutil.copytree(FORMATS / "minari", tmp_path / "datasets" / "door" / "human-v2")
    with pytest.raises(
        FileNotFoundError, match=r"there are some below it, name one of: datasets/door/human-v2 \(Minari"
    ):
        open_source(tmp_path)
    shutil.copy(FORMATS / "robomimic.hdf5", tmp_path / "mine.h5")
    with pytest.raises(FileNotFoundError, match=r"name one of: mine\.h5 \(robomimic"):
        open_source(tmp_path)
    (tmp_path / "mine.h5").unlink()
    arrow = shutil.copytree(FORMATS / "minari", tmp_path / "arrow")
    (arrow / "data" / "main_data.hdf5").unlink()
    with pytest.raises(FileNotFoundError, match=r"arrow: expected data/main_data\.hdf5, as Minari writes it"):
        open_source(arrow)
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "one.mp4").touch()
    with pytest.raises(
        FileNotFoundError, match=r"expected a table of actions beside the videos, one\.csv or actions\.csv"
    ):
        open_source(tmp_path / "films")
    np.savez(tmp_path / "x.npz", weights=np.zeros(3))
    with pytest.raises(DataError, match=r"x\.npz: expected .*V-D4RL.*found weights"):
        open_source(tmp_path / "x.npz")


@pytest.mark.parametrize("size", [0, 1, 3, 4, 1023, 1024, 1025, 3000])
def test_the_checksum_is_that_of_a_byte_at_a_time(size: int) -> None:
    data = random.Random(size).randbytes(size)
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    assert crc32c(data) == register ^ 0xFFFFFFFF


def test_the_checksum_is_the_published_one() -> None:
    """RFC 3720, B.4."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def _one_file(name: str) -> tuple[Path, Path]:
    """(directory or file that is opened, the file in it that gets damaged), relative to the formats' directory."""
    root = FORMATS / name
    if root.is_file():
        return Path(name), Path(name)
    suffixes = (".npz", ".hdf5", ".mp4", ".mkv", ".parquet")
    data = [file for file in sorted(root.rglob("*")) if ".tfrecord" in file.name or file.suffix in suffixes]
    return Path(name), data[0].relative_to(FORMATS)


@pytest.mark.parametrize("name", FILES)
def test_damage_is_one_error_that_names_the_file_or_does_no_harm(name: str, tmp_path: Path) -> None:
    """Cut ends always, flipped bits where the format has checksums; elsewhere a flipped bit may be just a value."""
    opened, damaged = _one_file(name)
    data = (FORMATS / damaged).read_bytes()
    rng, refused = random.Random(name), 0
    for i in range(8):
        place = tmp_path / str(i)  # HDF5 gives what it holds open for a path that it has seen
        if (FORMATS / name).is_dir():
            shutil.copytree(FORMATS / name, place / name)
        target = place / damaged
        target.parent.mkdir(parents=True, exist_ok=True)
        changed = bytearray(data)
        if i % 2:
            del changed[rng.randrange(1, len(data)) :]
        else:
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        target.write_bytes(changed)
        try:
            source = open_source(place / opened)
            for episode, length in enumerate(source.lengths.tolist()):
                source.window(episode, 0, length)
        except DataError as error:
            refused += str(place / name) in str(error) and str(error).isprintable()
            continue
        # a cut between two records leaves a whole file
        assert ".tfrecord" not in damaged.name or i % 2
    assert refused >= 3
