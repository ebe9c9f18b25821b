"""Vector quantisation in plain PyTorch: the truth in every test, readable before fast."""

import torch
from torch import Tensor


def vq_lookup_reference(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest code of every row, by the direct distance |x - c|^2.

    Args:
        x: (N, Q, D) rows of Q heads.
        codebook: (Q, V, D).

    Returns:
        quantized (N, Q, D), indices (N, Q) int32 with ties to the lowest index, squared distance (N, Q). `quantized` is
        differentiable in the codebook, `distance` in both.
    """
    difference = x[:, :, None, :] - codebook[None]  # (N, Q, V, D)
    # a code that is not finite is nobody's nearest
    distances = torch.where(codebook.isfinite().all(-1), difference.detach().square().sum(-1), torch.inf)
    indices = distances.argmin(-1)  # (N, Q); argmin returns the first minimum on CPU
    heads = torch.arange(codebook.shape[0], device=x.device)
    quantized = codebook[heads, indices]  # (N, Q, D)
    distance = (x - quantized).square().sum(-1)  # (N, Q)
    return quantized, indices.to(torch.int32), distance


def vq_statistics_reference(x: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Rows per code and their sum, by a one-hot product.

    Args:
        x: (N, Q, D); indices: (N, Q).

    Returns:
        counts (Q, V) and sums (Q, V, D) in x's dtype.
    """
    one_hot = torch.nn.functional.one_hot(indices.long(), num_codes).to(x.dtype)  # (N, Q, V)
    return one_hot.sum(0), torch.einsum("nqv,nqd->qvd", one_hot, x)
