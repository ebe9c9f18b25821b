"""The page of `aime watch`: what it shows of a run, that it follows it, and that it answers nobody else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tyro")

from aime.cli import main as aime
from aime.data import Episode, EpisodeSpec, EpisodeWriter
from aime.watch.curves import POINTS, curves
from aime.watch.pictures import Pictures
from aime.watch.server import Server, Watched

SMALL = ["--model.hidden-dim", "16", "--model.latent-dim", "4", "--model.encoder-channels", "8", "8", "8"]
SHORT = ["--train.batch-size", "2", "--train.sequence-length", "4", "--train.validation-batches", "1"]
QUIET = ["--no-progress", "--no-tensorboard", "--device", "cpu", "--train.log-every", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, on episodes of 12 frames."""
    directory = tmp_path_factory.mktemp("watch")
    rng = np.random.default_rng(0)
    spec = EpisodeSpec(image_shape=(3, 32, 32), action_size=1, domain="cartpole", task="swingup")
    with EpisodeWriter(directory / "episodes.h5", spec) as writer:
        for _ in range(6):
            frames = rng.integers(0, 255, (12, 3, 32, 32), dtype=np.uint8)
            actions = rng.uniform(-1, 1, (12, 1)).astype(np.float32)
            writer.append(Episode(frames, actions, np.ones(12, np.float32), np.ones(12, np.float32)))
    common = ["train", "--preset", "pillars", "--data", str(directory / "episodes.h5"), "--out", str(directory / "run")]
    assert aime([*common, *SMALL, *SHORT, *QUIET, "--steps", "2"]) == 0
    return directory / "run"


@pytest.fixture
def server(run: Path) -> Iterator[Server]:
    with Server(Watched(run, Pictures(run))) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def get(server: Server, path: str, **headers: str) -> tuple[int, str, Any]:
    """Status, text and headers of an answer."""
    request = urllib.request.Request(server.url + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def test_the_page_follows_the_log(server: Server, run: Path) -> None:
    _, text, headers = get(server, "curves")
    version = headers["ETag"]
    assert "<h3>total_loss</h3>" in text and '<div class="value">2</div>' in text
    assert get(server, f"curves?since={version}")[0] == 204
    log = run / "metrics.jsonl"
    before = log.read_text()
    with log.open("a") as file:
        file.write(json.dumps({"step": 3, "total_loss": 1.0, "<b>odd": 2.0}) + "\n" + '{"step": 4, "tot')  # torn
    status, text, _ = get(server, f"curves?since={version}")
    assert status == 200 and '<div class="value">3</div>' in text and "<b>odd" not in text
    log.write_text(before)


def test_pictures_are_those_of_the_newest_checkpoint(run: Path) -> None:
    pictures = Pictures(run)
    assert "No checkpoint yet" in pictures.html
    assert pictures.refresh() and pictures.step == 2
    assert pictures.html.count("data:image/gif") == 1 and pictures.html.count("data:image/png") == 3 * 8
    for name in ("truth", "reconstruction", "open loop from frame 5", "attention", "slots"):
        assert name in pictures.html
    assert not pictures.refresh()  # nothing is drawn twice
    lost = Pictures(run, run / "nothing.h5")
    assert lost.refresh() and "No pictures: " in lost.html and "nothing.h5" in lost.html


def test_it_listens_on_loopback_and_answers_only_for_it(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, page, received = get(server, "")
    assert status == 200 and "default-src 'none'" in received["Content-Security-Policy"]
    assert not re.search(r"https?://", page + get(server, "watch.js")[1])
    for path, headers, status in (
        ("", {"Host": f"elsewhere.example:{server.server_port}"}, 421),
        ("metrics.jsonl", {}, 404),
        ("../config.json", {}, 404),
    ):
        assert get(server, path, **headers)[0] == status


def test_lines_are_thinned_and_values_that_are_none_left_out() -> None:
    rows = [{"step": float(k), "total_loss": float(k % 7), "constant": 1.0} for k in range(5 * POINTS)]
    rows[3]["total_loss"] = float("nan")
    text = curves(rows)
    path = re.search(r'<path class="line"[^>]* d="([^"]*)"', text)
    assert path is not None and 100 < path.group(1).count("L") < POINTS
    assert "No line is logged" in curves([]) and "nan" not in text.lower()


def test_a_run_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "first").mkdir()
    assert aime(["watch", str(tmp_path / "frist")]) == 1
    assert "expected a run directory, found none; near names there: first" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_fills_the_page(server: Server, tmp_path: Path) -> None:
    server.watched.pictures.refresh()
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom"]
    found = subprocess.run(
        [*command, f"--user-data-dir={tmp_path}", server.url], capture_output=True, text=True, timeout=120, check=True
    )
    assert "live, looked at" in found.stdout, found.stderr[-2000:]
    assert found.stdout.count("<svg") > 5 and "data:image/gif" in found.stdout
