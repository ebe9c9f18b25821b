# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""What the Triton kernels share: elementary functions that its language lacks, and a launch option.

The functions are written out because the interpreter cannot take them from a device library.
"""

import torch
import triton
import triton.language as tl

from .dispatch import TRITON_INTERPRETED


def all_registers() -> dict[str, int]:
    """Launch option that keeps NVIDIA's assembler from spilling a few bytes to fit one more program on a processor.

    Left alone it stopped at 64, 72, 96 or 168 registers and spilled 8 or 16 bytes in 12 of 668 compiled kernels.
    """
    if TRITON_INTERPRETED or triton.runtime.driver.active.get_current_target().backend == "hip":
        return {}
    return {"maxnreg": 255}


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Type that a kernel counts in: float64 for float64, else float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


@triton.jit
def expm1(x):
    """exp(x) - 1 by Kahan's correction: the rounding of exp cancels between u - 1 and log u."""
    u = tl.exp(x)
    middle = tl.where(u == 1.0, x, (u - 1.0) * (x / tl.log(u)))
    return tl.where(x < -40.0, -1.0, tl.where(x > 40.0, u, middle))


@triton.jit
def log1p(x):
    """log(1 + x) by the same correction."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0)))


@triton.jit
def tanh(x):
    """By the sigmoid of 2 x: absolute error of one float32 rounding."""
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0
