"""Where the kernel tests run an op: a backend on a device.

Without a GPU, Triton kernels run on CPU tensors through Triton's interpreter (tests/conftest.py chooses it, before
anything imports Triton). With a GPU the same tests run compiled, on CUDA tensors.
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aime.kernels import dispatch

# a machine with a GPU may have nothing but torch, triton and pytest
collect_ignore = [] if importlib.util.find_spec("hypothesis") else ["test_shapes.py"]

BACKENDS = {
    "vq_lookup": ("torch", "cpp", "triton"),
    "vq_statistics": ("torch", "cpp", "triton"),
    "mixture_kl": ("torch", "cpp", "triton"),
    "slot_attention": ("torch", "cpp", "triton"),
    "mixture_logistics": ("torch", "cpp", "triton"),
}


@dataclass(frozen=True)
class Target:
    """Calls an op on CPU tensors with a backend, on the backend's device, and brings the results back."""

    backend: str
    device: str

    def __call__(self, op: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        moved = [self._move(argument, self.device) for argument in arguments]
        moved_options = {name: self._move(option, self.device) for name, option in options.items()}
        return self._move(op(*moved, **moved_options, backend=self.backend), "cpu")

    def _move(self, value: Any, device: str) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, tuple):
            moved = [self._move(item, device) for item in value]
            return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
        return value


@pytest.fixture(autouse=True)
def _quiet_interpreter() -> Iterator[None]:
    """Under the interpreter NumPy warns where a GPU returns NaN or Inf."""
    with np.errstate(all="ignore"):
        yield


def targets(op: str) -> list[Any]:
    """Parameters for `target`: every backend of the op on every device there is; CUDA ones carry the cuda mark."""
    result = []
    on_gpu = torch.cuda.is_available()
    for backend in BACKENDS[op]:
        missing = {
            "triton": not dispatch.TRITON_INSTALLED and "triton is not installed",
            "cpp": not dispatch.EXTENSION_BUILT and "aime.kernels._cpu is not built",
        }.get(backend)
        skip = [pytest.mark.skip(reason=missing)] if missing else []
        if backend != "triton" or not on_gpu:
            name = "triton-interpreted" if backend == "triton" else f"{backend}-cpu"
            result.append(pytest.param(Target(backend, "cpu"), id=name, marks=skip))
        if backend != "cpp" and on_gpu:
            marks = [pytest.mark.cuda, *skip]
            result.append(pytest.param(Target(backend, "cuda"), id=f"{backend}-cuda", marks=marks))
    return result


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`target` runs over the backends of the op the module is named after, or of the one in `op_targets`."""
    if "target" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("op_targets")
        op = mark.args[0] if mark else metafunc.module.__name__.rpartition("test_")[2]
        metafunc.parametrize("target", targets(op))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "op_targets(op): run `target` over the backends of this op")
