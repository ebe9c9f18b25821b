"""Clocks, memory, and what the machine itself can do: the floor that every row is measured against."""

import ctypes
import importlib
import importlib.util
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from aime.kernels import dispatch, extension
from bench.kernels.case import Case, Run

# dense peaks of the vendor's data sheet: bytes a second, float32 operations a second on the vector units
DATA_SHEETS = {"H100": (3.35e12, 67e12), "H200": (4.8e12, 67e12), "A100": (2.04e12, 19.5e12)}


@dataclass(frozen=True)
class Floor:
    """Peaks of the machine: bytes a second from and to memory, float32 operations a second."""

    bandwidth: float
    operations: float
    source: str

    def milliseconds(self, case: Case) -> float:
        """Time of the bytes or of the operations, the longer one."""
        return 1e3 * max(case.moved / self.bandwidth, case.flops / self.operations)

    def record(self) -> dict[str, Any]:
        """For the result file."""
        return asdict(self)


def floor_of(device: str) -> Floor | None:
    """A CPU's peaks measured here and now, a GPU's from its data sheet; None for a GPU that is not listed."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        sheet = next((peaks for key, peaks in DATA_SHEETS.items() if key in name), None)
        return None if sheet is None else Floor(*sheet, "data sheet")
    source, target = torch.zeros(1 << 26), torch.zeros(1 << 26)  # 256 MiB each, far beyond any cache
    copy = min(milliseconds(lambda: target.copy_(source), "cpu") for _ in range(8)) / 1e3
    bandwidth = 2 * 4 * source.numel() / copy
    if dispatch.EXTENSION_BUILT:
        operations = extension.load().peak_operations(torch.get_num_threads())
        return Floor(bandwidth, operations, "best of 8 copies of 256 MiB, of 60 runs of multiply-adds on registers")
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    product = min(milliseconds(lambda: left @ right, "cpu") for _ in range(8)) / 1e3
    return Floor(bandwidth, 2 * 2048**3 / product, "best of 8 copies of 256 MiB, of 8 products of 2048 x 2048")


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
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if not reset.exists() or trim is None:
        return None

    def kibibytes(field: str) -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1])

    trim(0)  # memory that malloc kept would hide what the call takes
    reset.write_text("5")  # the peak starts anew from here
    before_run = kibibytes("VmRSS")
    run()
    return 1024 * max(0, kibibytes("VmHWM") - before_run)


def measure(case: Case, device: str, rounds: int, seconds: float, floor: Floor | None) -> list[dict[str, Any]]:
    """One row an implementation: median and least milliseconds, peak memory, distance to the floor.

    Implementations take turns; there are as many rounds as fit the seconds, at least 3 and at most `rounds`.
    """
    once = {name: (milliseconds(run, device), milliseconds(run, device))[1] for name, run in case.runs.items()}
    count = max(3, min(rounds, int(1e3 * seconds / sum(once.values()))))
    times: dict[str, list[float]] = {name: [] for name in case.runs}
    for _ in range(count):
        for name, run in case.runs.items():
            times[name].append(milliseconds(run, device))
    rows = []
    for name, values in times.items():
        peak = peak_bytes(case.runs[name], device)
        median = statistics.median(values)
        least = None if floor is None else floor.milliseconds(case)
        rows.append(
            {
                "op": case.op,
                "size": case.size,
                "implementation": name,
                "rounds": count,
                "milliseconds": median,
                "least_milliseconds": min(values),
                "peak_bytes": peak,
                "held_bytes": case.held,
                "memory_ratio": None if peak is None else (case.inputs + peak) / case.held,
                "flops": case.flops,
                "bytes": case.moved,
                "floor_milliseconds": least,
                "times_floor": None if least is None else median / least,
            }
        )
    return rows


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    versions = {name: version(name) for name in ("triton", "vector_quantize_pytorch", "slot_attention")}
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "versions": versions,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def version(package: str) -> str | None:
    """Version of an installed package, None without it."""
    if importlib.util.find_spec(package) is None:
        return None
    metadata: Any = importlib.import_module("importlib.metadata")
    return str(metadata.version(package.replace("_", "-")))
