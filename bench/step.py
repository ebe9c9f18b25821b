"""The training step: the time-parallel pass against the per-frame oracle, and the share of each stage.

    python -m bench.step [--rounds 5] [--batch 16] [--frames 16] [--out FILE]

Forward and backward of the laptop preset, the two ways in turn, `rounds` times, so that a machine whose speed drifts
treats both alike; the ratio is the median of the rounds' ratios. The oracle (tests/world_model/oracle.py) computes the
same numbers frame by frame, the context from the whole prefix at each frame. Both run in evaluation mode, in which
every frame is decoded and every sequence seen by all parts.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from aime.multi_task_learning import LossAggregator
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, SequenceNoise, WorldModelConfig
from tests.world_model.oracle import forward_per_frame


def seconds(action: Callable[[], None]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(batch: int, frames: int, rounds: int) -> dict[str, float]:
    """Median seconds of both ways and the median ratio."""
    torch.manual_seed(0)
    config = WorldModelConfig.preset("laptop")
    model = DPGMMVariationalRecurrentAutoencoder(config).eval()  # in training the pass leaves a share of the work out
    generator = torch.Generator().manual_seed(0)
    observations = torch.randint(0, 256, (batch, frames, 3, 64, 64), generator=generator, dtype=torch.uint8)
    actions = torch.randn(batch, frames, 1, generator=generator)
    rewards, continues = torch.rand(batch, frames, generator=generator), torch.ones(batch, frames)
    model.initialise_from_data(observations.flatten(0, 1), generator)
    noise = SequenceNoise.draw(config, batch, frames, model.mean_image, generator)
    aggregator, parameters = LossAggregator(), model.trainable

    def sequence() -> None:
        outputs = model.forward_sequence(observations, actions, rewards, continues, noise=noise)
        total = aggregator.compute_losses(outputs)[0]["total_loss"]
        torch.autograd.grad(total, parameters, allow_unused=True)

    def per_frame() -> None:
        outputs = forward_per_frame(model, observations, actions, rewards, continues, noise)
        total = aggregator.compute_losses(outputs)[0]["total_loss"]
        torch.autograd.grad(total, parameters, allow_unused=True)

    for warm_up in (sequence, per_frame):
        warm_up()
    pairs = [(seconds(sequence), seconds(per_frame)) for _ in range(rounds)]
    return {
        "batch": batch,
        "frames": frames,
        "sequence_seconds": statistics.median(fast for fast, _ in pairs),
        "per_frame_seconds": statistics.median(slow for _, slow in pairs),
        "ratio": statistics.median(slow / fast for fast, slow in pairs),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and store; also what `aime bench step` calls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    row = measure(options.batch, options.frames, options.rounds)
    print(
        f"forward + backward, laptop preset, B {row['batch']:.0f} x T {row['frames']:.0f}: time-parallel "
        f"{row['sequence_seconds']:.3f} s, per frame {row['per_frame_seconds']:.3f} s, ratio {row['ratio']:.2f}"
    )
    now = datetime.now(UTC)
    name = f"step-cpu-{now:%Y-%m-%d}.json"
    out = options.out or Path(__file__).parent / "results" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": "step",
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "time": now.isoformat(timespec="seconds"),
        "results": [row],
    }
    out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"stored in {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
