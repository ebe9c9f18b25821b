"""The report holds its parts, and nothing that points outside of it."""

import base64
import importlib.util
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from aime.evaluation.evaluate import evaluate_model
from aime.evaluation.protocol import EvaluationConfig
from aime.evaluation.record import RunFacts, metrics_record
from aime.evaluation.report import write_report
from aime.evaluation.report.images import (
    ERROR_CEILING,
    attention_overlay,
    encode,
    error_map,
    heat,
    side_by_side,
    slot_overlay,
    to_image,
    with_progress,
    write_video,
)
from aime.evaluation.report.svg import Series, bar_chart, label, line_chart, stacked_areas, ticks
from tests.evaluation.ring_world import RingModel, RingWorld

CONFIG = EvaluationConfig(horizons=(1, 5, 15), context=4, samples=2, starts=2, episodes=2, films=2)
VOID = {"meta", "img", "br", "line", "rect", "path", "circle"}


class Balance(HTMLParser):
    """Checks that tags close in order, and collects every attribute that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID and (not self.open or self.open[-1] != tag):
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    evaluation = evaluate_model(RingModel(noise=0.1), RingWorld(episodes=20), CONFIG)
    record = metrics_record(evaluation, RunFacts(task="ring <walk>", preset="laptop", seed=1, versions={"torch": "2"}))
    history = [{"step": float(step), "total_loss": 1000.0 / (step + 1), "lr": 1e-3} for step in range(50)]
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, evaluation, record, history)
    return path.read_text()


def test_every_part_is_there(page: str) -> None:
    parser = Balance()
    parser.feed(page)
    assert parser.headings == [
        "How far ahead it sees",
        "Open loop beside the truth",
        "Attention and slots",
        "What the state knows",
        "Mixture prior",
        "Codebook and tokens",
        "Training",
        "Protocol",
    ]
    for sentence in ("1 is calibrated", "that is not there costs here", "the actions are not used", "low is good"):
        assert sentence in page
    assert page.count("data:image/gif;base64,") == CONFIG.films
    assert page.count("data:image/png;base64,") > 40
    assert page.count("<svg") == 3 + CONFIG.films + 8 + 3 + 1 + 1  # curves, rewards, probes, mixture, codebook, loss
    assert "ring &lt;walk&gt;" in page
    assert "total_loss" in page
    assert "prefers-color-scheme: dark" in page


def test_tags_are_balanced_and_nothing_is_loaded_from_outside(page: str) -> None:
    parser = Balance()
    parser.feed(page)
    assert parser.open in ([], ["html"])
    assert parser.sources
    assert all(source.startswith("data:image/") for source in parser.sources)
    without_images = re.sub(r"data:image/[^\"]+", "", page)
    for outside in ("http:", "https:", "//cdn", "@import", "url(", "<script", "<link"):
        assert outside not in without_images
    assert "nan" not in re.sub(r"[A-Za-z]*nan[a-z]+", "", without_images).lower().split()


def test_animation_has_every_frame_of_the_clip(page: str) -> None:
    payload = re.search(r"data:image/gif;base64,([^\"]+)", page)
    assert payload is not None
    frames = iio.imread(io.BytesIO(base64.b64decode(payload[1])), plugin="pillow", extension=".gif")
    assert frames.shape[0] == 4 + 15
    # Truth, mean, single and error panels of 32 pixels with gaps of 2, and a bar of 2 below; the page enlarges them.
    assert frames.shape[1:3] == (32 + 2, 4 * 32 + 3 * 2)


def test_report_without_a_log_or_extras_says_so(tmp_path: Path) -> None:
    source = RingWorld(episodes=10, masks=False, physics=False)
    evaluation = evaluate_model(RingModel(bare=True), source, CONFIG)
    write_report(tmp_path / "report.html", evaluation, metrics_record(evaluation, RunFacts()))
    page = (tmp_path / "report.html").read_text()
    assert "No training log" in page
    assert "the data has no physics state" in page
    assert "gives no attention maps" in page


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.0, 10.0) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert ticks(-0.13, 0.22) == pytest.approx([-0.1, 0.0, 0.1, 0.2])
    assert ticks(3.0, 3.0) == [3.0]
    assert [label(value) for value in (0.0, 12_000.0, 2.5e6, 1e-4, 0.125)] == ["0", "12k", "2.5M", "1e-4", "0.125"]


def test_charts_place_points_and_break_lines_at_nan() -> None:
    chart = line_chart([Series("a", [0, 1, 2, 3], [0.0, 1.0, float("nan"), 1.0])], "t", size=(200, 100))
    path = re.search(r'class="line"[^>]* d="([^"]+)"', chart)
    assert path is not None
    assert path[1].count("M") == 2
    heights = [float(value) for value in re.findall(r"[ML][\d.]+ ([\d.]+)", path[1])]
    assert heights[0] > heights[1] == heights[2]  # up is smaller y
    assert "no data" in line_chart([Series("a", [0.0], [float("nan")])], "t")
    assert bar_chart([1.0, 2.0, 0.0], "t").count("<rect") == 3
    assert stacked_areas(np.full((5, 3), 1 / 3), "t").count('class="area"') == 3


def test_error_maps_are_dark_where_right_and_bright_where_wrong() -> None:
    truth = torch.full((3, 2, 2), 100.0)
    prediction = truth.clone()
    prediction[:, 0, 0] += ERROR_CEILING
    colors = error_map(prediction, truth).astype(int).sum(-1)
    assert colors[0, 0] == heat(np.array(1.0)).astype(int).sum()
    assert colors[1, 1] == heat(np.array(0.0)).astype(int).sum() < 10 < colors[0, 0]


def test_attention_overlay_brightens_the_peak_and_leaves_a_uniform_map_dim() -> None:
    image = np.full((8, 8, 3), 100, dtype=np.uint8)
    peak = np.zeros((8, 8))
    peak[2, 3] = 1.0
    overlaid = attention_overlay(image, peak).astype(int).sum(-1)
    assert overlaid[2, 3] > 2 * overlaid[0, 0]
    uniform = attention_overlay(image, np.full((8, 8), 1 / 64)).astype(int).sum(-1)
    assert uniform.min() == uniform.max() < 300


def test_slot_overlay_colours_pixels_by_their_slot() -> None:
    slots = np.zeros((2, 1, 2))
    slots[0, 0, 0] = slots[1, 0, 1] = 1.0
    colors = slot_overlay(np.zeros((1, 2, 3), dtype=np.uint8), slots)
    assert (colors[0, 0] != colors[0, 1]).any()


def test_progress_bar_is_grey_while_observed_and_blue_after() -> None:
    frames = with_progress(np.zeros((4, 8, 10, 3), dtype=np.uint8), context=2)
    assert frames.shape == (4, 10, 10, 3)
    assert (frames[0, 9, 0] == 150).all()
    assert frames[3, 9, 9].tolist() == [37, 99, 235]
    assert frames[0, 9, 9].tolist() == [40, 40, 40]
    assert side_by_side([np.zeros((4, 8, 10, 3), dtype=np.uint8)] * 3).shape == (4, 8, 34, 3)


def test_images_survive_encoding_and_grey_frames_get_three_channels(tmp_path: Path) -> None:
    image = to_image(torch.arange(64.0).reshape(1, 8, 8))
    assert image.shape == (8, 8, 3)
    np.testing.assert_array_equal(iio.imread(io.BytesIO(encode(image, ".png")), extension=".png"), image)
    with pytest.raises(ValueError, match=r"ends in \.gif or \.mp4, found 'film\.avi'"):
        write_video(tmp_path / "film.avi", image[None])
    write_video(tmp_path / "new" / "film.gif", np.stack([image, 255 - image]))
    assert iio.imread(tmp_path / "new" / "film.gif").shape[0] == 2


def test_the_readmes_picture_is_cut_from_the_report(page: str) -> None:
    path = Path(__file__).parents[2] / "scripts" / "rollout_picture.py"
    spec = importlib.util.spec_from_file_location("rollout_picture", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(ValueError, match="found no rssm_tuned"):
        module.draw(page)
    with pytest.raises(ValueError, match="expected a report"):
        module.draw("<html></html>")
    renamed = page.replace("<th>absolute error of the mean</th>", "<th>rssm_tuned</th>")
    columns, rows = module.strip(renamed)
    assert columns[:2] == ["last seen", "+1"]
    assert {len(frames) for frames in rows.values()} == {len(columns)}
    picture, step = module.draw(renamed), module.SIDE + module.GAP
    assert picture.size == (module.NAMES + step * len(columns) - 2, module.HEADS + 4 * step - 2)
    first = np.asarray(rows["truth"][0].resize((module.SIDE, module.SIDE)))
    box = (module.NAMES, module.HEADS, module.NAMES + module.SIDE, module.HEADS + module.SIDE)
    np.testing.assert_array_equal(np.asarray(picture.crop(box)), first)
