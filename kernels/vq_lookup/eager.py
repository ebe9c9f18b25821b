"""Vector quantisation with PyTorch's own kernels, without a tensor of N x V scores."""

import functools

import torch
from torch import Tensor

from ..shapes import accumulation_dtype, cast
from .codes import scale_codes
from .cublas import float32_products

# Scores are made and reduced block by block, so that they stay in cache and N x V never exists. Measured on 2 cores of
# an AMD EPYC (family 26), torch 2.13, ms for 8192 x 1024 x 64 | 32768 x 256 x 32: blocks of 64 Ki scores 9.5 | 7.1,
# 256 Ki 8.1 | 6.4, 1 Mi 8.0 | 6.3, everything at once 33.7 | 17.7.
SCORES_PER_BLOCK = 512 * 1024
SCORES_PER_GPU_BLOCK = 2**28  # 1 GiB of float32 scores


def assign(x: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code by |c|^2 / 2 - x.c, int32 (..., Q); x (..., Q, D), codebook (Q, V, D)."""
    dtype = accumulation_dtype(x, codebook)
    heads, codes, width = codebook.shape
    rows = x.reshape(-1, heads, width)  # (N, Q, D)
    indices = torch.empty(len(rows), heads, dtype=torch.int32, device=x.device)
    block = max(1, (SCORES_PER_BLOCK if x.device.type == "cpu" else SCORES_PER_GPU_BLOCK) // codes)
    # exact whatever the process allows elsewhere: TF32 products would find other codes
    with torch.autocast(x.device.type, enabled=False), float32_products("ieee"):
        scaled, half_norms = scale_codes(codebook.to(dtype))
        for head in range(heads):
            transposed = scaled[head].t()
            for start in range(0, len(rows), block):
                part = rows[start : start + block, head].to(dtype)  # (n, D)
                scores = torch.addmm(half_norms[head], part, transposed, alpha=-1)  # (n, V)
                indices[start : start + block, head] = scores.argmin(-1)  # lowest index of a tie
    return indices.view(x.shape[:-1])


def _flat_codes(indices: Tensor, num_codes: int) -> Tensor:
    """Indices (..., Q) as rows of a (Q * V, D) codebook, flattened."""
    heads = indices.shape[-1]
    if heads == 1:
        flat = indices.long()  # index_add_ takes five times as long with int32
    elif indices.is_cpu:
        flat = indices + _first_codes(heads, num_codes)  # int64, as the sum of both dtypes
    else:
        flat = indices + torch.arange(0, heads * num_codes, num_codes, device=indices.device)
    return flat.reshape(-1)


@functools.lru_cache(maxsize=64)
def _first_codes(heads: int, num_codes: int) -> Tensor:
    """Where each head's codes begin, int64 (Q,) on the CPU, made once; nobody writes to it."""
    return torch.arange(0, heads * num_codes, num_codes, device="cpu")


def gather(codebook: Tensor, indices: Tensor) -> Tensor:
    """Codes (..., Q, D) of indices (..., Q)."""
    heads, codes, width = codebook.shape
    rows = codebook.reshape(heads * codes, width)
    return rows.index_select(0, _flat_codes(indices, codes)).view(*indices.shape, width)


def lookup_backward(
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    grad_quantized: Tensor | None,
    grad_distance: Tensor | None,
    need_x: bool,
    need_codebook: bool,
) -> tuple[Tensor, Tensor]:
    """grad_x (..., Q, D) and grad_codebook (Q, V, D), empty where not needed."""
    dtype = accumulation_dtype(x, codebook)
    pull = None  # gradient of the distance in x, and with the other sign in the code
    if grad_distance is not None:
        pull = (x.to(dtype) - gather(codebook, indices).to(dtype)) * (2 * grad_distance.unsqueeze(-1))
    grad_x = x.new_empty(0) if not need_x or pull is None else pull.to(x.dtype)
    if not need_codebook:
        return grad_x, codebook.new_empty(0)
    push = codebook.new_zeros((), dtype=dtype) if grad_quantized is None else grad_quantized.to(dtype)
    if pull is not None:
        push = push - pull
    sums = torch.zeros_like(codebook, dtype=dtype, memory_format=torch.contiguous_format)
    heads, codes, width = codebook.shape
    sums.view(heads * codes, width).index_add_(0, _flat_codes(indices, codes), push.reshape(-1, width))
    return grad_x, sums.to(codebook.dtype)


def statistics(x: Tensor, indices: Tensor, num_codes: int, deterministic: bool) -> tuple[Tensor, Tensor]:
    """counts (Q, V) and sums (Q, V, D); x (..., Q, D), indices (..., Q)."""
    heads, width = x.shape[-2:]
    dtype = accumulation_dtype(x)
    flat = _flat_codes(indices, num_codes)
    values = cast(x, dtype).reshape(-1, width)
    counts = torch.zeros(heads * num_codes, dtype=dtype, device=x.device)
    sums = torch.zeros(heads * num_codes, width, dtype=dtype, device=x.device)
    if deterministic and x.device.type != "cpu":
        # one writer a code: sort the rows by code, sum each run as a difference of running totals in float64
        ordered, order = flat.sort(stable=True)
        edges = torch.searchsorted(ordered, torch.arange(heads * num_codes + 1, device=x.device))
        total = torch.nn.functional.pad(values[order].double().cumsum(0), (0, 0, 1, 0))
        counts = edges.diff().to(dtype)
        sums = (total[edges[1:]] - total[edges[:-1]]).to(dtype)
    else:
        # index_add_ on CPU runs in row order: deterministic already
        counts.index_add_(0, flat, torch.ones_like(flat, dtype=dtype))
        sums.index_add_(0, flat, values)
    return counts.view(heads, num_codes), sums.view(heads, num_codes, width)
