"""Share of a training step spent in each kernel, on PyTorch's own kernels and on the chosen backends.

    python -m bench.step_profile [--presets laptop tier1] [--rounds 5] [--out FILE]

A whole optimizer step on random frames, the two ways in turn. The calls of each op within a step are recorded and then
timed alone, forward and, where something needs a gradient, backward, on the very tensors they were called with.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aime import kernels
from aime.allocator import keep_freed_memory
from aime.kernels import use_backend
from aime.training import TrainConfig
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig

RESULTS = Path(__file__).parent / "results"
OPS = (
    *("vq_lookup", "vq_statistics", "stick_log_weights", "mixture_log_prob"),
    *("mixture_kl", "slot_attention", "mixture_logistics_nll"),
)
WAYS = {"torch": lambda: use_backend("torch"), "chosen": nullcontext}


@dataclass(frozen=True)
class Call:
    """One call of an op, as the model made it."""

    op: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def run(self) -> None:
        """Forward, and backward where an input requires a gradient."""
        output = self.function(*self.arguments, **self.options)
        outputs = [t for t in (output if isinstance(output, tuple) else (output,)) if isinstance(t, Tensor)]
        leaves = list(tensors((self.arguments, tuple(self.options.values()))))
        leaves = [leaf for leaf in leaves if leaf.requires_grad]
        if leaves:
            total = sum((t.sum() for t in outputs if t.requires_grad), torch.zeros(()))
            torch.autograd.grad(total, leaves, allow_unused=True)


def tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors(item)


def detached(value: Any) -> Any:
    """The same with tensors of its own, outside the step's graph."""
    if isinstance(value, Tensor):
        return value.detach().clone(memory_format=torch.preserve_format).requires_grad_(value.requires_grad)
    if isinstance(value, tuple):
        items = [detached(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """The calls of the kernels within the block, wherever a module holds them by name."""
    calls: list[Call] = []
    undo: list[tuple[Any, str, Any]] = []

    def recorder(op: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            copied = {name: detached(value) for name, value in options.items()}
            calls.append(Call(op, function, detached(arguments), copied))
            return function(*arguments, **options)

        return call

    for op in OPS:
        function = getattr(kernels, op)
        for name, module in list(sys.modules.items()):
            inside = name == "aime.kernels" or (name.startswith("aime.") and not name.startswith("aime.kernels"))
            if inside and getattr(module, op, None) is function:
                undo.append((module, op, function))
                setattr(module, op, recorder(op, function))
    try:
        yield calls
    finally:
        for module, op, function in undo:
            setattr(module, op, function)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def make_step(preset: str) -> Callable[[], object]:
    """A training step of a preset at its own batch size."""
    torch.manual_seed(0)
    config, train = WorldModelConfig.preset(preset), TrainConfig.preset(preset)
    model = DPGMMVariationalRecurrentAutoencoder(config).train()
    model.configure_optimizer(train.learning_rate, train.weight_decay, train.balancer, **train.balancer_options)
    generator = torch.Generator().manual_seed(0)
    batch, frames, size = train.batch_size, train.sequence_length, config.image_size
    observations = torch.randint(0, 256, (batch, frames, 3, size, size), generator=generator, dtype=torch.uint8)
    actions = torch.randn(batch, frames, config.action_size, generator=generator)
    rewards, continues = torch.rand(batch, frames, generator=generator), torch.ones(batch, frames)
    model.initialise_from_data(observations.flatten(0, 1), generator)
    options = {"beta": 0.5, "grad_clip": train.grad_clip, "generator": generator, **train.loss_weights()}
    return lambda: model.training_step_sequence(observations, actions, rewards, continues, **options)


def measure(preset: str, rounds: int) -> dict[str, Any]:
    """Median seconds of the step and, for every op, of its calls within one step, each way."""
    step = make_step(preset)
    step()
    with recorded() as calls:
        step()
    steps: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, order in WAYS.items():
            with order():
                steps[way].append(seconds(step))
    medians = {way: statistics.median(values) for way, values in steps.items()}
    times: dict[str, dict[str, float]] = {}
    for call in calls:
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(max(rounds, 3) + 1):
            for way, order in WAYS.items():
                with order():
                    found[way].append(seconds(call.run))
        total = times.setdefault(call.op, dict.fromkeys(WAYS, 0.0))
        for way, values in found.items():
            total[way] += statistics.median(values[1:])  # the first one warms up
    return {
        "preset": preset,
        "step_seconds": medians,
        "ops": [
            {
                "op": op,
                "calls": sum(call.op == op for call in calls),
                "seconds": total,
                "share": {way: total[way] / medians[way] for way in WAYS},
            }
            for op, total in sorted(times.items(), key=lambda item: -item[1]["torch"])
        ],
    }


def print_row(row: dict[str, Any]) -> None:
    before, after = row["step_seconds"]["torch"], row["step_seconds"]["chosen"]
    print(
        f"{row['preset']}: step {before:.3f} s on torch, {after:.3f} s on the chosen backends ({before / after:.2f}x)"
    )
    for op in row["ops"]:
        (old, new), (share, now) = op["seconds"].values(), op["share"].values()
        print(
            f"  {op['op']:22} {op['calls']} calls {1e3 * old:9.2f} ms {share:6.1%}  ->  {1e3 * new:9.2f} ms {now:6.1%}"
            f"  ({old / new:.2f}x)"
        )


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["laptop", "tier1"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "step-profile-cpu.json")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    rows = []
    for preset in options.presets:
        rows.append(measure(preset, options.rounds if preset == "laptop" else min(options.rounds, 3)))
        print_row(rows[-1])
    record = {
        "benchmark": "step-profile",
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "profiles": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"stored in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
