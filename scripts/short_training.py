"""A short training from an episode file, timed: frames/s and losses into bench/results/<device>-<date>-training.json.

Needs torch, numpy, einops and h5py only; uses the GPU where there is one.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch

from aime.training.experiment import run_experiment

RESULTS = Path(__file__).parents[1] / "bench" / "results"


def main() -> None:
    """Train, then write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="episode file of `aime collect`")
    parser.add_argument("--preset", default="tier1", help="preset of model and training (tier1)")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps (300)")
    parser.add_argument("--out", type=Path, default=None, help="result file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory)
        run_experiment(
            arguments.data,
            run,
            preset=arguments.preset,
            train_overrides={"steps": arguments.steps},
            tensorboard=False,
            progress=False,
            overwrite=True,
        )
        timing = json.loads((run / "timing.json").read_text())
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    date = datetime.now(UTC).date().isoformat()
    result = {
        "op": "training",
        "device": device,
        "date": date,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "preset": arguments.preset,
        "steps": arguments.steps,
        "seconds": timing["train"],
        "frames_per_second": timing["frames_trained"] / timing["train"],
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "first": lines[0] if lines else None,
        "last": lines[-1] if lines else None,
    }
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    out = arguments.out or RESULTS / f"{name}-{date}-training.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['frames_per_second']:.0f} frames/s over {result['seconds']:.1f} s; {out}")


if __name__ == "__main__":
    main()
