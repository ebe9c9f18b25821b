"""vq_lookup and vq_statistics on CPU in C++: any strides, no copy of the input, the best vectors the processor has."""

import torch
from torch import Tensor

from ..extension import DTYPE_CODES, load
from .eager import gather


def assign(x: Tensor, codebook: Tensor, instructions: str = "") -> tuple[Tensor, Tensor]:
    """indices (..., Q) int32 and squared distance (..., Q) float32; x (..., Q, D), codebook (Q, V, D)."""
    _, indices, distance = lookup(x, codebook, instructions)
    return indices, distance


def lookup(x: Tensor, codebook: Tensor, instructions: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """Codes (..., Q, D) in the codebook's dtype, indices (..., Q) int32 and squared distance (..., Q) float32.

    `instructions` names one of the extension's instruction_sets(), "" takes the best.
    """
    heads, codes, width = codebook.shape
    leading, strides = x.shape[:-2], x.stride()
    along_heads, along_codes, along_width = codebook.stride()
    indices = torch.empty(*leading, heads, dtype=torch.int32)
    distance = torch.empty(*leading, heads, dtype=torch.float32)
    whole = codebook.dtype == torch.float32  # the kernel writes the codes too
    quantized = torch.empty(x.shape, dtype=torch.float32) if whole else None
    load().vq_lookup(
        (x.data_ptr(), DTYPE_CODES[x.dtype], leading, strides[:-2], strides[-1]),
        strides[-2],
        (codebook.data_ptr(), DTYPE_CODES[codebook.dtype], (codes,), (along_codes,), along_width),
        along_heads,
        leading.numel(),
        heads,
        codes,
        width,
        indices.data_ptr(),
        distance.data_ptr(),
        0 if quantized is None else quantized.data_ptr(),
        torch.get_num_threads(),
        instructions,
    )
    return gather(codebook, indices) if quantized is None else quantized, indices, distance


def statistics(x: Tensor, indices: Tensor, num_codes: int, instructions: str = "") -> tuple[Tensor, Tensor]:
    """counts (Q, V) and sums (Q, V, D) in float32; x (..., Q, D), indices (..., Q) int32 or int64.

    Raises:
        ValueError: an index that is no code's.
    """
    shape, strides, along = x.shape, x.stride(), indices.stride()
    leading, heads, width = shape[:-2], shape[-2], shape[-1]
    counts = torch.empty((heads, num_codes), dtype=torch.float32)
    sums = torch.empty((heads, num_codes, width), dtype=torch.float32)
    load().vq_statistics(
        (x.data_ptr(), DTYPE_CODES[x.dtype], leading, strides[:-2], strides[-1]),
        strides[-2],
        (indices.data_ptr(), indices.dtype == torch.int64, leading, along[:-1], along[-1]),
        leading.numel(),
        heads,
        num_codes,
        width,
        counts.data_ptr(),
        sums.data_ptr(),
        torch.get_num_threads(),
        instructions,
    )
    return counts, sums
