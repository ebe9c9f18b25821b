"""The scripts and the notebook of examples/ run, at tiny sizes."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aime.data import Episode, EpisodeSpec, EpisodeWriter, open_source
from aime.data.splits import splits_for

EXAMPLES = Path(__file__).parents[1] / "examples"
STEPS = 62

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten episodes of a bright square that the action moves."""
    path = tmp_path_factory.mktemp("episodes") / "data.h5"
    rng = np.random.default_rng(0)
    with EpisodeWriter(path, EpisodeSpec((3, 32, 32), 1, domain="square", task="move")) as writer:
        for _ in range(10):
            actions = rng.uniform(-1, 1, (STEPS, 1)).astype(np.float32)
            places = np.clip(12 + np.cumsum(actions[:, 0]), 0, 24).astype(int)
            frames = np.full((STEPS, 3, 32, 32), 40, np.uint8)
            for frame, place in zip(frames, places, strict=True):
                frame[:, 12:20, place : place + 8] = 220
            ones = np.ones(STEPS, np.float32)
            writer.append(Episode(frames, actions, 0 * ones, ones))
    return path


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_a_model_is_trained_and_imagines(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "train.py", data, tmp_path / "run", 2, "batch_size=2", "sequence_length=4", "rehearsals=0")
    assert (tmp_path / "run" / "weights" / "model.safetensors").exists()
    run(monkeypatch, "imagine.py", tmp_path / "run" / "weights", data, tmp_path / "rollout.png")
    with Image.open(tmp_path / "rollout.png") as picture:
        assert picture.size == (9 * 32, 2 * 32)
        truth = np.asarray(picture)[:32]
    source = open_source(data)
    window = source.window(int(splits_for(source)["test"][0]), 15, 45)
    for column in range(9):  # every fifth frame after the fifteen that were seen
        expected = window.observations[5 * column].transpose(1, 2, 0)
        np.testing.assert_array_equal(truth[:, 32 * column : 32 * column + 32], expected)


def test_a_model_of_ones_own_is_scored(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "own_model.py", data)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", "copy_last"]
    assert lines[0].partition(" ")[2] != lines[1].partition(" ")[2]


def test_cells_of_the_notebook_run() -> None:
    notebook = json.loads((EXAMPLES / "observe_and_imagine.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    names: dict[str, object] = {}
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for source in code:
        exec(compile(source, "notebook", "exec"), names)
    assert len(code) == 4


@pytest.mark.parametrize("name", ["train.py", "imagine.py", "own_model.py"])
def test_scripts_are_short(name: str) -> None:
    assert 30 <= len((EXAMPLES / name).read_text().splitlines()) <= 60
