"""vq_lookup and vq_statistics: nearest code, gather, distance; rows and sums per code."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch import choose_backend
from ..shapes import check_floating, check_shape
from . import eager


class VQLookup(NamedTuple):
    """quantized (..., Q, D) in the codebook's dtype, indices (..., Q) int32, distance (..., Q) float32 (or float64)."""

    quantized: Tensor
    indices: Tensor
    distance: Tensor


PRECISIONS = ("exact", "fast")


def vq_lookup(x: Tensor, codebook: Tensor, *, precision: str = "exact", backend: str | None = None) -> VQLookup:
    """Replace every vector by the nearest code of its codebook.

    Args:
        x: (..., Q, D) with a codebook (Q, V, D), or (..., D) with a codebook (V, D); any leading axes, any strides.
        codebook: (Q, V, D) one book a head, or (V, D) for no head axis at all.
        precision: "exact" finds the same index as float64 wherever the float64 gap to the runner-up exceeds float32
            rounding of the scores |c|^2/2 - x.c; "fast" may use bfloat16 or TF32 products.
        backend: None, "torch".

    Returns:
        VQLookup(quantized, indices, distance); without a head axis in the codebook there is none in the results. Ties go
        to the lowest index. `quantized` is differentiable in the codebook (not in x: add your own straight-through),
        `distance` = |x - quantized|^2 in both. A row with NaN or Inf gets some index in range and a NaN or Inf distance.

    Raises:
        ValueError: shapes that do not fit, an empty codebook, an unknown precision or backend.
        TypeError: a dtype that is not floating.
        RuntimeError: a backend that cannot run.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"vq_lookup: precision: expected one of {PRECISIONS}, found {precision!r}")
    check_floating("vq_lookup", x=x, codebook=codebook)
    if codebook.dim() not in (2, 3):
        found = tuple(codebook.shape)
        raise ValueError(f"vq_lookup: codebook: expected shape (Q, V, D) or (V, D), found {found}")
    headless = codebook.dim() == 2
    books = codebook.unsqueeze(0) if headless else codebook
    heads, codes, width = books.shape
    if codes == 0 or width == 0:
        raise ValueError(f"vq_lookup: codebook: expected at least one code and D >= 1, found {tuple(codebook.shape)}")
    trailing = x.dim() - (1 if headless else 2)
    axes = ("...",) * trailing + (("D",) if headless else ("Q", "D"))
    if trailing < 0 or x.shape[-1] != width or (not headless and x.shape[-2] != heads):
        wanted = f"(..., D={width})" if headless else f"(..., Q={heads}, D={width})"
        raise ValueError(f"vq_lookup: x: expected shape {wanted}, found {tuple(x.shape)} for axes ({', '.join(axes)})")
    leading = x.shape[:trailing]
    rows = x.reshape(-1, heads, width)  # (N, Q, D)
    choose_backend("vq_lookup", backend, {"torch": None}, "torch")
    indices = eager.assign(rows, books)
    quantized, distance = eager.lookup(rows, books, indices)
    shape = leading if headless else (*leading, heads)
    return VQLookup(quantized.reshape(*shape, width), indices.reshape(shape), distance.reshape(shape))


def vq_statistics(
    x: Tensor, indices: Tensor, num_codes: int, *, deterministic: bool = False, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Rows per code and their sum, for EMA codebooks and k-means.

    Args:
        x: (..., Q, D), always with a head axis.
        indices: (..., Q) integers in [0, num_codes).
        num_codes: V.
        deterministic: one writer a code, so that the sums are the same bits in every run; also switched on by
            `torch.use_deterministic_algorithms(True)`.
        backend: None, "torch".

    Returns:
        counts (Q, V) and sums (Q, V, D), float32 (float64 for float64 x), without gradient.

    Raises:
        ValueError: shapes that do not fit. TypeError: indices that are not integers. RuntimeError: a backend that cannot run.
    """
    check_floating("vq_statistics", x=x)
    if x.dim() < 2:
        raise ValueError(f"vq_statistics: x: expected shape (..., Q, D), found {tuple(x.shape)}")
    if indices.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"vq_statistics: indices: expected int32 or int64, found {indices.dtype}")
    if num_codes < 1:
        raise ValueError(f"vq_statistics: num_codes: expected at least 1, found {num_codes}")
    heads, width = x.shape[-2:]
    rows = x.reshape(-1, heads, width)
    leading = {f"axis {axis}": size for axis, size in enumerate(x.shape[:-1])}
    check_shape("vq_statistics", "indices", indices, tuple(leading), leading)
    choose_backend("vq_statistics", backend, {"torch": None}, "torch")
    ordered = deterministic or torch.are_deterministic_algorithms_enabled()
    with torch.no_grad():
        return eager.statistics(rows, indices.reshape(-1, heads), num_codes, ordered)
