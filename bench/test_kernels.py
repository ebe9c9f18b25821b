"""The kernel cases under pytest-benchmark: `python -m pytest bench/test_kernels.py`.

One line an implementation; `python -m bench.kernels` interleaves them and stores the ratios.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.kernels.cases import CASES, cases

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = [
    pytest.param(run, f"{case.op} {case.size}", id=f"{case.op}-{case.size}-{name}")
    for case in cases(DEVICE, compiled=False, ops=list(CASES), large=False)
    for name, run in case.runs.items()
]


@pytest.mark.parametrize(("run", "group"), RUNS)
def test_kernel(benchmark: BenchmarkFixture, run: object, group: str) -> None:
    benchmark.group = group
    assert callable(run)

    def once() -> None:
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(once)
