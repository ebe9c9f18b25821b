"""Measure the kernels: `python -m bench.kernels [OP ...] [--device cpu|cuda] [--no-compile] [--rounds N]`.

Implementations of a case take turns, round by round, so that a busy machine slows all of them; the median over rounds
and the least time are kept, and ratios of both are printed, of least times in brackets. On a GPU the time on the device
alone stands beside the wall clock. Prints a table, writes bench/results/kernels-<device>.json and draws
docs/kernels/roofline-<device>.svg.
Freed memory is kept as in training (aime/allocator.py): without that the peers would fault a page for every
4 KiB of their intermediates. A run of everything takes some five minutes on two cores, most of it torch.compile.
"""

import argparse
import itertools
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from aime.allocator import keep_freed_memory
from bench.kernels.case import limits
from bench.kernels.cases import CASES, cases
from bench.kernels.measure import CLOCKS, floor_of, machine, measure
from bench.kernels.roofline import draw

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
OURS = "aime "


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("ops", nargs="*", help=f"of {', '.join(CASES)}; all of them if none is named")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=4.0, help="for the rounds of one case; at least 9 are run")
    parser.add_argument(
        "--clock", choices=tuple(CLOCKS), default="wall", help="processor: time of all threads together"
    )
    parser.add_argument("--most-rows", type=float, default=float("inf"), help="leave larger cases out")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="cases with this pattern in `op size`")
    parser.add_argument("--out", type=Path, default=None, help="result file; without it the picture is drawn anew too")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    if unknown := set(options.ops) - set(CASES):
        parser.error(f"unknown op {sorted(unknown)}, expected some of {sorted(CASES)}")
    limits["rows"] = options.most_rows
    torch.manual_seed(0)
    keep_freed_memory()
    floor = floor_of(options.device, options.clock)
    if floor is not None:
        print(f"floor: {floor.bandwidth / 1e9:.1f} GB/s, {floor.operations / 1e9:.0f} GFLOP/s ({floor.source})")
    measured: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    record = {
        "benchmark": "kernels",
        "command": command(given),
        "machine": machine(options.device) | {"clock": options.clock},
        "floor": None if floor is None else floor.record(),
        "results": compared,
        "measurements": measured,
        "left_out": left_out,
    }
    for case in cases(options.device, not options.no_compile, options.ops or list(CASES)):
        if not options.only.search(f"{case.op} {case.size}"):
            continue
        rows = measure(case, options.device, options.rounds, options.seconds, floor, options.clock)
        ratios = list(compare(rows))
        for row in rows:
            print(format_row(row, ratios), flush=True)
        for name, reason in case.left_out.items():
            print(f"{case.op:22} {case.size:44} {name:24} {reason}")
            left_out.append({"op": case.op, "size": case.size, "implementation": name, "reason": reason})
        measured += rows
        compared += ratios
        if options.out is not None:  # what is measured is kept, whatever happens to the next case
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(record, indent=2) + "\n")
        torch._dynamo.reset()
    store(record, options.out, options.device)
    return 0


def command(given: list[str]) -> str:
    """What was typed, with the number of threads where the environment limits it."""
    threads = os.environ.get("OMP_NUM_THREADS")
    limit = [] if threads is None else [f"OMP_NUM_THREADS={threads}"]
    return " ".join([*limit, "python -m bench.kernels", *map(shlex.quote, given)])


def store(record: dict[str, Any], out: Path | None, device: str) -> None:
    """Write the results; the standing ones have their picture beside the pages."""
    path = out or RESULTS / f"kernels-{device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {path}")
    if out is None and record["floor"] is not None:
        picture = ROOT / "docs" / "kernels" / f"roofline-{device}.svg"
        picture.write_text(draw(record))
        print(f"wrote {picture}")


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
            "device_ratio": None
            if {peer["device_clock"], mine["device_clock"]} != {"graph"}  # events time the host as well
            else peer["device_milliseconds"] / mine["device_milliseconds"],
        }


def format_row(row: dict[str, Any], ratios: list[dict[str, Any]]) -> str:
    """A line of the printed table."""
    backend = row["implementation"].removeprefix(OURS)
    faster = ", ".join(
        f"{r['ratio']:.2f} ({r['least_ratio']:.2f})x {r['peer']}" for r in ratios if r["backend"] == backend
    )
    alone = "" if row["device_milliseconds"] is None else f"  {row['device_milliseconds']:.4f} ms on the device"
    memory = 12 * " " if row["memory_ratio"] is None else f"{row['memory_ratio']:5.2f}x memory"
    distance = "" if row["times_floor"] is None else f"  {row['times_floor']:6.1f}x floor"
    return (
        f"{row['op']:22} {row['size']:44} {row['implementation']:24} {row['milliseconds']:10.3f} ms {memory}{alone}"
        f"{distance}  {faster if row['implementation'].startswith(OURS) else ''}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
