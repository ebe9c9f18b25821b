"""What `aime convert` costs, by format: `python -m bench.data --parts convert`.

The same episodes (frames, actions and rewards of a file of ours; ExORL, which holds states, has a walker's instead) are
written in each format by the writers of the tests' files, tests/data/formats/make.py, which use the library that
defines a format; what has none here is left out and told. Each is detected, converted, and windows are read from it and
from the file that it became, in CPU seconds of the process with pages cached.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from aime.data import EpisodeSource, open_source
from aime.data.convert import convert
from aime.data.decoded import DecodedSource
from aime.data.exorl import ExORLSource
from aime.data.formats import detect_format
from bench.data_layouts import OTHERS

MAKE = Path(__file__).parents[1] / "tests" / "data" / "formats" / "make.py"
WRITTEN: dict[str, tuple[str, ...]] = {
    "tfds": ("dmc_vb_png", "dmc_vb_zlib", "dmc_vb_integers"),
    "v_d4rl": ("v_d4rl/cheetah_run/64px", "v_d4rl/cheetah_run/84px.hdf5"),
    "robomimic": ("robomimic.hdf5",),
    "minari": ("minari",),
    "exorl": ("exorl/walker/proto/buffer",),
    "videos": ("videos/walker_walk", "videos_one_table"),
    "lerobot": ("lerobot_video", "lerobot_image"),
}
"""Writer -> what it leaves, below its directory."""
EPISODES, STEPS = 3, 300  # make.py's episodes are three


def writers(source: EpisodeSource, place: Path) -> ModuleType:
    """make.py, writing episodes of the source below a directory."""
    specification = importlib.util.spec_from_file_location("make_formats", MAKE)
    assert specification is not None
    assert specification.loader is not None
    make = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(make)
    shown = [source.window(episode, 0, STEPS + 1) for episode in range(EPISODES)]
    changes: dict[str, Any] = {
        "HERE": place,
        "LENGTHS": (STEPS,) * EPISODES,
        "SIDE": source.spec.image_shape[1],
        "VIDEO_SCALE": np.uint8(1),
        "frames": lambda episode: shown[episode].observations.transpose(0, 2, 3, 1),  # (N + 1, H, W, 3)
        "actions": lambda episode: shown[episode].actions[:STEPS],
        "rewards": lambda episode: shown[episode].rewards[:STEPS],
    }
    for name, value in changes.items():
        setattr(make, name, value)
    return make


def written(source: EpisodeSource, place: Path) -> Iterator[Path]:
    """Paths of the formats, each written when it is asked for."""
    make = writers(source, place)
    for name, paths in WRITTEN.items():
        try:
            make.WRITERS[name][1]()
        except ImportError as error:
            print(f"{name}: left out: {error}")
            continue
        yield from (place / path for path in paths)
    for name, write in OTHERS.items():
        if name.startswith("RLDS"):  # by our own writer of records
            path = place / name.split(",")[0].replace(" ", "_")
            path.mkdir()
            for number in range(EPISODES):
                arrays = {"action": make.actions(number), "reward": make.rewards(number)}
                write(path, number, make.frames(number)[:STEPS], arrays)
            yield path


def measure_convert(file: Path, place: Path, seconds_a_window: Callable[..., float], budget: float) -> list[Any]:
    """A row for each format: how it is known, CPU seconds of 1,000 frames, sizes, windows a second before and after."""
    rows = []
    for path in written(open_source(file), place):
        out = place / "converted.h5"
        begin = time.process_time()
        known = detect_format(path).name
        detected = time.process_time() - begin
        source = open_source(path)
        if isinstance(source, ExORLSource):
            source = source.drawn(size=84, camera=0)
        begin = time.process_time()
        steps = convert(source, out, overwrite=True)
        seconds = time.process_time() - begin
        row = {"written": str(path.relative_to(place)), "known_as": known, "detection_milliseconds": 1e3 * detected}
        row |= {"seconds_for_1000_frames": 1e3 * seconds / steps, "megabytes": _size(path) / 1e6}
        row |= {"converted_megabytes": out.stat().st_size / 1e6, "frames": steps}
        for name, one in (("before", source), ("after", open_source(out))):
            row[f"windows_per_second_{name}"] = 1 / seconds_a_window(*_windows(one), budget)
        rows.append(row)
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    return rows


def _windows(source: EpisodeSource) -> tuple[Callable[[int, int, int], Any], list[tuple[int, int]]]:
    """A reader, of decoded episodes one that holds none, and random windows for it."""
    random = np.random.default_rng(0)
    episodes = random.integers(0, len(source.lengths), 4096)
    windows = [(int(e), int(random.integers(0, int(source.lengths[e]) - 20))) for e in episodes]

    def read(episode: int, start: int, length: int) -> Any:
        if isinstance(source, DecodedSource):
            source._kept.clear()
        return source.window(episode, start, length).observations

    return read, windows


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*"))
