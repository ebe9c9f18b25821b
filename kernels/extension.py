"""How CPU tensors are handed to the C++ kernels: address, dtype code, sizes, strides; nothing is copied."""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/kernels/strided.hpp

Description = tuple[int, int, tuple[int, ...], tuple[int, ...]]
ABSENT: Description = (0, 0, (), ())


@functools.cache
def load() -> Any:
    """The extension module."""
    return importlib.import_module("aime.kernels._cpu")


def describe(tensor: Tensor | None) -> Description:
    """A tensor as csrc/kernels/module.cpp takes it; the caller keeps it alive."""
    if tensor is None:
        return ABSENT
    return tensor.data_ptr(), DTYPE_CODES[tensor.dtype], tensor.shape, tensor.stride()


def addresses(*tensors: Tensor | None) -> list[int]:
    """Where row-major float32 results are written; 0 for one that is not wanted."""
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def describe_pixels(frames: Tensor) -> Description:
    """Frames of bytes or float32; the kernel that takes them is told which."""
    return frames.data_ptr(), 0, frames.shape, frames.stride()


def describe_mask(mask: Tensor | None) -> Description:
    """A mask of one byte an entry; the kernel that takes it knows that it is no number."""
    if mask is None:
        return ABSENT
    return mask.data_ptr(), 0, mask.shape, mask.stride()
