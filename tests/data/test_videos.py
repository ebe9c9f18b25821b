"""Folders of videos and LeRobot data sets: what is wrong with them is said with file and place."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aime import cli
from aime.data import DataError, open_source

pytest.importorskip("av")
pa = pytest.importorskip("pyarrow")
FORMATS = Path(__file__).parent / "formats"
INFO, ROWS, EPISODES = "meta/info.json", "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FORMATS / "videos" / "walker_walk", tmp_path / "walker_walk"))


@pytest.fixture
def lerobot(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FORMATS / "lerobot_video", tmp_path / "lerobot"))


def _all(path: Path) -> None:
    source = open_source(path)
    for episode, length in enumerate(source.lengths.tolist()):
        source.window(episode, 0, length)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("action_0,action_1\n1,2\n3\n", r"clip_1\.csv: line 3: expected 2 entries, as in the header, found 1"),
        ("action_0,action_1\n1,x\n", r"clip_1\.csv: line 2, column action_1: expected a number, found 'x'"),
        ("time,reward\n1,2\n", r"clip_1\.csv: line 1: expected columns .* action \(action_0.*found time, reward"),
        ("action_0,action_0\n1,2\n", r"clip_1\.csv: line 1: expected different names, found action_0, action_0"),
        ("action_0,action_1\n", r"clip_1\.csv: episode 1: expected at least one row below the header, found none"),
        ("action_0,action_1\n1,nan\n", r"clip_1\.csv: episode 1, actions: expected finite values"),
        ("action_0,action_1,terminated\n1,2,3\n", r"clip_1\.csv: episode 1, continues: expected values from 0 to 1"),
        ("action_0\n1\n", r"clip_1\.csv: episode 1, actions: expected numbers \(1, 2\)"),
        ("action_0,action_1\n1,2\n", r"clip_1\.mp4: episode 1, video: expected 1 or 2 frames.*found at least 3"),
        ("action_0,action_1\n" + "1,2\n" * 9, r"clip_1\.mp4: episode 1, video: expected 9 or 10 frames.*found 6"),
        (None, r"clip_1\.mp4: episode 1: expected a table clip_1\.csv or actions\.csv beside it, found clip_0\.csv"),
    ],
)
def test_a_wrong_table_is_named_with_line_and_column(table: str | None, message: str, folder: Path) -> None:
    file = folder / "clip_1.csv"
    if table is None:
        file.unlink()
    else:
        file.write_text(table)
    with pytest.raises(DataError, match=message):
        _all(folder)


def test_one_table_names_the_videos_that_are_there(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FORMATS / "videos_one_table", tmp_path / "videos"))
    table = folder / "actions.csv"
    text = table.read_text()
    table.write_text(text.replace("clip_2,0,", "clip_9,0,"))
    with pytest.raises(DataError, match=r"actions\.csv: line 14, column video: expected the name.*found 'clip_9'"):
        open_source(folder)
    table.write_text("\n".join(line for line in text.splitlines() if not line.startswith("clip_1")))
    with pytest.raises(DataError, match=r"actions\.csv: expected rows of clip_1\.mkv, found none"):
        open_source(folder)


def _rewrite(file: Path, change: Any) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([change(dict(row)) for row in pq.read_table(file).to_pylist()]), file)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            INFO,
            {"codebase_version": "v2.1"},
            r"info\.json: codebase_version: expected v3\.0.*found 'v2\.1'",
        ),
        (INFO, {"fps": 0}, r"info\.json: fps: expected a positive number, found 0"),
        (INFO, {"features": {}}, r"info\.json: features: expected a feature of dtype video or image"),
        (INFO, {"data_path": "../{x.y}"}, r"info\.json: data_path: expected 'data/chunk-"),
        (ROWS, {"action": None}, r"data/chunk-000/file-000\.parquet: action: .*missing"),
        (
            ROWS,
            {"timestamp": 0.0},
            r"file-000\.parquet: episode 0, timestamp: expected ris",
        ),
        (ROWS, {"action": [1.0]}, r"file-001\.parquet: episode 2, actions: expected numb"),
        (
            ROWS,
            {"episode_index": 0},
            r"episode 0, episode_index: expected 7 rows.*found 12",
        ),
        (EPISODES, {"length": 0}, r"episode 0, length: expected a number .*found 0"),
        (EPISODES, {"episode_index": 4}, r"meta/episodes: episode_index: expected"),
        (
            EPISODES,
            {"videos/observation.images.top/from_timestamp": 0.9},
            r"top/chunk-000/file-000\.mp4: episode 0, step 3: expected a frame within 0\.05",
        ),
        (
            EPISODES,
            {"videos/observation.images.top/file_index": 7},
            r"videos/observation\.images\.top/chunk-000/file-007\.mp4: episode 0, video: expected a readable video",
        ),
    ],
)
def test_a_wrong_lerobot_set_is_named_with_file_and_column(
    file: str, change: dict[str, Any], message: str, lerobot: Path
) -> None:
    place = lerobot / file
    if place.suffix == ".json":
        place.write_text(json.dumps(json.loads(place.read_text()) | change))
    else:
        _rewrite(place, lambda row: row | change)
    with pytest.raises(DataError, match=message):
        _all(lerobot)


@pytest.mark.parametrize("mark", ["is_depth_map", "video.is_depth_map"])
def test_depth_maps_are_no_frames(mark: str, lerobot: Path) -> None:
    """A depth camera whose name comes first is passed over; alone it is refused rather than read as grey pictures."""
    info = json.loads((lerobot / INFO).read_text())
    depth = {"dtype": "video", "shape": [64, 64, 1], "names": None, "info": {mark: True}}
    info["features"]["observation.images.depth"] = depth
    (lerobot / INFO).write_text(json.dumps(info))
    assert open_source(lerobot).window(0, 6, 1).observations.mean() == pytest.approx(9 * 6, abs=3)
    del info["features"]["observation.images.top"]
    (lerobot / INFO).write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"info\.json: features: expected a feature .* no depth map, found none"):
        open_source(lerobot)


def test_frames_are_found_in_any_order(lerobot: Path) -> None:
    """Episode 1 begins in the middle of a video, with a key frame."""
    source = open_source(lerobot)
    middle = source.window(1, 2, 2).observations
    source.window(2, 0, 1)
    again = open_source(lerobot).window(1, 2, 2).observations
    np.testing.assert_array_equal(middle, again)
    assert np.abs(middle[:, 0, 0, 0].astype(int) - 9 * np.array([12, 13])).max() <= 3


def test_an_episode_may_begin_between_two_key_frames(lerobot: Path) -> None:
    """LeRobot has a key frame every two frames: at .2 and .4 seconds, not at .3, to where episode 1 is moved."""
    column = "videos/observation.images.top/from_timestamp"
    _rewrite(lerobot / EPISODES, lambda row: row | {column: 0.3 if row["episode_index"] == 1 else row[column]})
    shown = open_source(lerobot).window(1, 0, 5).observations  # (5, 3, H, W): 4 frames of episode 0, 1 of its own
    assert np.abs(shown[:, 0, 0, 0].astype(int) - 9 * np.array([3, 4, 5, 6, 10])).max() <= 3


@pytest.mark.parametrize(("name", "extra"), [("lerobot_video", "lerobot"), ("videos/walker_walk", "video")])
def test_a_missing_package_is_named_with_its_extra(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == "av" else find(package))
    with pytest.raises(ImportError, match=rf"needs av, found not installed: pip install 'aime\[{extra}\]'"):
        open_source(FORMATS / name)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("videos/walker_walk", "a folder of videos"),
        ("lerobot_image", "a LeRobot data set"),
        ("exorl/walker/proto/buffer", "ExORL's npz episodes"),
    ],
)
def test_info_shows_them(name: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    assert cli.main(["data", "info", str(FORMATS / name), "--sheet", str(sheet)]) == 0
    shown = capsys.readouterr().out
    assert told in shown and "3 of 5 to 7 steps, 18 in all" in shown and sheet.is_file()
