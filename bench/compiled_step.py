"""Would torch.compile pay? A training step with its image networks compiled, and as it is, in turn on the same batch.

    OMP_NUM_THREADS=1 python -m bench.compiled_step [--device cpu] [--preset laptop] [--rounds 15]

Compiled are convolutional trunk, posterior head, decoder and the network of the prior, each as a whole: what is
left is the recurrence, fused ops that inductor cannot look into, the balancer and the optimizer. CPU seconds of the
process on a CPU, wall seconds with the device waited for elsewhere; the least of the rounds counts. The seconds that
compiling took (first step less a later one) tell after how many steps it would have paid. Written to
bench/results/compiled-step.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from aime.training import TrainConfig
from aime.training.precision import autocast_dtype
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig

RESULTS = Path(__file__).parent / "results" / "compiled-step.json"


def compile_parts(model: DPGMMVariationalRecurrentAutoencoder) -> None:
    """Compile the networks in place."""
    encoder: Any = model.encoder
    decoder: Any = model.decoder
    network: Any = model.prior.component_net
    # each task has its own backward pass through the same graph
    torch._functorch.config.donated_buffer = False
    encoder.features = torch.compile(encoder.features)
    encoder.posterior = torch.compile(encoder.posterior)
    decoder.forward = torch.compile(decoder.forward)
    network.forward = torch.compile(network.forward)


def make_step(preset: str, device: torch.device, *, compiled: bool) -> Callable[[], None]:
    """One training step of a new model, always on the same batch."""
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
    if compiled:
        compile_parts(model)
    autocast = autocast_dtype(train, device)

    def step() -> None:
        model.training_step_sequence(frames, actions, rewards, continues, autocast=autocast, generator=generator)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def measure(preset: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """Least seconds of both steps, and those of compiling."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def seconds(step: Callable[[], None]) -> float:
        begin = clock()
        step()
        return clock() - begin

    steps = {name: make_step(preset, device, compiled=name == "compiled") for name in ("as it is", "compiled")}
    begin = time.perf_counter()
    first = {name: seconds(step) for name, step in steps.items()}
    started = time.perf_counter() - begin
    for step in steps.values():  # what is compiled anew for a second set of shapes or strides
        for _ in range(3):
            step()
    taken = {name: [seconds(step) for _ in range(1)] for name, step in steps.items()}
    for _ in range(rounds - 1):
        for name, step in steps.items():
            taken[name].append(seconds(step))
    least = {name: min(values) for name, values in taken.items()}
    gain = least["as it is"] - least["compiled"]
    compiling = first["compiled"] - least["compiled"]
    return {
        "preset": preset,
        "seconds_a_step": least,
        "ratio": least["as it is"] / least["compiled"],
        "compile_seconds": compiling,
        "first_steps_wall_seconds": started,
        "pays_after_steps": compiling / gain if gain > 0 else None,
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
