"""The ray caster against MuJoCo's GL renderer: how near the pictures are, and how fast they come.

    python -m bench.raycast [--tasks walker/walk ...] [--poses 60] [--only fidelity|speed|samples] [--out FILE]

Fidelity: for each benchmark task both renderers draw the same poses, which seeded random actions lead to.
Speed: `ParallelEnvironment` with either renderer, on one thread and on two, all four in turn, round after round; the
median round counts. Each picture follows a control step of physics, whose time counts for both renderers. Rates are per
second of wall clock and per second of CPU time of the process.
Samples: error and time of one picture for several numbers of rays a pixel.

Results of tasks that a run leaves out stay in the file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aime.envs import ParallelEnvironment
from aime.envs.raycaster import instruction_sets
from aime.envs.tasks import supported
from bench import golden
from bench.env import machine

RESULTS = Path(__file__).parent / "results"
SAMPLES = (1, 2, 4, 8)
ONE_TASK_PER_LOOK = ("cartpole/swingup", "walker/walk", "cheetah/run", "humanoid/walk")


@dataclass(frozen=True)
class Settings:
    """What a run measures, stored with its results."""

    poses: int = 60
    size: int = 64
    rounds: int = 3
    seconds: float = 0.3
    num_envs: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Rate:
    """Pictures per second, medians over the rounds."""

    per_second: float
    per_cpu_second: float


def rate(advance: Callable[[], int], seconds: float) -> tuple[float, float]:
    """Pictures per second of wall clock and of CPU time, over one round."""
    done, start, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        done += advance()
    return done / (time.perf_counter() - start), done / (time.process_time() - cpu)


def fidelity(domain: str, task: str, settings: Settings) -> dict[str, Any]:
    """Both renderers on the same poses."""
    size = (settings.size, settings.size)
    return asdict(golden.compare(golden.pairs(domain, task, settings.poses, size, settings.seed)))


def speed(domain: str, task: str, settings: Settings) -> dict[str, Any]:
    """Pictures per second of both renderers on one and two threads, one control step of physics before each."""
    with ExitStack() as stack:
        contestants: dict[str, Callable[[], int]] = {}
        for renderer in ("gl", "raycast"):
            for threads in (1, 2):
                environment = stack.enter_context(
                    ParallelEnvironment(
                        domain,
                        task,
                        settings.num_envs,
                        num_threads=threads,
                        seed=1,
                        pixels=(settings.size, settings.size),
                        renderer=renderer,
                        quality="exact",
                    )
                )
                generator = np.random.default_rng(settings.seed)
                environment.reset()
                for _ in range(20):
                    actions = environment.sample_actions(generator)
                    environment.step(actions)
                name = f"{renderer}, {threads} thread{'s' * (threads > 1)}"
                contestants[name] = _step(environment, generator)
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
        for _ in range(settings.rounds):
            for name, advance in contestants.items():
                rounds[name].append(rate(advance, settings.seconds))
    return {
        name: asdict(Rate(statistics.median(wall for wall, _ in found), statistics.median(cpu for _, cpu in found)))
        for name, found in rounds.items()
    } | {
        "ratio": {
            f"{threads}": statistics.median(
                ours[0] / theirs[0]
                for ours, theirs in zip(rounds[f"raycast, {threads}"], rounds[f"gl, {threads}"], strict=True)
            )
            for threads in ("1 thread", "2 threads")
        }
    }


def _step(environment: ParallelEnvironment, generator: np.random.Generator) -> Callable[[], int]:
    """Steps by one action, and draws."""
    actions = [environment.sample_actions(generator) for _ in range(16)]
    turn = 0

    def advance() -> int:
        nonlocal turn
        turn += 1
        environment.step(actions[turn % len(actions)])
        return environment.num_envs

    return advance


def samples(domain: str, task: str, settings: Settings) -> dict[str, Any]:
    """Error and milliseconds of a picture for each number of rays a pixel, on one thread."""
    size = (settings.size, settings.size)
    renderers: dict[int, golden.RayRenderer] = {}
    found: dict[int, list[tuple[golden.Picture, golden.Picture]]] = {count: [] for count in SAMPLES}
    times: dict[int, list[float]] = {count: [] for count in SAMPLES}
    truth: golden.GLRenderer | None = None
    for physics in golden.poses(domain, task, settings.poses, settings.seed):
        if truth is None:
            truth = golden.GLRenderer(physics, size)
            renderers = {count: golden.RayRenderer(physics, size, samples=count) for count in SAMPLES}
        picture = truth.picture()
        for count, renderer in renderers.items():
            found[count].append((picture, renderer.picture()))
            start = time.perf_counter()
            for _ in range(4):
                renderer.caster.render(physics.data.ptr)
            times[count].append((time.perf_counter() - start) / 4)
    return {
        str(count): {"milliseconds": 1e3 * statistics.median(times[count]), **asdict(golden.compare(found[count]))}
        for count in SAMPLES
    }


def report(record: dict[str, Any]) -> str:
    """The results as text."""
    lines = []
    if record["fidelity"]:
        lines.append(f"{'task':<26} {'psnr':>6} {'worst':>6} {'mean|d|':>8} {'seg %':>7} {'worst':>7} {'depth %':>9}")
        for name, row in record["fidelity"].items():
            depth = "-" if row["depth"] is None else f"{100 * row['depth']:.2f}"
            lines.append(
                f"{name:<26} {row['psnr']:6.2f} {row['psnr_worst']:6.2f} {row['mean_difference']:8.3f} "
                f"{100 * row['segmentation']:7.3f} {100 * row['segmentation_worst']:7.3f} {depth:>9}"
            )
    for name, rates in record["speed"].items():
        cells = ", ".join(f"{key} {value['per_second']:,.0f}" for key, value in rates.items() if key != "ratio")
        ratios = ", ".join(f"{value:.1f}x on {key}" for key, value in rates["ratio"].items())
        lines.append(f"{name}: pictures/s: {cells}; {ratios}")
    for name, rows in record["samples"].items():
        for count, row in rows.items():
            lines.append(f"{name}: {count:>2} samples {row['milliseconds']:.3f} ms, {row['psnr']:.2f} dB")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line; also what `aime bench raycast` calls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", help="domain/task pairs; the whole benchmark by default")
    parser.add_argument("--only", choices=("fidelity", "speed", "samples"), help="all three by default")
    parser.add_argument("--poses", type=int, default=Settings.poses, help="pictures of a task that are compared")
    parser.add_argument("--size", type=int, default=Settings.size)
    parser.add_argument("--rounds", type=int, default=Settings.rounds)
    parser.add_argument("--seconds", type=float, default=Settings.seconds, help="of one round of one contestant")
    parser.add_argument("--out", type=Path, default=RESULTS / "raycast.json")
    options = parser.parse_args(arguments)
    settings = Settings(poses=options.poses, size=options.size, rounds=options.rounds, seconds=options.seconds)
    record: dict[str, Any] = {"fidelity": {}, "speed": {}, "samples": {}}
    if options.out.exists():
        record = json.loads(options.out.read_text())
    names = options.tasks or ["/".join(pair) for pair in golden.benchmark_tasks()]
    record |= {
        "benchmark": "raycast",
        "machine": machine() | {"instruction_set": instruction_sets()[0]},
        "settings": asdict(settings),
    }
    for name in names:
        domain, task = name.split("/")
        if options.only in (None, "fidelity"):
            record["fidelity"][name] = fidelity(domain, task, settings)
        if options.only in (None, "speed") and (domain, task) in supported():
            record["speed"][name] = speed(domain, task, settings)
        if options.only in (None, "samples") and (options.tasks or name in ONE_TASK_PER_LOOK):
            record["samples"][name] = samples(domain, task, settings)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=2) + "\n")  # after each task: a run may be cut short
    print(report(record))
    print(f"stored in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
