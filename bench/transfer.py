"""Does a model trained on ray-cast frames see GL frames, and the reverse? Four evaluations of two short trainings.

    python -m bench.transfer [--steps 400] [--episodes 80] [--work DIRECTORY] [--out FILE]

The same episodes (same seeds and actions, hence the same physics, which is checked) are drawn by both renderers. Two
models of one preset, with the same initial weights, windows and noise, are trained for the same number of steps, one on
either file, and each is evaluated on the held-out episodes of both. Short trainings: the figures compare the renderers,
they are not those of `make train`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aime.data import HDF5Source, open_source
from aime.data.collect import Collect
from aime.evaluation.cli import Evaluate
from aime.evaluation.run_directory import device_name, installed_versions
from aime.training.experiment import choose_device, run_experiment

RESULTS = Path(__file__).parent / "results"
Renderer = Literal["gl", "raycast"]
RENDERERS: tuple[Renderer, ...] = ("gl", "raycast")


@dataclass(frozen=True)
class Settings:
    """What is trained, stored with the results."""

    domain: str = "cartpole"
    task: str = "swingup"
    preset: str = "laptop"
    steps: int = 400
    episodes: int = 80
    episode_steps: int = 100
    seed: int = 1
    quality: Literal["exact", "high", "fast"] = "high"


def collect(settings: Settings, work: Path) -> dict[Renderer, Path]:
    """The same episodes, drawn by either renderer."""
    files: dict[Renderer, Path] = {}
    for renderer in RENDERERS:
        files[renderer] = work / f"{renderer}.h5"
        if not files[renderer].exists():
            Collect(
                domain=settings.domain,
                task=settings.task,
                episodes=settings.episodes,
                steps=settings.episode_steps,
                seed=settings.seed,
                renderer=renderer,
                quality=settings.quality,
                out=files[renderer],
            ).run()
    gl, raycast = (open_source(files[renderer]) for renderer in RENDERERS)
    assert isinstance(gl, HDF5Source)
    assert isinstance(raycast, HDF5Source)
    for episode, length in enumerate(gl.lengths.tolist()):
        np.testing.assert_array_equal(gl.physics(episode), raycast.physics(episode))
        windows = [source.window(episode, 0, length) for source in (gl, raycast)]
        np.testing.assert_array_equal(windows[0].actions, windows[1].actions)
    return files


def evaluate(run: Path, data: Path, out: Path) -> dict[str, Any]:
    """The figures of a trained model on the held-out episodes of a file."""
    Evaluate(run, data=data, out=out, report=False).run()
    record: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return record


def figures(record: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of metrics.json, each with its standard error."""
    errors = record["stderr"]
    shown = {
        f"open loop {metric}, {horizon} ahead": (
            record["open_loop"][horizon][metric]["model"],
            errors["open_loop"][horizon][metric]["model"],
        )
        for metric in ("psnr_body", "psnr")
        for horizon in ("1", "5", "15")
    }
    for group, name in (
        ("reconstruction", "psnr"),
        ("reconstruction", "psnr_body"),
        ("probe", "qpos_r2"),
        ("probe", "reward_r2"),
    ):
        shown[f"{group} {name}"] = (record[group][name], errors[group][name])
    return {name: {"mean": mean, "stderr": error} for name, (mean, error) in shown.items()}


def run(settings: Settings, work: Path) -> dict[str, Any]:
    """Collect, train twice, evaluate four times."""
    files = collect(settings, work)
    results: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for trained in RENDERERS:
        directory = work / f"trained-on-{trained}"
        start = time.perf_counter()
        run_experiment(
            files[trained],
            directory,
            preset=settings.preset,
            seed=settings.seed,
            train_overrides={"steps": settings.steps},
            overwrite=True,
            tensorboard=False,
            progress=False,
        )
        seconds[trained] = time.perf_counter() - start
        results[trained] = {
            evaluated: figures(evaluate(directory, files[evaluated], directory / f"evaluated-on-{evaluated}"))
            for evaluated in RENDERERS
        }
    return {
        "benchmark": "transfer",
        "settings": asdict(settings),
        "drawn_by": {renderer: open_source(path).spec.drawn_by for renderer, path in files.items()},
        "device": device_name(choose_device("auto")),
        "versions": installed_versions({}),
        "training_seconds": seconds,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "trained_on": results,
    }


def report(record: dict[str, Any]) -> str:
    """The results as text."""
    results = record["trained_on"]
    columns = [(trained, evaluated) for trained in RENDERERS for evaluated in RENDERERS]
    lines = [f"{'trained on -> evaluated on':<32}" + "".join(f"{t + ' -> ' + e:>22}" for t, e in columns)]
    for name in results["gl"]["gl"]:
        cells = (results[trained][evaluated][name] for trained, evaluated in columns)
        lines.append(f"{name:<32}" + "".join(f"{cell['mean']:>14.3f} ± {cell['stderr']:.3f}" for cell in cells))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=Settings.steps, help="optimizer steps of each training")
    parser.add_argument("--episodes", type=int, default=Settings.episodes)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--work", type=Path, help="where files and runs go; a temporary directory by default")
    parser.add_argument("--out", type=Path, default=RESULTS / "transfer.json")
    options = parser.parse_args(arguments)
    settings = Settings(steps=options.steps, episodes=options.episodes, seed=options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        record = run(settings, work)
    print(report(record))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"stored in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
