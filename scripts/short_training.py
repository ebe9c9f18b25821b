"""A short training from an episode file, timed, on one kernel backend after the other, from the same seed.

With `--cuda-graph off on` each backend trains twice, launch by launch and as CUDA graphs; the rows are named
`<backend>` and `<backend>-graph`.

Frames/s, peak memory and losses go to bench/results/<device>-<date>-training.json, with the largest relative difference
between the backends' losses at every logged step. A backend that fails is reported there and the others go on. The
file is written again after every backend; logged lines stand beside it, <file>-<backend>.jsonl, a second after they are
logged. Needs torch, numpy, einops and h5py only; uses the GPU where there is one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import re
import shutil
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from aime.kernels import use_backend
from aime.training.experiment import run_experiment

RESULTS = Path(__file__).parents[1] / "bench" / "results"
COMPARED = ("total_loss", "recon_loss", "kl_z", "attention_loss", "perceiver_loss", "predictive_loss")


@contextmanager
def copied(source: Path, target: Path) -> Iterator[None]:
    """Copy a growing file every second, and when the block ends."""
    ended = threading.Event()

    def copy() -> None:
        while True:
            over = ended.wait(1.0)
            if source.exists():
                shutil.copyfile(source, target)
            if over:
                return

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def train(arguments: argparse.Namespace, backend: str, cuda_graph: str) -> dict[str, Any]:
    """One run: speed, peak memory and logged losses."""
    name = f"{backend}-graph" if cuda_graph == "on" else backend
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory)
        overrides = {"steps": arguments.steps, "log_every": arguments.log_every, "precision": arguments.precision}
        overrides["cuda_graph"] = cuda_graph
        if arguments.batch_size:
            overrides["batch_size"] = arguments.batch_size
        lines_file = arguments.out.with_name(f"{arguments.out.stem}-{name}.jsonl")
        with (
            nullcontext() if backend == "default" else use_backend(backend),
            copied(run / "metrics.jsonl", lines_file),
        ):
            run_experiment(
                arguments.data,
                run,
                preset=arguments.preset,
                train_overrides=overrides,
                tensorboard=False,
                progress=False,
                overwrite=True,
            )
        timing = json.loads((run / "timing.json").read_text())
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "backend": name,
        "cuda_graph": cuda_graph,
        "seconds": timing["train"],
        "frames_per_second": timing["frames_trained"] / timing["train"],
        "settled_frames_per_second": settled(lines),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "logged": lines,
    }


def settled(lines: list[dict[str, Any]]) -> float | None:
    """Frames/s over the second half of the logged lines: what is compiled, captured and chosen comes before."""
    times = [(line["seconds"], line["frames"]) for line in lines if "seconds" in line]
    half = times[len(times) // 2 :]
    if len(half) < 2 or half[-1][0] <= half[0][0]:
        return None
    return float((half[-1][1] - half[0][1]) / (half[-1][0] - half[0][0]))


def differences(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Largest relative difference of each logged loss to the first run's, line by line."""
    first, *others = runs
    return [
        {
            "backend": run["backend"],
            "against": first["backend"],
            "step": ours.get("step"),
            "relative": {
                name: abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-6)
                for name in theirs
                if name.rpartition("/")[2] in COMPARED and name in ours
            },
        }
        for run in others
        for ours, theirs in zip(run["logged"], first["logged"], strict=False)
    ]


def main() -> int:
    """Train on each backend, then write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="episode file of `aime collect`")
    parser.add_argument("--preset", default="tier1", help="preset of model and training (tier1)")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps (300)")
    parser.add_argument("--log-every", type=int, default=10, help="steps between logged losses (10)")
    parser.add_argument("--batch-size", type=int, default=None, help="sequences a batch (the preset's)")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16 (auto)")
    parser.add_argument("--backends", nargs="+", default=["default"], help="of default, torch, triton, cpp (default)")
    parser.add_argument(
        "--cuda-graph", nargs="+", default=["off"], choices=("off", "on", "auto"), help="of off, on (off)"
    )
    parser.add_argument("--out", type=Path, default=None, help="result file")
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    date = datetime.now(UTC).date().isoformat()
    if arguments.out is None:
        name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        arguments.out = RESULTS / f"{name}-{date}-training.json"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    result: dict[str, Any] = {}
    for backend, cuda_graph in itertools.product(arguments.backends, arguments.cuda_graph):
        try:
            runs.append(train(arguments, backend, cuda_graph))
        except Exception as error:  # noqa: BLE001 - one backend's failure is a result, the others still run
            failed[f"{backend}, cuda_graph {cuda_graph}"] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        result = {
            "op": "training",
            "device": device,
            "date": date,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "preset": arguments.preset,
            "steps": arguments.steps,
            "precision": arguments.precision,
            "runs": runs,
            "differences": differences(runs) if runs else [],
            "failed": failed,
        }
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    for run in runs:
        later = run["settled_frames_per_second"]
        tail = "" if later is None else f", {later:.0f} in the second half"
        print(f"{run['backend']}: {run['frames_per_second']:.0f} frames/s over {run['seconds']:.1f} s{tail}")
    for line in result["differences"][:1]:
        print(f"first logged losses, {line['backend']} against {line['against']}: {line['relative']}")
    for backend, reason in failed.items():
        print(f"{backend}: failed, {reason}")
    print(f"wrote {arguments.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
