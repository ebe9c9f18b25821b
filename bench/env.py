"""Control steps and pictures per second of `aime.envs.ParallelEnvironment` and its peers, in one run.

    aime bench env [TASK ...] [--rounds 3] [--seconds 0.8] [--minutes 5.5] [--out FILE]

Contestants of a task take turns, round after round, each in a process of its own, so that a machine whose speed
drifts treats all alike. A figure is the median of its rounds; a ratio is the median of the rounds' ratios. Rates are
per second of wall clock, and per second of CPU time of the contestant's processes: on a machine that others use as
well, the second is the one that compares.

Control steps: random actions, each held for `action_repeat` control steps, new episodes where one ends.
    ours             ParallelEnvironment, all environments in one call
    EnvPool          the same with EnvPool
    AsyncVectorEnv   Gymnasium's, one process for each dm_control environment
    dm_control       suite environments, one after another in one thread
    mujoco.rollout   MuJoCo's own threaded rollout: physics alone, states written down
    mj_step          mj_step called from C++ threads and nothing else: the floor
Pictures: one 64 x 64 picture after each such action. "ours, exact" is dm_control's picture bit for bit.

A peer that is not installed is named with the command that installs it. A run ends within `minutes`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aime.envs.extension import gl_displays
from aime.envs.tasks import usable_cores
from bench.environments.chart import chart
from bench.environments.contestants import KINDS
from bench.environments.processes import ContestantProcess, Measurement
from bench.environments.settings import TASKS, Settings

RESULTS = Path(__file__).parent / "results"
CHART = Path(__file__).parents[1] / "docs" / "benchmark_environments.svg"
LEAST_SECONDS = 0.15  # of a measurement; a run that cannot afford this leaves the task out
UNITS = {"control_steps": "control steps/s", "pictures": "pictures/s"}


class Clock:
    """Shares out the time that a run may take among the measurements still to come."""

    def __init__(self, minutes: float, tasks: int) -> None:
        self._end = time.monotonic() + 60.0 * minutes
        self._tasks = tasks

    def seconds(self, measurements: int, most: float, overhead: float) -> float:
        """Length of each of the measurements of the next task; 0 where there is no time left for them."""
        left = self._end - time.monotonic() - overhead
        share = (left + overhead) / self._tasks - overhead
        self._tasks -= 1
        seconds = min(most, max(LEAST_SECONDS, share / measurements))
        return seconds if seconds * measurements <= left else 0.0


def measure(
    kind: str, tasks: list[str], settings: Settings, clock: Clock
) -> tuple[dict[str, dict[str, list[Measurement]]], dict[str, str], list[str]]:
    """All rounds of all tasks; reasons of the contestants that are absent; the tasks there was no time for."""
    absent = {name: command for name, one in KINDS[kind].items() if (command := one.lacks())}
    found: dict[str, dict[str, list[Measurement]]] = {}
    left_out: list[str] = []
    overhead = 0.0
    processes = [ContestantProcess(kind, name, settings) for name in KINDS[kind] if name not in absent]
    try:
        for text in tasks:
            seconds = clock.seconds(settings.rounds * len(processes), settings.seconds, overhead)
            if not seconds:
                left_out.append(text)
                continue
            begin = time.monotonic()
            found[text] = take_turns(processes, text, settings.rounds, seconds)
            overhead = max(0.0, time.monotonic() - begin - settings.rounds * len(processes) * seconds)
            medians = {name: statistics.median(one.per_second for one in rates) for name, rates in found[text].items()}
            line = "  ".join(f"{name} {value:,.0f}" for name, value in medians.items())
            print(f"{text} {UNITS[kind]}: {line}", flush=True)
    finally:
        for process in processes:
            process.end()
    return found, absent, left_out


def take_turns(
    processes: list[ContestantProcess], text: str, rounds: int, seconds: float
) -> dict[str, list[Measurement]]:
    """The rounds of one task; a contestant that cannot run it is left out with its reason printed."""
    domain, task = text.split("/")
    running = []
    for process in processes:
        try:
            process.open(domain, task)
            running.append(process)
        except RuntimeError as error:
            print(f"{text}: {error}", flush=True)
    rates: dict[str, list[Measurement]] = {process.name: [] for process in running}
    for turn in range(rounds):
        for process in running if turn % 2 == 0 else reversed(running):
            rates[process.name].append(process.measure(seconds))
    for process in running:
        process.shut()
    return rates


def summary(rates: dict[str, list[Measurement]], own: str) -> dict[str, dict[str, Any]]:
    """Medians of each contestant, and how many times faster than it ours is, by wall clock and by CPU time."""
    rows = {}
    for name, rounds in rates.items():
        pairs = list(zip(rates[own], rounds, strict=True)) if own in rates else []
        rows[name] = {
            "per_second": statistics.median(one.per_second for one in rounds),
            "per_cpu_second": statistics.median(one.per_cpu_second for one in rounds),
            "ours_over": statistics.median(a.per_second / b.per_second for a, b in pairs) if pairs else None,
            "ours_over_cpu": statistics.median(a.per_cpu_second / b.per_cpu_second for a, b in pairs)
            if pairs
            else None,
            "rounds": [one.per_second for one in rounds],
        }
    return rows


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    versions = {}
    for name in ("numpy", "mujoco", "dm_control", "gymnasium", "envpool"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": model,
        "cores": usable_cores(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "gl": gl_displays(),
        "versions": versions,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def run(tasks: tuple[str, ...], settings: Settings, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Measure `tasks` ("domain/task") and return everything that is stored."""
    known = set(importlib.import_module("aime.envs.tasks").supported())
    tasks_run = [text for text in tasks if tuple(text.split("/")) in known]
    record: dict[str, Any] = {"benchmark": "env", "machine": machine(), "settings": asdict(settings)}
    record["unknown_tasks"] = [text for text in tasks if text not in tasks_run]
    clock = Clock(settings.minutes, len(kinds) * len(tasks_run))
    start = time.monotonic()
    for kind in kinds:
        found, absent, left_out = measure(kind, tasks_run, settings, clock)
        own = "ours" if kind == "control_steps" else "ours, exact"
        record[kind] = {text: summary(rates, own) for text, rates in found.items()}
        record.setdefault("absent", {}).update(absent)
        record.setdefault("left_out", {})[kind] = left_out
    record["run_seconds"] = round(time.monotonic() - start)
    return record


def table(title: str, results: dict[str, dict[str, Any]]) -> str:
    """Rates of the contestants, and in brackets how many times faster ours is."""
    names = list(dict.fromkeys(name for rates in results.values() for name in rates))
    rows = [[title, *names]]
    for task, rates in results.items():
        cells = []
        for name in names:
            rate = rates.get(name)
            ratio = "" if rate is None or rate["ours_over"] is None else f" ({rate['ours_over']:.2f}x)"
            cells.append("-" if rate is None else f"{rate['per_second']:,.0f}{ratio}")
        rows.append([task, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main(arguments: list[str] | None = None) -> int:
    """The command line; also what `aime bench env` calls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="domain/task pairs")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="what is measured")
    parser.add_argument("--rounds", type=int, default=Settings.rounds)
    parser.add_argument("--seconds", type=float, default=Settings.seconds, help="of one measurement, at most")
    parser.add_argument("--minutes", type=float, default=Settings.minutes, help="of the whole run, at most")
    parser.add_argument("--num-envs", type=int, default=Settings.num_envs)
    parser.add_argument("--pixel-envs", type=int, default=Settings.pixel_envs)
    parser.add_argument("--size", type=int, default=Settings.size, help="height and width of the pictures")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--out", type=Path, default=RESULTS / "env.json")
    options = parser.parse_args(arguments)
    settings = Settings(
        rounds=options.rounds,
        seconds=options.seconds,
        minutes=options.minutes,
        num_envs=options.num_envs,
        pixel_envs=options.pixel_envs,
        threads=options.threads or usable_cores(),
        size=options.size,
    )
    results = run(tuple(options.tasks), settings, tuple(options.kinds))
    print("per second of wall clock, median of the rounds; in brackets how many times faster ours (exact) is")
    for kind in options.kinds:
        print(table(UNITS[kind], results[kind]))
    for name, command in results["absent"].items():
        print(f"absent: {name} ({command})")
    if any(results["left_out"].values()) or results["unknown_tasks"]:
        print(f"not measured: no time {results['left_out']}, unknown {results['unknown_tasks']}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"stored in {options.out}")
    if options.out == RESULTS / "env.json":
        CHART.write_text(chart(results))
        print(f"drawn in {CHART}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
