"""Would torch.compile pay? A training step with its image networks compiled, and as it is, in turn on the same batch.

    OMP_NUM_THREADS=1 python -m bench.compiled_step [--device cpu] [--preset laptop] [--rounds 15]

Compiled are convolutional trunk, posterior head and decoder, each as a whole, as `--train.compile` does: what is left
is recurrence and prior, fused ops that inductor cannot look into, the balancer and the optimizer. CPU seconds of the
process on a CPU, wall seconds with the device waited for elsewhere; the least of the rounds counts. The seconds that
compiling took by the wall clock (first step less the first as it is, without what is cached of an earlier run) tell
after how many steps it would have paid. The losses of both are stored beside them. Written to
bench/results/compiled-step.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from aime.training import TrainConfig
from aime.training.compiling import make_compiled
from aime.training.precision import autocast_dtype
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig

RESULTS = Path(__file__).parent / "results" / "compiled-step.json"


def make_step(preset: str, device: torch.device, *, compiled: bool) -> Callable[[], float]:
    """One training step of a new model, always on the same batch -> its loss."""
    train = TrainConfig.preset(preset)
    torch.manual_seed(0)
    model = DPGMMVariationalRecurrentAutoencoder(WorldModelConfig.preset(preset)).to(device).train()
    model.configure_optimizer(train.learning_rate, train.weight_decay, train.balancer, **train.balancer_options)
    generator = torch.Generator(device).manual_seed(0)
    shape, size = (train.batch_size, train.sequence_length), model.config.image_shape
    frames = torch.randint(0, 256, (*shape, *size), generator=generator, dtype=torch.uint8, device=device)
    actions = torch.randn(*shape, model.config.action_size, generator=generator, device=device)
    rewards, continues = torch.zeros(shape, device=device), torch.ones(shape, device=device)
    model.initialise_from_data(frames.flatten(0, 1), generator)
    train = dataclasses.replace(train, compile=compiled, cuda_graph="off")
    networks = make_compiled(model, train, device, None)
    autocast = autocast_dtype(train, device)

    def step() -> float:
        with nullcontext() if networks is None else networks.in_place():
            metrics = model.training_step_sequence(
                frames, actions, rewards, continues, autocast=autocast, generator=generator
            )
        return float(metrics["total_loss"])  # waits for the device

    return step


def measure(preset: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """Least seconds of both steps, and those of compiling."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    losses: dict[Callable[[], float], list[float]] = {}

    def seconds(step: Callable[[], float]) -> float:
        begin = clock()
        losses.setdefault(step, []).append(step())
        return clock() - begin

    steps = {name: make_step(preset, device, compiled=name == "compiled") for name in ("as it is", "compiled")}
    first = {}
    for name, step in steps.items():
        begin = time.perf_counter()
        seconds(step)
        first[name] = time.perf_counter() - begin
    for step in steps.values():  # what is compiled anew for a second set of shapes or strides
        for _ in range(3):
            seconds(step)
    taken = {name: [seconds(step) for _ in range(1)] for name, step in steps.items()}
    for _ in range(rounds - 1):
        for name, step in steps.items():
            taken[name].append(seconds(step))
    least = {name: min(values) for name, values in taken.items()}
    gain = least["as it is"] - least["compiled"]
    compiling = first["compiled"] - first["as it is"]
    return {
        "preset": preset,
        "seconds_a_step": least,
        "ratio": least["as it is"] / least["compiled"],
        "compile_wall_seconds": compiling,
        "pays_after_steps": compiling / gain if gain > 0 else None,
        "losses_of_first_and_last_step": {name: [losses[step][0], losses[step][-1]] for name, step in steps.items()},
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = torch.device(options.device)
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # an earlier run's would shorten compiling
    row = measure(options.preset, device, options.rounds)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    record = {
        "benchmark": "compiled-step",
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "results": [row],
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(row, indent=2))
    print(f"stored in {options.out}")


if __name__ == "__main__":
    main()
