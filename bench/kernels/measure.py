"""Clocks, memory, and what the machine itself can do: the floor that every row is measured against."""

import ctypes
import importlib
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from aime.kernels import dispatch, extension
from bench.kernels.case import Case, Run

DISTRIBUTIONS = {"faiss": "faiss-cpu", "sklearn": "scikit-learn"}  # of packages that are called otherwise
PACKAGES = ("triton", "vector_quantize_pytorch", "slot_attention", *DISTRIBUTIONS)
LEAST_ROUNDS = 9
GRAPH_CALLS = 20


@dataclass(frozen=True)
class Sheet:
    """Dense peaks of a vendor's data sheet.

    Bytes a second; operations a second in float32 on the vector units, in TF32 and in halves on tensor cores.
    """

    bandwidth: float
    float32: float
    tf32: float
    half: float


DATA_SHEETS = {
    "H100": Sheet(3.35e12, 67e12, 494.7e12, 989.4e12),
    "H200": Sheet(4.8e12, 67e12, 494.7e12, 989.4e12),
    "A100": Sheet(2.04e12, 19.5e12, 156e12, 312e12),
}


@dataclass(frozen=True)
class Floor:
    """Peaks of the machine: bytes a second from and to memory, float32 operations a second.

    Attributes:
        products: operations a second of tensor cores by kind of product ("tf32x3", "tf32", "half"); none on a CPU,
            where products run at `operations` like everything else.
    """

    bandwidth: float
    operations: float
    source: str
    products: Mapping[str, float] = field(default_factory=dict)

    def milliseconds(self, case: Case) -> float:
        """Time of the bytes or of the operations, the longer one; those of tensor cores at their own peak."""
        rate = self.products.get(case.kind)
        if rate is None:
            return 1e3 * max(case.moved / self.bandwidth, case.flops / self.operations)
        busy = case.products / rate + (case.flops - case.products) / self.operations
        return 1e3 * max(case.moved / self.bandwidth, busy)

    def record(self) -> dict[str, Any]:
        """For the result file."""
        return asdict(self)


def floor_of_sheet(sheet: Sheet) -> Floor:
    """Floor of a GPU; float32 as three products of TF32 runs at a third of its peak."""
    products = {"tf32x3": sheet.tf32 / 3, "tf32": sheet.tf32, "half": sheet.half}
    return Floor(sheet.bandwidth, sheet.float32, "data sheet, dense", products)


def floor_of(device: str, clock: str = "wall") -> Floor | None:
    """A CPU's peaks measured here and now, a GPU's from its data sheet; None for a GPU that is not listed."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        sheet = next((peaks for key, peaks in DATA_SHEETS.items() if key in name), None)
        return None if sheet is None else floor_of_sheet(sheet)
    source, target = torch.zeros(1 << 26), torch.zeros(1 << 26)  # 256 MiB each, far beyond any cache
    copy = min(milliseconds(lambda: target.copy_(source), "cpu", clock) for _ in range(8)) / 1e3
    bandwidth = 2 * 4 * source.numel() / copy
    if dispatch.EXTENSION_BUILT:
        operations = extension.load().peak_operations(torch.get_num_threads())
        return Floor(bandwidth, operations, "best of 8 copies of 256 MiB, of 60 runs of multiply-adds on registers")
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    product = min(milliseconds(lambda: left @ right, "cpu", clock) for _ in range(8)) / 1e3
    return Floor(bandwidth, 2 * 2048**3 / product, "best of 8 copies of 256 MiB, of 8 products of 2048 x 2048")


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
"""Of a call. Processor time, of all threads together, is what compares on one thread of a machine that others use."""


def milliseconds(run: Run, device: str, clock: str = "wall") -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    now = CLOCKS[clock]
    start = now()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (now() - start) * 1e3


def device_milliseconds(run: Run, device: str) -> tuple[float | None, str]:
    """Time of a call on the device alone, and how it was taken; None for a CPU.

    A CUDA graph of GRAPH_CALLS calls between two events, or events around the host's call where it cannot be captured.
    """
    if device != "cuda":
        return None, "wall clock"
    calls, how = GRAPH_CALLS, "graph"
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries make their handles on a stream's first call, which no capture may hold
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    launch: Run = graph.replay
    try:
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(calls):
                run()
    except RuntimeError as error:  # it waits for the device, or allocates outside of the pool
        torch.cuda.synchronize()
        calls, how, launch = 1, f"events ({type(error).__name__} in capture)", run
    times = []
    for _ in range(LEAST_ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        launch()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / calls)
    return min(times), how


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


def measure(
    case: Case, device: str, rounds: int, seconds: float, floor: Floor | None, clock: str = "wall"
) -> list[dict[str, Any]]:
    """One row an implementation: median and least milliseconds, peak memory, distance to the floor.

    Implementations take turns; there are as many rounds as fit the seconds, at least LEAST_ROUNDS of them (or `rounds`,
    where fewer are asked for) and at most `rounds`. On a GPU the floor is compared with the time on the device.
    """
    once = {name: (milliseconds(run, device), milliseconds(run, device))[1] for name, run in case.runs.items()}
    count = max(min(rounds, LEAST_ROUNDS), min(rounds, int(1e3 * seconds / sum(once.values()))))
    times: dict[str, list[float]] = {name: [] for name in case.runs}
    for _ in range(count):
        for name, run in case.runs.items():
            times[name].append(milliseconds(run, device, clock))
    rows = []
    for name, values in times.items():
        peak = peak_bytes(case.runs[name], device)
        median = statistics.median(values)
        least = None if floor is None else floor.milliseconds(case)
        alone, clock = device_milliseconds(case.runs[name], device)
        rows.append(
            {
                "op": case.op,
                "size": case.size,
                "implementation": name,
                "rounds": count,
                "milliseconds": median,
                "least_milliseconds": min(values),
                "device_milliseconds": alone,
                "device_clock": clock,
                "peak_bytes": peak,
                "held_bytes": case.held,
                "memory_ratio": None if peak is None else (case.inputs + peak) / case.held,
                "flops": case.flops,
                "bytes": case.moved,
                "floor_milliseconds": least,
                "times_floor": None if least is None else (median if alone is None else alone) / least,
            }
        )
    return rows


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    versions = {
        name: version(name) for name in ("triton", "vector_quantize_pytorch", "slot_attention", "faiss", "sklearn")
    }
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
    return str(metadata.version(DISTRIBUTIONS.get(package, package.replace("_", "-"))))
