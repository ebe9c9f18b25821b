# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""Elementary functions that Triton's language lacks (and its interpreter cannot take from a device library)."""

import triton
import triton.language as tl


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
def log_sigmoid(x):
    """log(1 / (1 + exp(-x))) without overflow."""
    return tl.minimum(x, 0.0) - log1p(tl.exp(-tl.abs(x)))


@triton.jit
def tanh(x):
    """By the sigmoid of 2 x: absolute error of one float32 rounding."""
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0
