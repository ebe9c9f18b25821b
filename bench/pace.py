"""The training step against the baselines': frames a second, FLOPs a frame, share of the cores' peak, memory.

    python -m bench.pace [--rounds 6] [--batch 16] [--frames 16] [--out FILE]

The laptop preset's image step, its rehearsal, and the steps of both RSSMs, in turn, `rounds` times each, in CPU seconds
of the process; ratios are medians of the rounds' ratios. FLOPs are counted by torch (matrix products and convolutions,
forward and backward); the peak is the best matrix product of 2048 x 2048 in float32, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from aime.allocator import keep_freed_memory
from aime.evaluation.baselines.rssm import RSSM, RSSMConfig
from aime.training import TrainConfig
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, RememberedSequences, WorldModelConfig

RESULTS = Path(__file__).parent / "results"
SIDE = 2048  # of the product that measures the peak


class NoModules:
    """In the place of torch's tracker of modules, whose hooks refuse a module that runs without gradients."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        """Nothing to begin."""

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""


def model_steps(observations: torch.Tensor, actions: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The image step and a rehearsal of the laptop preset, in float32 and in bfloat16."""
    torch.manual_seed(0)
    config, train = WorldModelConfig.preset("laptop", action_size=actions.shape[-1]), TrainConfig.preset("laptop")
    model = DPGMMVariationalRecurrentAutoencoder(config).train()
    model.configure_optimizer(train.learning_rate, train.weight_decay, train.balancer, **train.balancer_options)
    generator = torch.Generator().manual_seed(0)
    model.initialise_from_data(observations.flatten(0, 1), generator)
    rewards, continues = torch.rand(actions.shape[:2]), torch.ones(actions.shape[:2])
    shape = (train.rehearsal_batch, train.rehearsal_length)
    remembered = RememberedSequences(
        torch.randn(*shape, config.latent_dim), torch.full((*shape, config.latent_dim), -2.0),
        torch.randn(*shape, config.action_size),
    )  # fmt: skip
    rolled = round(train.rehearsal_rolled * shape[0])

    def step(dtype: torch.dtype | None) -> object:
        return model.training_step_sequence(
            observations, actions, rewards, continues, autocast=dtype, generator=generator
        )

    def rehearsal(dtype: torch.dtype | None) -> object:
        return model.rehearse(remembered, shape[1] // 2, rolled, autocast=dtype, generator=generator)

    return {
        "image step, float32": lambda: step(None),
        "image step, bfloat16": lambda: step(torch.bfloat16),
        "rehearsal, float32": lambda: rehearsal(None),
        "rehearsal, bfloat16": lambda: rehearsal(torch.bfloat16),
    }


def baseline_step(config: RSSMConfig, observations: torch.Tensor, actions: torch.Tensor) -> Callable[[], object]:
    """A training step of an RSSM."""
    torch.manual_seed(0)
    model = RSSM(config).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        loss, _ = model.loss(observations, actions)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()

    return step


def measure(batch: int, frames: int, rounds: int) -> dict[str, object]:
    """CPU seconds a step of each contestant and of the product, FLOPs of each, and the ratios to the RSSM."""
    generator = torch.Generator().manual_seed(0)
    observations = torch.randint(0, 256, (batch, frames, 3, 64, 64), generator=generator, dtype=torch.uint8)
    actions = torch.randn(batch, frames, 1, generator=generator)
    steps = model_steps(observations, actions)
    steps["rssm"] = baseline_step(RSSMConfig(action_size=1), observations, actions)
    steps["rssm_tuned"] = baseline_step(RSSMConfig.tuned((3, 64, 64), 1), observations, actions)
    square = torch.randn(SIDE, SIDE)
    steps["matrix product"] = lambda: square @ square
    flops = {}
    for name, step in steps.items():
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = NoModules()  # type: ignore[assignment]
        with counter:
            step()
        flops[name] = counter.get_total_flops()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            begin = time.process_time()
            step()
            taken[name].append(time.process_time() - begin)
    peak = max(2 * SIDE**3 / seconds for seconds in taken["matrix product"])
    rows = []
    for name, seconds in taken.items():
        least = min(seconds)
        rows.append(
            {
                "step": name,
                "cpu_seconds": least,
                "frames_per_cpu_second": batch * frames / least,
                "mflop_per_frame": flops[name] / (batch * frames) / 1e6,
                "share_of_peak": flops[name] / least / peak,
                "times_rssm": statistics.median(a / b for a, b in zip(seconds, taken["rssm"], strict=True)),
            }
        )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"batch": batch, "frames": frames, "peak_gflops": peak / 1e9, "peak_memory_gib": memory, "rows": rows}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS / "pace-cpu.json")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    found = measure(options.batch, options.frames, options.rounds)
    print(f"peak {found['peak_gflops']:.0f} GFLOP/s of the process, memory {found['peak_memory_gib']:.2f} GiB")
    rows = found["rows"]
    assert isinstance(rows, list)
    for row in rows:
        print(
            f"{row['step']:22} {row['cpu_seconds']:.3f} CPU s  {row['frames_per_cpu_second']:7.0f} frames/s  "
            f"{row['mflop_per_frame']:6.1f} MFLOP/frame  {row['share_of_peak']:5.0%} of peak  "
            f"{row['times_rssm']:.2f} x rssm"
        )
    facts = {
        "benchmark": "pace",
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(facts | {"results": found}, indent=2) + "\n")
    print(f"stored in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
