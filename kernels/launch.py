"""The device of a launch: Triton compiles for and launches on the current device, wherever the tensors are."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def on_device(device: torch.device) -> torch.cuda.device:
    """Context in which `device`, of type CUDA (also ROCm), is the current one; the one before returns after it."""
    return torch.cuda.device(device)


def launcher(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorator of functions that launch Triton kernels: their first argument's device is the current one in them.

    Without it tensors on cuda:1 while cuda:0 is current are read through addresses of another device. CPU tensors
    (the interpreter) and tensors of the current device cost one comparison.

    Args:
        function: its first argument is a tensor, or a tuple that begins with one; all others are on the same device.
    """

    @wraps(function)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        first = args[0][0] if isinstance(args[0], tuple) and args[0] else args[0]
        if not isinstance(first, Tensor):
            raise TypeError(f"{function.__qualname__}: expected a tensor as first argument, found {type(first)}")
        if not first.is_cuda or first.get_device() == torch.cuda.current_device():
            return function(*args, **kwargs)
        with on_device(first.device):
            return function(*args, **kwargs)

    return guarded
