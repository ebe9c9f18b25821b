"""vq_lookup and vq_statistics: nearest code, gather, distance; rows and sums per code."""

import functools
import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..autograd import attach_gradient, direct, fake, operator
from ..dispatch import Obstacle, choose_backend, extension_obstacle, triton_obstacle
from ..shapes import accumulation_dtype, alike, check_floating, check_shape, constant
from . import cpp, cublas, eager

PRECISIONS = ("exact", "fast")
TRITON_WIDTHS = (4, 512)


class VQLookup(NamedTuple):
    """quantized (..., Q, D) in the codebook's dtype, indices (..., Q) int32, distance (..., Q) float32 (or float64)."""

    quantized: Tensor
    indices: Tensor
    distance: Tensor


@functools.cache
def _triton() -> Any:
    return importlib.import_module("aime.kernels.vq_lookup.triton")


@operator("vq_lookup")
def lookup_op(x: Tensor, codebook: Tensor, precision: str, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """The op itself on x (..., Q, D) and codebook (Q, V, D); `vq_lookup` checks and documents."""
    if backend == "triton":
        return _triton().lookup(x, codebook, precision)  # type: ignore[no-any-return]
    if backend == "cpp":
        return cpp.lookup(x, codebook)
    indices = cublas.assign(x, codebook, precision) if backend == "cublas" else eager.assign(x, codebook)
    quantized = eager.gather(codebook, indices)
    dtype = accumulation_dtype(x, codebook)
    return quantized, indices, (x.to(dtype) - quantized.to(dtype)).square().sum(-1)


@fake(lookup_op)
def _(x: Tensor, codebook: Tensor, precision: str, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty(x.shape, dtype=codebook.dtype, device=x.device),
        torch.empty(x.shape[:-1], dtype=torch.int32, device=x.device),
        torch.empty(x.shape[:-1], dtype=accumulation_dtype(x, codebook), device=x.device),
    )


@operator("vq_lookup_backward")
def lookup_backward_op(
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    grad_quantized: Tensor | None,
    grad_distance: Tensor | None,
    need_x: bool,
    need_codebook: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and codebook, empty where not needed: codes are gathered again, nothing but indices was saved."""
    arguments = (x, codebook, indices, grad_quantized, grad_distance, need_x, need_codebook)
    if backend == "triton":
        return _triton().lookup_backward(*arguments)  # type: ignore[no-any-return]
    return eager.lookup_backward(*arguments)


@fake(lookup_backward_op)
def _(
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    grad_quantized: Tensor | None,
    grad_distance: Tensor | None,
    need_x: bool,
    need_codebook: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    grad_x = torch.empty(x.shape if need_x else (0,), dtype=x.dtype, device=x.device)
    return grad_x, torch.empty(codebook.shape if need_codebook else (0,), dtype=codebook.dtype, device=x.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, codebook, _, backend = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, codebook, output[1])
    ctx.backend = backend


def _backward(ctx: Any, grad_quantized: Tensor | None, _: None, grad_distance: Tensor | None) -> tuple[Any, ...]:
    x, codebook, indices = ctx.saved_tensors
    need_x = ctx.needs_input_grad[0] and grad_distance is not None
    need_codebook = ctx.needs_input_grad[1] and (grad_distance is not None or grad_quantized is not None)
    grad_x, grad_codebook = look_up_backward(
        x, codebook, indices, grad_quantized, grad_distance, need_x, need_codebook, ctx.backend
    )
    return grad_x if need_x else None, grad_codebook if need_codebook else None, None, None


VQLookupFunction = attach_gradient(lookup_op, _setup_context, _backward)  # apply(x, codebook, precision, backend)
look_up, look_up_backward = direct(lookup_op), direct(lookup_backward_op)


def vq_lookup(x: Tensor, codebook: Tensor, *, precision: str = "exact", backend: str | None = None) -> VQLookup:
    """Replace every vector by the nearest code of its codebook.

    Args:
        x: (..., Q, D) with a codebook (Q, V, D), or (..., D) with a codebook (V, D); any leading axes, any strides.
        codebook: (Q, V, D) one book a head, or (V, D) for no head axis at all.
        precision: "exact" finds the same index as float64 wherever the float64 gap to the runner-up exceeds float32
            rounding of the scores |c|^2/2 - x.c; "fast" may use bfloat16 or TF32 products.
        backend: None, "torch", "cpp" (CPU), "triton" (GPU; D in 4..512) or "cublas" (NVIDIA GPU, float32): blocks of
            scores by cuBLAS on tensor cores, then argmin.

    Returns:
        VQLookup(quantized, indices, distance); without a head axis in the codebook there is none in the results. Ties
        go to the lowest index. `quantized` is differentiable in the codebook (not in x: add your own straight-through),
        `distance` = |x - quantized|^2 in both, Inf or 0 where float32 ends. A row with NaN or Inf gets some index in
        range and a NaN or Inf distance. A code with NaN or Inf is nobody's nearest; where no code of a head is finite,
        every row gets index 0. Scales from 1e-33 to float32's end are told apart (bfloat16 the same; float16 all); in
        one codebook, codes 1e18 times smaller than the largest count as zeros.

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
    leading = x.dim() - (1 if headless else 2)
    if leading < 0 or x.shape[-1] != width or (not headless and x.shape[-2] != heads):
        wanted = f"(..., D={width})" if headless else f"(..., Q={heads}, D={width})"
        raise ValueError(f"vq_lookup: x: expected shape {wanted}, found {tuple(x.shape)}")
    rows = x.unsqueeze(-2) if headless else x  # (..., Q, D)
    chosen = choose_backend("vq_lookup", backend, x.device.type, _lookup_obstacles(rows, books), width)
    quantized, indices, distance = look_up(rows, books, precision, chosen)
    if headless:
        return VQLookup(quantized.squeeze(-2), indices.squeeze(-1), distance.squeeze(-1))
    return VQLookup(quantized, indices, distance)


def _triton_obstacle(*tensors: Tensor) -> str | None:
    (low, high), width = TRITON_WIDTHS, tensors[0].shape[-1]
    beyond = None if low <= width <= high else f"it takes D from {low} to {high}, found {width}"
    return triton_obstacle(*tensors) or beyond


def _lookup_obstacles(x: Tensor, codebook: Tensor) -> dict[str, Obstacle]:
    return {
        "torch": None,
        "cpp": lambda: extension_obstacle(x, codebook),
        "triton": lambda: _triton_obstacle(x, codebook),
        "cublas": lambda: cublas.obstacle(x, codebook),
    }


@operator("vq_statistics")
def statistics_op(
    x: Tensor, indices: Tensor, num_codes: int, deterministic: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """The op itself; `vq_statistics` checks and documents, but for the values: here a compiled graph passes too."""
    if backend == "cpp":
        return cpp.statistics(x, indices, num_codes)  # it checks the values itself
    if indices.is_cpu and indices.numel():
        low, high = map(int, indices.aminmax())
        if low < 0 or high >= num_codes:
            found = f"found {low} to {high}"
            raise ValueError(f"vq_statistics: indices: expected 0 to {num_codes - 1}, {found}")
    if backend == "triton":
        return _triton().statistics(x, indices, num_codes, deterministic)  # type: ignore[no-any-return]
    return eager.statistics(x, indices, num_codes, deterministic)


@fake(statistics_op)
def _(x: Tensor, indices: Tensor, num_codes: int, deterministic: bool, backend: str) -> tuple[Tensor, Tensor]:
    heads, width = x.shape[-2:]
    dtype = accumulation_dtype(x)
    counts = torch.empty(heads, num_codes, dtype=dtype, device=x.device)
    return counts, torch.empty(heads, num_codes, width, dtype=dtype, device=x.device)


add_up = direct(statistics_op)


def vq_statistics(
    x: Tensor, indices: Tensor, num_codes: int, *, deterministic: bool = False, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Rows per code and their sum, for EMA codebooks and k-means.

    Args:
        x: (..., Q, D), always with a head axis.
        indices: (..., Q) integers in [0, num_codes); checked on a CPU, where it needs no synchronisation.
        num_codes: V.
        deterministic: one writer a code, so that the sums are the same bits in every run; also switched on by
            `torch.use_deterministic_algorithms(True)`.
        backend: None, "torch", "cpp" (CPU, not float64) or "triton" (GPU; D in 4..512).

    Returns:
        counts (Q, V) and sums (Q, V, D), float32 (float64 for float64 x), without gradient.

    Raises:
        ValueError: shapes that do not fit, indices out of range. TypeError: indices that are not integers.
        RuntimeError: a backend that cannot run.
    """
    op = "vq_statistics"
    if not alike(x):
        check_floating(op, x=x)
    if x.dim() < 2:
        raise ValueError(f"{op}: x: expected shape (..., Q, D), found {tuple(x.shape)}")
    if indices.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: indices: expected int32 or int64, found {indices.dtype}")
    if num_codes < 1:
        raise ValueError(f"{op}: num_codes: expected at least 1, found {num_codes}")
    if indices.shape != x.shape[:-1]:
        leading = {f"axis {axis}": size for axis, size in enumerate(x.shape[:-1])}
        check_shape(op, "indices", indices, tuple(leading), leading)
    if indices.device != x.device:
        raise ValueError(f"{op}: indices is on {indices.device}, but x is on {x.device}")
    obstacles: dict[str, Obstacle] = {
        "torch": None,
        "cpp": lambda: extension_obstacle(x),
        "triton": lambda: _triton_obstacle(x),
    }
    chosen = choose_backend(op, backend, x.device.type, obstacles)
    ordered = deterministic or torch.are_deterministic_algorithms_enabled()
    counts, sums = add_up(constant(x), indices, num_codes, ordered, chosen)
    return counts, sums
