"""Control steps and pictures per second of `aime.envs.ParallelEnvironment` against dm_control, in one run.

    python bench/env.py [--rounds 3] [--seconds 1] [--tasks cartpole/swingup walker/walk] [--out FILE]

Every contestant of a task is measured in turn, `rounds` times, so that a machine whose speed drifts treats all alike;
the median round counts. Rates are per second of wall clock and per second of CPU time of the whole process (all
threads, those of the software renderer included): on a machine that others use as well, compare the second.

States: agent steps with `action_repeat` control steps each, random actions, autoreset, counted as control steps.
    ours         ParallelEnvironment, all environments in one call
    dm_control   suite environments, one after another in one thread, as its users run it
    mj_step      mujoco.rollout on as many threads: physics alone, without reward, observation or reset
Pictures: one 64 x 64 picture after each such agent step.
    exact | high | fast     ParallelEnvironment at these qualities; exact is dm_control's picture bit for bit
    dm_control              physics.render
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from aime.envs import ParallelEnvironment
from aime.envs.extension import gl_displays, load_suite
from aime.envs.tasks import usable_cores

TASKS = ("cartpole/swingup", "reacher/easy", "walker/walk", "cheetah/run", "humanoid/walk")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Settings:
    """What a run measures, stored with its results."""

    rounds: int = 3
    seconds: float = 1.0
    num_envs: int = 32
    pixel_envs: int = 8
    threads: int = 0
    action_repeat: int = 2
    size: int = 64


@dataclass(frozen=True)
class Rate:
    """Medians over the rounds."""

    per_second: float
    per_cpu_second: float


Advance = Callable[[], int]  # does some work and returns how many steps or pictures it was


@contextlib.contextmanager
def ours(domain: str, task: str, settings: Settings, quality: str | None) -> Iterator[Advance]:
    """Steps of one batch: control steps, or pictures when a quality is given."""
    count = settings.num_envs if quality is None else settings.pixel_envs
    options: dict[str, Any] = {} if quality is None else {"pixels": (settings.size, settings.size), "quality": quality}
    with ParallelEnvironment(
        domain,
        task,
        count,
        num_threads=settings.threads,
        action_repeat=settings.action_repeat,
        seed=1,
        **options,
    ) as env:
        generator = np.random.default_rng(0)
        actions = [env.sample_actions(generator) for _ in range(64)]
        env.reset()
        turn = 0

        def advance() -> int:
            nonlocal turn
            turn += 1
            env.step(actions[turn % len(actions)])
            return count if quality else count * settings.action_repeat

        yield advance


@contextlib.contextmanager
def dm_control(domain: str, task: str, settings: Settings, pixels: bool) -> Iterator[Advance]:
    """The same work with dm_control, one environment after another."""
    count = settings.pixel_envs if pixels else settings.num_envs
    suite = load_suite()
    environments = [suite.load(domain, task, task_kwargs={"random": 1 + index}) for index in range(count)]
    specification = environments[0].action_spec()
    generator = np.random.default_rng(0)
    actions = generator.uniform(specification.minimum, specification.maximum, (64, *specification.shape))
    turn = 0
    for environment in environments:
        environment.reset()
        if pixels:  # makes its GL context, which takes longer than many pictures
            environment.physics.render(settings.size, settings.size, camera_id=0)

    def advance() -> int:
        nonlocal turn
        turn += 1
        environment = environments[turn % count]
        for _ in range(settings.action_repeat):
            environment.step(actions[turn % len(actions)])
        if not pixels:
            return settings.action_repeat
        environment.physics.render(settings.size, settings.size, camera_id=0)
        return 1

    yield advance
    for environment in environments:
        environment.physics.free()


@contextlib.contextmanager
def physics_alone(domain: str, task: str, settings: Settings) -> Iterator[Advance]:
    """The ceiling: MuJoCo's own threaded rollout of the same model from the same starts, nothing else."""
    mujoco = importlib.import_module("mujoco")
    rollout = importlib.import_module("mujoco.rollout")
    environment = load_suite().load(domain, task, task_kwargs={"random": 1})
    model = environment.physics.model.ptr
    signature = mujoco.mjtState.mjSTATE_FULLPHYSICS
    starts = np.empty((settings.num_envs, mujoco.mj_stateSize(model, signature)))
    for start in starts:
        environment.reset()
        mujoco.mj_getState(model, environment.physics.data.ptr, start, signature)
    threads = settings.threads or usable_cores()
    control_steps = 20
    generator = np.random.default_rng(0)
    substeps = environment._n_sub_steps
    actions = generator.uniform(-1, 1, (settings.num_envs, control_steps, model.nu)).repeat(substeps, axis=1)
    data = [mujoco.MjData(model) for _ in range(threads)]
    with rollout.Rollout(nthread=threads) as runner:

        def advance() -> int:
            states, _ = runner.rollout(model, data, starts, actions)
            starts[:] = states[:, -1]  # go on from there: fallen bodies have more contacts than fresh ones
            return settings.num_envs * control_steps

        yield advance


def measure(advance: Advance, seconds: float) -> tuple[float, float]:
    """Rates of one round: per second, per CPU second."""
    done, start, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        done += advance()
    return done / (time.perf_counter() - start), done / (time.process_time() - cpu)


def compare(
    contestants: Mapping[str, contextlib.AbstractContextManager[Advance]], settings: Settings
) -> dict[str, Rate]:
    """Measure all contestants in turn, round after round."""
    with contextlib.ExitStack() as stack:
        running = {name: stack.enter_context(contestant) for name, contestant in contestants.items()}
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
        for advance in running.values():
            advance()
        for _ in range(settings.rounds):
            for name, advance in running.items():
                rates[name].append(measure(advance, settings.seconds))
    return {
        name: Rate(statistics.median(wall for wall, _ in found), statistics.median(cpu for _, cpu in found))
        for name, found in rates.items()
    }


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    versions = {name: importlib.import_module(name).__version__ for name in ("numpy", "mujoco")}
    versions["dm_control"] = importlib.import_module("importlib.metadata").version("dm_control")
    return {
        "cpu": model,
        "cores": usable_cores(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "gl": gl_displays(),
        "versions": versions,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def table(title: str, results: dict[str, dict[str, Rate]], baseline: str) -> str:
    """Rates, and in brackets the CPU-time ratio to the baseline."""
    names = list(next(iter(results.values())))
    rows = [[title, *(f"{name}" for name in names)]]
    for task, rates in results.items():
        reference = rates[baseline].per_cpu_second
        cells = [f"{rate.per_second:,.0f} ({rate.per_cpu_second / reference:.1f}x)" for rate in rates.values()]
        rows.append([task, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def run(tasks: tuple[str, ...] = TASKS, settings: Settings | None = None) -> dict[str, Any]:
    """Measure `tasks` ("domain/task"), print the tables, and return everything that is stored."""
    settings = settings or Settings()
    origin = machine()
    states: dict[str, dict[str, Rate]] = {}
    pictures: dict[str, dict[str, Rate]] = {}
    for name in tasks:
        domain, task = name.split("/")
        states[name] = compare(
            {
                "ours": ours(domain, task, settings, None),
                "dm_control": dm_control(domain, task, settings, pixels=False),
                "mj_step": physics_alone(domain, task, settings),
            },
            settings,
        )
        pictures[name] = compare(
            {quality: ours(domain, task, settings, quality) for quality in ("exact", "high", "fast")}
            | {"dm_control": dm_control(domain, task, settings, pixels=True)},
            settings,
        )
    print("per second of wall clock; in brackets the ratio to dm_control per second of CPU time")
    print(table("control steps/s", states, "dm_control"))
    print(table(f"pictures/s, {settings.size} x {settings.size}", pictures, "dm_control"))
    return {
        "benchmark": "env",
        "machine": origin,
        "settings": asdict(settings),
        "control_steps": {name: {key: asdict(rate) for key, rate in rates.items()} for name, rates in states.items()},
        "pictures": {name: {key: asdict(rate) for key, rate in rates.items()} for name, rates in pictures.items()},
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line; also what `aime bench env` calls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="domain/task pairs")
    parser.add_argument("--rounds", type=int, default=Settings.rounds)
    parser.add_argument("--seconds", type=float, default=Settings.seconds, help="of one round of one contestant")
    parser.add_argument("--num-envs", type=int, default=Settings.num_envs)
    parser.add_argument("--threads", type=int, default=Settings.threads, help="0: one per core")
    parser.add_argument("--out", type=Path, default=RESULTS / "env.json")
    options = parser.parse_args(arguments)
    settings = Settings(
        rounds=options.rounds, seconds=options.seconds, num_envs=options.num_envs, threads=options.threads
    )
    results = run(tuple(options.tasks), settings)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"stored in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
