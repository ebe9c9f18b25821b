"""vq_lookup by cuBLAS on tensor cores, for float32 rows of many channels.

float32 values are split into two TF32 ones, x = high + low, each rounded to nearest; three of the four products make
one matrix product of depth 3 D (tf32x3): [high, high, low] . [high, low, high]. What is left out, and the rounding of
the low parts, is at most 3 x 2^-22 |x| |c|, which is float32's rounding of such a sum. No host synchronisation, and
never more than SCORES_PER_BLOCK scores in memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .codes import scale_codes

SCORES_PER_BLOCK = 2**25  # 128 MiB of float32 scores
DROPPED_BITS = 13  # float32 has 23 bits of mantissa, TF32 ten
SMALLEST_CAPABILITY = 8  # Ampere, the first with TF32


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Matrix products of float32 in "ieee" or "tf32" on CUDA, whatever the process has chosen."""
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = precision
    try:
        yield
    finally:
        products.fp32_precision = before


def round_to_tf32(x: Tensor) -> Tensor:
    """Nearest TF32 value, as float32; halves away from zero. Inf stays, NaN stays NaN."""
    bits = x.view(torch.int32)
    rounded = (bits + (1 << (DROPPED_BITS - 1))).bitwise_and_(-1 << DROPPED_BITS).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x)


def split(x: Tensor, order: str, precision: str) -> Tensor:
    """Parts of x (n, D) side by side in `order`, "h" the high and "l" the low one; with "fast" the high one alone."""
    high = round_to_tf32(x.contiguous())
    if precision == "fast":
        return high
    low = round_to_tf32(x - high)
    return torch.cat([high if part == "h" else low for part in order], -1)


def assign(x: Tensor, codebook: Tensor, precision: str, scores_per_block: int = SCORES_PER_BLOCK) -> Tensor:
    """Index of the nearest code by |c|^2 / 2 - x.c, int32 (..., Q); x (..., Q, D) and codebook (Q, V, D) in float32.

    On CPU tensors the same split is multiplied in float32: TF32 values multiply exactly there, as in a tensor core.
    """
    heads, codes, width = codebook.shape
    rows = x.reshape(-1, heads, width)  # (N, Q, D)
    indices = torch.empty(len(rows), heads, dtype=torch.int32, device=x.device)
    block = max(1, scores_per_block // codes)
    with torch.autocast(x.device.type, enabled=False), float32_products("tf32"):
        scaled, half_norms = scale_codes(codebook)
        for head in range(heads):
            transposed = split(scaled[head], "hlh", precision).t()
            for start in range(0, len(rows), block):
                part = split(rows[start : start + block, head], "hhl", precision)
                scores = torch.addmm(half_norms[head], part, transposed, alpha=-1)  # (n, V)
                indices[start : start + block, head] = scores.argmin(-1)  # lowest index of a tie
    return indices.view(x.shape[:-1])


def obstacle(*tensors: Tensor) -> str | None:
    """Why this backend cannot take these tensors, or None."""
    for tensor in tensors:
        if tensor.device.type != "cuda" or torch.version.hip is not None:
            return f"it needs tensors on an NVIDIA GPU, found {tensor.device}"
        if tensor.dtype != torch.float32:
            return f"it takes float32, found {tensor.dtype}"
    if torch.cuda.get_device_capability(tensors[0].device)[0] < SMALLEST_CAPABILITY:
        return f"TF32 needs compute capability {SMALLEST_CAPABILITY}.0 or newer"
    return None
