"""The stages of scripts/gpu.sh, which lays the package out and then runs this file.

A stage is a few processes with one deadline. They write into the first of AIME_GPU_OUT, OUT and bench/results/ as they
go; what they have written is copied to the others every second, so that a stage, or this program, can be killed without
losing more than that. Every file's name begins with device and date; <device>-<date>-stages.jsonl has a line a stage.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import torch

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("contact", "tests", "benchmarks", "training", "tokens")
TOKENS = {
    "tier1": ("default", "no-neighbourhood", "rotation", "two-books", "four-books", "open", "fast"),
    "laptop": ("default", "no-neighbourhood", "open"),
}
OPS = (
    *("vq_lookup", "vq_statistics", "stick_log_weights", "mixture_kl", "mixture_log_prob"),
    *("slot_attention", "mixture_logistics", "frame_patches", "frame_error"),
)
# Of `op size`: the sizes of the design, in float32, that torch.compile is timed at.
COMPILED = r"(65536 x 1024 x 64|N 4096, K 32|K 32, D 64|D 128, 3 iterations|B 128, M 10, 64 x 64)$"
POLL_SECONDS = 0.2
COPY_SECONDS = 1.0
GRACE_SECONDS = 5.0


def directories() -> list[Path]:
    """Where results go, the one that is written to first."""
    named = [os.environ.get("AIME_GPU_OUT"), os.environ.get("OUT"), str(ROOT / "bench" / "results")]
    return list(dict.fromkeys(Path(name).resolve() for name in named if name))


@dataclass
class Results:
    """Result files of this run under one prefix, and their copies."""

    prefix: str
    places: list[Path] = field(default_factory=directories)

    def __post_init__(self) -> None:
        for place in self.places:
            place.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """The file that a stage writes."""
        return self.places[0] / f"{self.prefix}-{name}"

    def copy(self) -> None:
        """Bring the other directories up to date."""
        for source in self.places[0].glob(f"{self.prefix}-*"):
            for place in self.places[1:]:
                target = place / source.name
                if not target.exists() or target.stat().st_mtime_ns < source.stat().st_mtime_ns:
                    shutil.copy2(source, target)

    def note(self, **line: object) -> None:
        """A line about a stage."""
        with self.path("stages.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.copy()


def stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """End processes with all their children: kindly, then not."""
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        alive = [process for process in processes if process.poll() is None]
        for process in alive:
            os.killpg(process.pid, number)
        limit = time.monotonic() + seconds
        while any(process.poll() is None for process in alive) and time.monotonic() < limit:
            time.sleep(POLL_SECONDS)


@dataclass
class Deadline:
    """Time that is left to a stage."""

    end: float

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()


def run(results: Results, commands: dict[str, list[str]], deadline: Deadline) -> dict[str, int | str]:
    """Run commands side by side until all end or the time is over; their output goes to files named after them.

    Returns:
        Exit status of each, or "out of time".
    """
    processes: dict[str, subprocess.Popen[bytes]] = {}
    copied = time.monotonic()
    try:
        for name, command in commands.items():
            print(f"== {name}: {' '.join(command)}", flush=True)
            with results.path(f"{name}.log").open("wb") as log:
                processes[name] = subprocess.Popen(
                    command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
        while any(process.poll() is None for process in processes.values()) and deadline.left() > 0:
            time.sleep(POLL_SECONDS)
            if time.monotonic() - copied > COPY_SECONDS:
                results.copy()
                copied = time.monotonic()
        ended = {name: process.poll() for name, process in processes.items()}
    finally:
        stop(list(processes.values()))
        results.copy()
    for name in processes:
        lines = results.path(f"{name}.log").read_text(errors="replace").splitlines()
        print("\n".join([f"-- {name}, last lines:", *lines[-15:]]), flush=True)
    return {name: "out of time" if code is None else code for name, code in ended.items()}


def contact(results: Results, deadline: Deadline) -> dict[str, int | str]:
    """Every op once."""
    command = [sys.executable, "scripts/gpu_contact.py", str(results.path("contact.jsonl"))]
    return run(results, {"contact": command}, deadline)


def test_files() -> list[str]:
    """The kernels' tests and every other file with the mark; others may import what this machine lacks."""
    marked = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.cuda" in path.read_text() and path.parent.name != "kernels"
    ]
    return ["tests/kernels", *marked]


def tests(results: Results, deadline: Deadline) -> dict[str, int | str]:
    """The tests marked cuda, dealt to several processes."""
    count = int(os.environ.get("AIME_GPU_WORKERS") or min(8, os.cpu_count() or 1))
    # warnings of other versions of torch and triton are no failures here
    common = [
        *(sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "gpu_shard", "-p", "no:cacheprovider"),
        *("-o", "filterwarnings=default", "-o", "pythonpath=build/gpu .", "--continue-on-collection-errors"),
        *os.environ.get("AIME_GPU_PYTEST", "").split(),
    ]
    commands = {}
    for index in range(count):
        record = results.path(f"tests-{index}.jsonl")
        shard = ["--shard", f"{index}/{count}", "--record", str(record)]
        commands[f"tests-{index}"] = [*common, *shard, *test_files()]
    codes = run(results, commands, deadline)
    outcomes: Counter[str] = Counter()
    for index in range(count):
        record = results.path(f"tests-{index}.jsonl")
        lines = record.read_text().splitlines() if record.exists() else []
        outcomes.update(json.loads(line)["outcome"] for line in lines)
    print(f"tests: {dict(outcomes)}")
    # 5: this share is empty
    return {name: 0 if code == 5 else code for name, code in codes.items()}


def benchmarks(results: Results, deadline: Deadline) -> dict[str, int | str]:
    """The kernels' table, then torch.compile's rows of one size an op in the time that is left.

    Compiling takes longer than all the rest: in the first pass it would keep the last ops from their turn. If that pass
    fails, op by op, so that one that does not compile costs only its own rows.
    """
    command = [sys.executable, "-m", "bench.kernels", "--device", "cuda"]
    options = (os.environ.get("AIME_GPU_BENCH") or "--no-compile --seconds .5").split()
    codes = run(results, {"kernels": [*command, *options, "--out", str(results.path("kernels.json"))]}, deadline)
    if codes["kernels"] == 0:  # the standing file, from which tables are made
        for place in results.places:
            shutil.copyfile(results.path("kernels.json"), place / "kernels-cuda.json")
    elif codes["kernels"] != "out of time":
        for op in OPS:
            if deadline.left() > GRACE_SECONDS:
                alone = [*command[:3], op, *command[3:], *options, "--out", str(results.path(f"kernels-{op}.json"))]
                codes |= run(results, {f"kernels-{op}": alone}, deadline)
    if "--no-compile" in options and deadline.left() > GRACE_SECONDS:
        compiled = ["--seconds", ".5", "--only", COMPILED, "--out", str(results.path("kernels-compiled.json"))]
        code = run(results, {"kernels-compiled": [*command, *compiled]}, deadline)["kernels-compiled"]
        if code != "out of time":  # what was compiled in time is stored case by case, and the stage has its table
            codes["kernels-compiled"] = code
    return codes


def training(results: Results, deadline: Deadline) -> dict[str, int | str]:
    """Tier 1 in float32, where losses of both backends can be compared, then in the preset's precision.

    Each launch by launch and as CUDA graphs: the frames/s of the rows `torch`, `torch-graph`, `triton`, `triton-graph`.
    """
    data = Path(os.environ.get("AIME_DATA_PATH") or ROOT / "data" / "gpu_cartpole_swingup.h5")
    if not data.is_file():
        print(f"training: expected episodes in {data}, found no file; `make gpu-data` makes it where MuJoCo is")
        return {"training": "no data"}
    codes: dict[str, int | str] = {}
    for precision in ("float32", "auto"):
        name = f"training-{precision}"
        command = [
            *(sys.executable, "scripts/short_training.py", str(data), "--steps", os.environ.get("AIME_STEPS") or "300"),
            *("--precision", precision, "--backends", "torch", "triton"),
            *("--cuda-graph", "off", "on", "--out", str(results.path(f"{name}.json"))),
        ]
        codes |= run(results, {name: command}, deadline)
    return codes


def tokens(results: Results, deadline: Deadline) -> dict[str, int | str]:
    """The Perceiver by itself: arms of bench.tokens side by side, a process and a result file each.

    A step is bound by its launches, so that processes share the GPU well; each trains for the seconds that it is given.
    """
    data = Path(os.environ.get("AIME_TOKENS_DATA") or ROOT / "data" / "gpu_cartpole_swingup.h5")
    if not data.is_file():
        print(f"tokens: expected episodes in {data}, found no file; AIME_TOKENS_DATA names another")
        return {"tokens": "no data"}
    held_out = os.environ.get("AIME_TOKENS_HELD_OUT")
    lengths = os.environ.get("AIME_TOKENS_SECONDS", "20 45").split()
    common = [
        *(sys.executable, "-m", "bench.tokens", str(data), *(["--held-out", held_out] if held_out else [])),
        *("--tokenizer-seconds", lengths[0], "--seconds", lengths[1]),
        *("--tokenizer-steps", "4000", "--steps", "20000"),
    ]
    commands = {}
    for scale, arms in TOKENS.items():
        for arm in arms:
            name = f"tokens-{scale}-{arm}"
            yardstick = "2000" if scale == "laptop" and arm == "default" else "0"
            options = ["--scale", scale, "--arms", arm, "--perceptron-steps", yardstick]
            commands[name] = [*common, *options, "--out", str(results.path(f"{name}.json"))]
    return run(results, commands, deadline)


def device_or_exit() -> str:
    """Name of the GPU for file names; a sentence and status 1 where there is none."""
    if not torch.cuda.is_available():
        sys.exit("make gpu: torch sees no CUDA device here (torch.cuda.is_available() is False)")
    name, python = torch.cuda.get_device_name(), sys.version.split()[0]
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {python}", flush=True)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def end(_number: int, _frame: object) -> NoReturn:
    """SIGTERM stops the stage's processes on the way out."""
    sys.exit(143)


def main(names: list[str]) -> int:
    """Run the named stages; status 1 if something in them failed."""
    if unknown := [name for name in names if name not in STAGES]:
        print(f"gpu.sh: unknown stage {unknown[0]!r}, expected some of {', '.join(STAGES)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, end)
    results = Results(f"{device_or_exit()}-{datetime.now(UTC).date().isoformat()}")
    seconds = float(os.environ.get("AIME_STAGE_SECONDS") or 520)
    failed = []
    for name in names or STAGES:
        start = time.monotonic()
        codes = globals()[name](results, Deadline(start + seconds))
        results.note(stage=name, seconds=round(time.monotonic() - start, 1), codes=codes)
        failed += [f"{part}({code})" for part, code in codes.items() if code != 0]
    where = " and ".join(str(place) for place in results.places)
    print(f"make gpu: {'failed: ' + ' '.join(failed) if failed else 'all stages passed'}; results in {where}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
