"""Measure the kernels: `python -m bench.kernels [OP ...] [--device cpu|cuda] [--no-compile] [--rounds N]`.

Implementations of a case take turns, round by round, so that a busy machine slows all of them; the median over rounds
is kept. Prints a table and writes bench/results/kernels-<device>.json.
"""

import argparse
import importlib
import importlib.util
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bench.kernels.cases import CASES, Case, Run, cases

RESULTS = Path(__file__).resolve().parents[1] / "results"
WARM_UP = 2
OURS = "aime "
# dense peaks of the vendor's data sheet: bytes a second, float32 operations a second on the vector units
PEAKS = {"H100": (3.35e12, 67e12), "H200": (4.8e12, 67e12), "A100": (2.04e12, 19.5e12)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("ops", nargs="*", help=f"of {', '.join(CASES)}; all of them if none is named")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    if unknown := set(options.ops) - set(CASES):
        parser.error(f"unknown op {sorted(unknown)}, expected some of {sorted(CASES)}")
    torch.manual_seed(0)
    measured: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    for case in cases(options.device, not options.no_compile, options.ops or list(CASES)):
        rows = measure(case, options.device, options.rounds)
        ratios = list(compare(rows))
        for row in rows:
            print(format_row(row, ratios), flush=True)
        measured += rows
        compared += ratios
    path = RESULTS / f"kernels-{options.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": "kernels",
        "command": f"python -m bench.kernels {' '.join(options.ops)}".strip(),
        "machine": machine(options.device),
        "rounds": options.rounds,
        "results": compared,
        "measurements": measured,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {path}")
    return 0


def measure(case: Case, device: str, rounds: int) -> list[dict[str, Any]]:
    """One row an implementation: median and least milliseconds, peak extra memory, distance to the floor."""
    times: dict[str, list[float]] = {name: [] for name in case.runs}
    for run in case.runs.values():
        for _ in range(WARM_UP):
            run()
    for _ in range(rounds):
        for name, run in case.runs.items():
            times[name].append(milliseconds(run, device))
    return [
        {
            "op": case.op,
            "size": case.size,
            "implementation": name,
            "milliseconds": statistics.median(values),
            "least_milliseconds": min(values),
            "peak_bytes": peak_bytes(case.runs[name], device),
            "flops": case.flops,
            "bytes": case.moved,
            "floor_milliseconds": floor_milliseconds(case),
        }
        for name, values in times.items()
    ]


def compare(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row for each of our backends against each peer of the same case: how many times faster."""
    ours = [row for row in rows if row["implementation"].startswith(OURS)]
    peers = [row for row in rows if not row["implementation"].startswith(OURS)]
    for mine, peer in itertools.product(ours, peers):
        yield {
            "op": mine["op"],
            "size": mine["size"],
            "backend": mine["implementation"].removeprefix(OURS),
            "peer": peer["implementation"],
            "ratio": peer["milliseconds"] / mine["milliseconds"],
            "least_ratio": peer["least_milliseconds"] / mine["least_milliseconds"],
        }


def milliseconds(run: Run, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def peak_bytes(run: Run, device: str) -> int | None:
    """Memory beyond what stood before: allocator's peak on a GPU, resident set on Linux, else unknown."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return None

    def kibibytes(field: str) -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1])

    reset.write_text("5")  # the peak starts anew from here
    before_run = kibibytes("VmRSS")
    run()
    return 1024 * max(0, kibibytes("VmHWM") - before_run)


def floor_milliseconds(case: Case) -> float | None:
    """Time of the bytes or the operations at the device's peaks, the longer one; None for an unlisted device."""
    if not torch.cuda.is_available():
        return None
    peaks = next((peaks for name, peaks in PEAKS.items() if name in torch.cuda.get_device_name()), None)
    return None if peaks is None else 1e3 * max(case.moved / peaks[0], case.flops / peaks[1])


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    triton = importlib.import_module("triton").__version__ if importlib.util.find_spec("triton") else None
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "triton": triton,
        "cuda": torch.version.cuda,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def format_row(row: dict[str, Any], ratios: list[dict[str, Any]]) -> str:
    """A line of the printed table."""
    backend = row["implementation"].removeprefix(OURS)
    faster = ", ".join(f"{r['ratio']:.2f}x {r['peer']}" for r in ratios if r["backend"] == backend)
    memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:8.1f} MiB"
    floor = row["floor_milliseconds"]
    distance = "" if floor is None else f"  {row['milliseconds'] / floor:6.1f}x floor"
    rate = row["flops"] / row["milliseconds"] / 1e6
    return (
        f"{row['op']:22} {row['size']:28} {row['implementation']:24} {row['milliseconds']:10.3f} ms {memory}"
        f" {rate:8.1f} GFLOP/s{distance}  {faster if row['implementation'].startswith(OURS) else ''}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
