"""What an agent from pixels spends its time on, and what fused kernels and the ray caster save of it.

    python -m bench.control_split [--rounds 8] [--out FILE]

CPU seconds of one step of the world model and of one of actor and critic, with the kernels that are chosen by
themselves and with PyTorch's own, in turn; and of playing 1,000 environment frames with random actions, frames drawn by
the ray caster, by MuJoCo's rasteriser at the quality nearest to it, and by none. One thread; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aime.control.config import ControlConfig
from aime.control.loop import collect, update_count
from aime.control.run import Run, begin
from aime.envs import ParallelEnvironment
from aime.evaluation.run_directory import device_name, installed_versions
from aime.kernels.dispatch import use_backend

RESULTS = Path(__file__).parent / "results"
RENDERERS: dict[str, dict[str, Any]] = {
    "raycast": {"pixels": (64, 64), "renderer": "raycast"},
    "gl, fast": {"pixels": (64, 64), "renderer": "gl", "quality": "fast"},
    "none": {"pixels": None},
}


def step_seconds(run: Run, generator: torch.Generator, index: int) -> tuple[float, float]:
    """CPU seconds of a step of the world model, and of actor and critic on what came of it."""
    config = run.config
    batch = run.replay.sample(config.batch_size, config.sequence_length, (config.seed, index))
    begun = time.process_time()
    learnt = run.learner.learn(batch, index, generator)
    middle = time.process_time()
    chosen = torch.randperm(len(learnt.start.latent), generator=generator)[: config.actor_critic.starts]
    run.actor_critic.learn(
        run.agent.world,
        run.agent.reward,
        run.agent.continues,
        learnt.start.rows(chosen),
        (learnt.start.features.unflatten(0, batch.rewards.shape), batch.rewards, batch.continues),
        0.0,
        generator,
    )
    return middle - begun, time.process_time() - middle


def steps(domain: str, task: str, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of both steps, by backend."""
    run = begin(ControlConfig(domain=domain, task=task, num_envs=4, time_limit=2.0))
    generator = torch.Generator().manual_seed(0)
    collect(run, 0, generator)
    run.learner.begin(run.replay)
    found: dict[str, list[tuple[float, float]]] = {"chosen": [], "torch": []}
    for index in range(-2, 2 * rounds):
        name = "torch" if index % 2 else "chosen"
        backend: AbstractContextManager[None] = use_backend("torch") if name == "torch" else nullcontext()
        with backend:
            taken = step_seconds(run, generator, index + 2)
        if index >= 0:  # the first of each is to warm up
            found[name].append(taken)
    run.close()
    return {
        name: {
            "model": statistics.median(model for model, _ in rows),
            "actor_critic": statistics.median(acting for _, acting in rows),
        }
        for name, rows in found.items()
    }


def playing(domain: str, task: str, frames: int) -> dict[str, float]:
    """CPU seconds of 1,000 environment frames by renderer, action repeat 2."""
    found = {}
    for name, options in RENDERERS.items():
        with ParallelEnvironment(domain, task, 16, action_repeat=2, seed=1, num_threads=1, **options) as environment:
            random = np.random.default_rng(0)
            low, high = environment.action_minimum, environment.action_maximum
            environment.reset()
            environment.step(random.uniform(low, high, (16, len(low))))
            begun = time.process_time()
            for _ in range(frames // 32):
                environment.step(random.uniform(low, high, (16, len(low))))
            found[name] = (time.process_time() - begun) * 1000 / (frames // 32 * 32)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", default="cartpole")
    parser.add_argument("--task", default="swingup")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--frames", type=int, default=1600, help="environment frames a renderer plays")
    parser.add_argument("--out", type=Path, default=RESULTS / "control-split.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = ControlConfig(domain=options.domain, task=options.task)
    record = {
        "benchmark": "control_split",
        "task": f"{options.domain}-{options.task}",
        "steps_per_1000_frames": update_count(config, 500_000) / 1000,
        "seconds_a_step": steps(options.domain, options.task, options.rounds),
        "playing_seconds_per_1000_frames": playing(options.domain, options.task, options.frames),
        "device": device_name(torch.device("cpu")),
        "versions": installed_versions({}),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps({name: record[name] for name in list(record)[2:5]}, indent=1))
    print(f"stored in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
