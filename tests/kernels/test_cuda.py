"""What only a GPU can show of every op: registration, graphs, streams, autocast, a second device.

The cases are those of first contact (scripts/gpu_contact.py). PyTorch's own kernels and Triton's take turns.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aime.kernels import dispatch

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_contact.py"
specification = importlib.util.spec_from_file_location("gpu_contact", SCRIPT)
assert specification is not None and specification.loader is not None
contact = importlib.util.module_from_spec(specification)
sys.modules["gpu_contact"] = contact  # torch.compile looks its functions' module up
specification.loader.exec_module(contact)

BACKENDS = [
    "torch",
    pytest.param("triton", marks=pytest.mark.skipif(not dispatch.TRITON_INSTALLED, reason="triton is not installed")),
]
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.parametrize("name", list(contact.cases())),
]
DIFFERENTIABLE = {name for name in contact.cases() if name != "vq_statistics"}


def tensors_of(name: str, device: str = "cuda", gradient: bool = False) -> list[Tensor]:
    return [t.to(device).requires_grad_(gradient and t.is_floating_point()) for t in contact.cases()[name][1]]


def results(name: str, tensors: list[Tensor], backend: str) -> list[Tensor]:
    found = contact.cases()[name][0](*tensors, backend=backend)
    return [t for t in (found if isinstance(found, tuple) else (found,)) if isinstance(t, Tensor)]


def loss(outputs: list[Tensor]) -> Tensor:
    return torch.stack([t.float().square().mean() for t in outputs if t.requires_grad]).sum()


def close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    for left, right in zip(found, expected, strict=True):
        error = float((left.cpu().double() - right.cpu().double()).norm())
        assert error <= tolerance * (1 + float(right.double().norm()))


def test_against_the_cpu_with_gradients(name: str, backend: str) -> None:
    operator, tensors = contact.cases()[name]
    line = contact.contact(operator, tensors, backend, "cuda")
    assert line["passed"], line


def test_opcheck(name: str, backend: str) -> None:
    """Schema, fake and autograd registration of every operator that the call meets, with its own arguments."""
    from torch.utils._python_dispatch import TorchDispatchMode

    met: list[tuple[Any, tuple[Any, ...]]] = []

    class Meet(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function.namespace == "aime":
                met.append((function, args))
            return function(*args, **(kwargs or {}))

    with Meet():
        results(name, tensors_of(name), backend)
    for function, arguments in met:
        torch.library.opcheck(function, arguments, test_utils=("test_schema", "test_faketensor"))


def test_compiled_as_one_graph(name: str, backend: str) -> None:
    tensors, operator = tensors_of(name), contact.cases()[name][0]
    torch._dynamo.reset()

    @torch.compile(fullgraph=True)
    def compiled(*arguments: Tensor) -> Any:
        return operator(*arguments, backend=backend)

    found = compiled(*tensors)
    found = [t for t in (found if isinstance(found, tuple) else (found,)) if isinstance(t, Tensor)]
    close(found, results(name, tensors, backend), 1e-4)


def test_under_autocast(name: str, backend: str) -> None:
    """Float32 in, and results near those without autocast: bfloat16 products at worst."""
    expected = results(name, tensors_of(name), backend)
    with torch.autocast("cuda", torch.bfloat16):
        found = results(name, tensors_of(name), backend)
    for left, right in zip(found, expected, strict=True):
        assert left.isfinite().all()
        if left.is_floating_point() and name != "slot_attention":  # whose weights compete: a slot may flip
            close([left], [right], 3e-2)


def test_captured_in_a_cuda_graph(name: str, backend: str) -> None:
    """Forward and backward record without a sync, and the replay reads what stands in the inputs then."""
    tensors = tensors_of(name, gradient=name in DIFFERENTIABLE)
    leaves = [t for t in tensors if t.requires_grad]

    def step() -> list[Tensor]:
        outputs = results(name, tensors, backend)
        gradients = torch.autograd.grad(loss(outputs), leaves, allow_unused=True) if leaves else ()
        return [*outputs, *(t for t in gradients if t is not None)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for tensor in leaves:
            tensor.mul_(0.5)
    graph.replay()
    close([t.detach() for t in captured], [t.detach() for t in step()], 1e-4)


def test_on_a_side_stream(name: str, backend: str) -> None:
    """Launches go to the current stream: work queued behind a long product there is in order with it."""
    expected = results(name, tensors_of(name), backend)
    source = tensors_of(name)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = torch.randn(4096, 4096, device="cuda")
        for _ in range(20):
            late = (late @ late).tanh()
        zero = late.sum().nan_to_num() * 0  # known only after the products
        moved = [t + zero if t.is_floating_point() else t for t in source]
        found = results(name, moved, backend)
    side.synchronize()
    close(found, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_on_a_second_device_while_the_first_is_current(name: str, backend: str) -> None:
    operator, tensors = contact.cases()[name]
    with torch.cuda.device(0):
        line = contact.contact(operator, tensors, backend, "cuda:1")
        assert torch.cuda.current_device() == 0
    assert line["passed"], line
