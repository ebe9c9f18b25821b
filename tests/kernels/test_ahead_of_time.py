"""Every Triton kernel that can be launched compiles for GPUs that are not here: no spill, shared memory that fits,
tensor cores where they are meant."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aime.kernels import dispatch

SCRIPT = Path(__file__).parent / "ahead_of_time.py"
SHARED_LIMIT = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}  # A100, H100, B200, MI300X
OPS = {"vq_lookup", "mixture_kl", "slot_attention", "mixture_logistics"}
# kernels whose products belong on the matrix unit, and the instructions that use it
MATRIX_KERNELS = {"lookup_kernel"}
SLOT_PRODUCTS = ("attend", "update", "entry", "weights", "queries", "seen", "gates", "hidden", "result", "product")
MATRIX_UNIT = {"sm_80": "mma.sync", "sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma", "gfx942": "mfma"}


@pytest.mark.skipif(not dispatch.TRITON_INSTALLED, reason="triton is not installed")
@pytest.mark.parametrize("architecture", SHARED_LIMIT)
def test_kernels_compile_without_spills(architecture: str) -> None:
    # a process of its own: the interpreter is on in this one
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), architecture]
    output = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    kernels = json.loads(output.stdout)
    assert {kernel["case"].partition(":")[0] for kernel in kernels} == OPS
    for kernel in kernels:
        assert kernel["spilled"] == 0, kernel
        assert kernel["shared"] <= SHARED_LIMIT[architecture], kernel
        if kernel["kernel"] in MATRIX_KERNELS:
            assert kernel["matrix_unit"] == MATRIX_UNIT[architecture], kernel
        if any(part in kernel["kernel"] for part in SLOT_PRODUCTS):  # 16 slots are too few for wgmma in places
            assert kernel["matrix_unit"] != "fma", kernel
