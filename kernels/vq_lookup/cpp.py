"""vq_lookup on CPU in C++: AVX-512, AVX2 or baseline by what the processor has, any strides, no copy of the input."""

import torch
from torch import Tensor

from ..extension import DTYPE_CODES, load


def assign(x: Tensor, codebook: Tensor, instructions: str = "") -> tuple[Tensor, Tensor]:
    """indices (..., Q) int32 and squared distance (..., Q) float32; x (..., Q, D), codebook (Q, V, D).

    `instructions` names one of the extension's instruction_sets(), "" takes the best.
    """
    heads, codes, width = codebook.shape
    leading = x.shape[:-2]
    indices = torch.empty(*leading, heads, dtype=torch.int32)
    distance = torch.empty(*leading, heads, dtype=torch.float32)
    load().vq_lookup(
        (x.data_ptr(), DTYPE_CODES[x.dtype], list(leading), list(x.stride()[:-2]), x.stride(-1)),
        x.stride(-2),
        (codebook.data_ptr(), DTYPE_CODES[codebook.dtype], [codes], [codebook.stride(1)], codebook.stride(2)),
        codebook.stride(0),
        leading.numel(),
        heads,
        codes,
        width,
        indices.data_ptr(),
        distance.data_ptr(),
        torch.get_num_threads(),
        instructions,
    )
    return indices, distance
