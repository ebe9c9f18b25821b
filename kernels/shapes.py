"""Shape, dtype and device checks whose messages name the axes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_shape(op: str, name: str, tensor: Tensor, axes: Sequence[str], sizes: dict[str, int]) -> None:
    """Match a tensor against named axes; axes met for the first time are added to `sizes`.

    >>> sizes = {"N": 4}
    >>> check_shape("mixture_kl", "means", torch.zeros(4, 3, 2), ("N", "K", "D"), sizes)
    >>> sizes
    {'N': 4, 'K': 3, 'D': 2}

    Raises:
        ValueError: another number of axes, or an axis of another size; names expected and found.
    """
    found = tuple(tensor.shape)
    if len(found) == len(axes):
        wrong = None
        for axis, size in zip(axes, found, strict=True):
            if sizes.get(axis, size) != size:
                wrong = [axis for axis, size in zip(axes, found, strict=True) if sizes.get(axis, size) != size]
                break
        if wrong is None:
            sizes.update(zip(axes, found, strict=True))
            return
        where = "; " + ", ".join(f"axis {axis} is {found[axes.index(axis)]}, expected {sizes[axis]}" for axis in wrong)
    else:
        where = f"; expected {len(axes)} axes, found {len(found)}"
    expected = ", ".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes)
    raise ValueError(f"{op}: {name}: expected shape ({expected}), found {found}{where}")


def check_floating(op: str, **tensors: Tensor) -> None:
    """Require floating-point tensors on one device.

    Raises:
        TypeError: no tensor, or a dtype other than float32, bfloat16, float16 or float64.
        ValueError: tensors on different devices.
    """
    first: tuple[str, Tensor] | None = None
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name}: expected a tensor, found {type(tensor).__name__}")
        if tensor.dtype not in FLOATING:
            raise TypeError(f"{op}: {name}: expected float32, bfloat16, float16 or float64, found {tensor.dtype}")
        if first is None:
            first = (name, tensor)
        elif tensor.device != first[1].device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, but {first[0]} is on {first[1].device}")


def check_pixels(op: str, frames: Tensor, mean: Tensor, factor: Tensor, image: tuple[int, int, int]) -> None:
    """Require frames of bytes or numbers, and mean and factor in a wide dtype that broadcast to an image (C, H, W).

    Raises:
        TypeError: frames neither uint8 nor floating point; mean or factor neither float32 nor float64.
        ValueError: another shape, or tensors on different devices.
    """
    if frames.dtype != torch.uint8 and frames.dtype not in FLOATING:
        raise TypeError(f"{op}: frames: expected uint8 or floating point, found {frames.dtype}")
    for name, tensor in (("mean", mean), ("factor", factor)):
        if tensor.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{op}: {name}: expected float32 or float64, found {tensor.dtype}")
        if tensor.device != frames.device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, but frames is on {frames.device}")
        fits = all(size in (1, full) for size, full in zip(reversed(tensor.shape), reversed(image), strict=False))
        if tensor.dim() > 3 or not fits:
            raise ValueError(f"{op}: {name}: expected to broadcast to (C, H, W) {image}, found {tuple(tensor.shape)}")


def alike(*tensors: object) -> bool:
    """Whether all are tensors of one floating dtype on one device: what nearly every call brings, found out quickly."""
    first = tensors[0]
    if not isinstance(first, Tensor):
        return False
    dtype, device = first.dtype, first.device
    if dtype not in FLOATING:
        return False
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or tensor.dtype != dtype or tensor.device != device:
            return False
    return True


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any input is float64, else float32: what densities and distances are computed in."""
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`; itself, without a call into PyTorch, where it has it."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def constant(tensor: Tensor) -> Tensor:
    """The tensor without gradient or tangent; itself, without a call into PyTorch, where it can have none."""
    return tensor.detach() if tensor.requires_grad or forward_ad._current_level >= 0 else tensor
