"""Does memory stay flat? Steps, pictures, resets and new environments for minutes on end.

    python -m bench.soak [--minutes 10] [--out FILE]

Turn after turn: every task steps a batch of states; cartpole, walker and reacher draw as well, with OpenGL and with the
ray caster; then some environments begin new episodes with new seeds, a state is saved and restored, and one batch is
closed and made again. Memory is the resident set of the process, first after the warm-up (every batch has drawn, and
was made anew, twice), then after every turn.

glibc raises its threshold for memory maps to the largest block that was freed, and then cuts models of many megabytes
out of its heaps, which fragment: 14 MiB a turn on two cores that looked like a leak, and that malloc_trim gives back.
The soak holds the threshold at 1 MiB, so that what stays is what is still held.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from aime.envs import ParallelEnvironment

RESULTS = Path(__file__).parent / "results"
STATES = (
    "cartpole/swingup",
    "reacher/easy",
    "walker/walk",
    "cheetah/run",
    "humanoid/walk",
    "hopper/hop",
    "lqr/lqr_2_1",
)
DRAWN = (("cartpole/swingup", "gl"), ("walker/walk", "gl"), ("reacher/easy", "raycast"), ("walker/walk", "raycast"))
STEPS = 25  # of every batch in a turn
WARM_UP_TURNS = 2
M_MMAP_THRESHOLD = -3  # malloc.h


@dataclass
class Job:
    """One batch of the soak: how it is made, and the batch."""

    task: str
    options: dict[str, Any]
    env: ParallelEnvironment

    @classmethod
    def begin(cls, task: str, options: dict[str, Any]) -> Job:
        """Make the batch and reset it."""
        domain, name = task.split("/")
        env = ParallelEnvironment(domain, name, seed=0, action_repeat=2, time_limit=1.0, **options)
        env.reset()
        return cls(task, options, env)

    def again(self) -> Job:
        """Close the batch and make it anew."""
        self.env.close()
        return Job.begin(self.task, self.options)


def jobs() -> list[Job]:
    """Batches of states in each autoreset mode that needs no calls, and batches that draw."""
    modes = itertools.cycle(("next_step", "same_step"))
    found = [Job.begin(task, {"num_envs": 8, "autoreset": next(modes)}) for task in STATES]
    drawing = {"num_envs": 2, "pixels": (64, 64), "quality": "fast", "segmentation": True, "num_processes": 1}
    return found + [Job.begin(task, drawing | {"renderer": renderer}) for task, renderer in DRAWN]


def resident_bytes() -> int:
    """The resident set of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def turn(batches: list[Job], number: int, generator: np.random.Generator) -> int:
    """One turn over all batches; returns the control steps it made."""
    steps = 0
    for job in batches:
        env = job.env
        for _ in range(STEPS):
            env.step(env.sample_actions(generator))
        steps += STEPS * env.num_envs * env.action_repeat
        env.reset([number % env.num_envs], seed=number)
        env.set_state(env.state())
    place = number % len(batches)
    batches[place] = batches[place].again()
    return steps


def soak(minutes: float) -> dict[str, Any]:
    """Run for about so long and return what is stored."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    generator = np.random.default_rng(0)
    batches = jobs()
    warm_up = WARM_UP_TURNS * len(batches)
    for number in range(warm_up):
        turn(batches, number, generator)
    start, first, steps, turns = time.monotonic(), resident_bytes(), 0, 0
    memory = [first]
    while time.monotonic() - start < 60.0 * minutes:
        steps += turn(batches, warm_up + turns, generator)
        turns += 1
        memory.append(resident_bytes())
    for job in batches:
        job.env.close()
    # a least-squares line through all readings: noise of the allocator is not a leak, a slope is
    slope = float(np.polyfit(np.arange(len(memory)), memory, 1)[0]) if len(memory) > 2 else 0.0
    return {
        "benchmark": "soak",
        "device": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": round((time.monotonic() - start) / 60.0, 2),
        "turns": turns,
        "control_steps": steps,
        "environments_made": len(batches) + warm_up + turns,
        "first_bytes": first,
        "last_bytes": memory[-1],
        "most_bytes": max(memory),
        "bytes_per_turn": slope,
        "memory": memory[:: max(1, len(memory) // 60)],
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    options = parser.parse_args(arguments)
    found = soak(options.minutes)
    print(
        f"{found['control_steps']:,} control steps in {found['minutes']} minutes, {found['environments_made']} batches "
        f"made; memory first {found['first_bytes'] / 2**20:.1f} MiB, last {found['last_bytes'] / 2**20:.1f} MiB, "
        f"{found['bytes_per_turn'] / 2**10:+.2f} KiB a turn over {found['turns']} turns"
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(f"stored in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
