"""A training step and a rehearsal never ask the device for a value: the host runs ahead of a GPU.

Counted on CPU tensors, on PyTorch's own kernels: what would wait on CUDA is an operator of a known list, or a method of
Tensor that hands a value to Python (also inside of operators, which a dispatch mode does not look into).
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aime.kernels import use_backend
from aime.training.stepping import make_capturable
from tests.world_model.conftest import sequences, small_model
from tests.world_model.test_model import remembered

# the value decides a shape or goes to the host; linear algebra that reads its own error code
WAITING = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "argwhere", "masked_select"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount", "histc"),
    *("_linalg_eigh", "_linalg_svd", "linalg_lstsq", "linalg_eig", "cholesky", "linalg_qr"),
    "lift_fresh",  # torch.tensor(...) of Python's numbers: made on the host and copied, which a graph cannot hold
}
METHODS = ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__")


def place() -> str:
    """File and line of the library that is running."""
    frames = [frame for frame in traceback.extract_stack() if "/tests/" not in frame.filename]
    ours = [frame for frame in frames if "/aime/" in frame.filename or "/kernels/" in frame.filename]
    frame = (ours or frames)[-1]
    return f"{frame.filename}:{frame.lineno} {frame.line}"


class Watch(TorchDispatchMode):
    """Collects operators that would wait."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        by_mask = name in {"index", "index_put", "index_put_"} and any(
            index is not None and index.dtype in {torch.bool, torch.uint8} for index in args[1]
        )
        unsized = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in WAITING or by_mask or unsized:
            self.found.append(f"{name} at {place()}")
        return function(*args, **(kwargs or {}))


@contextmanager
def host_syncs() -> Iterator[list[str]]:
    """What would have waited inside the block."""
    found: list[str] = []
    with ExitStack() as stack:
        for name in METHODS:
            original = getattr(Tensor, name)

            def method(self: Tensor, *args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
                found.append(f"Tensor.{_name} at {place()}")
                return _original(self, *args, **kwargs)

            stack.enter_context(mock.patch.object(Tensor, name, method))
        stack.enter_context(Watch(found))
        yield found


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x.sum()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: bool((x > 0).any()),
        lambda x: x.sum().item(),
        lambda x: torch.equal(x, x),
        lambda x: x.repeat_interleave(torch.tensor([1, 2, 1])),
        lambda x: x * torch.tensor([1.0, 2.0, 3.0]),
    ],
)
def test_the_watch_sees(wait: Any) -> None:
    x = torch.tensor([1.0, -1.0, 2.0])
    with host_syncs() as found:
        wait(x)
    assert found


VARIANTS = {
    "gaussian": {"likelihood": "gaussian"},
    "mixture of logistics": {"likelihood": "mixture_of_logistics", "likelihood_components": 2},
    "critics": {"adversarial": True, "critic_steps": 2, "decoded_share": 0.7},
    "shares": {"decoded_share": 0.5, "perceiver_share": 0.5, "attention_share": 0.5},
}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *((variant, "rgb", {"use_adaptive_steps": True, "update_interval": 2}) for variant in VARIANTS),
    ("gaussian", "sum", {}),
]


@pytest.mark.parametrize(("variant", "balancer", "options"), CASES)
def test_a_training_step_with_rehearsal_never_waits(variant: str, balancer: str, options: dict[str, Any]) -> None:
    """Forward and backward passes, balancer, clipping, optimizers, codebook, teacher, and metrics."""
    model = small_model(gram_frames=2, **VARIANTS[variant]).train()
    model.configure_optimizer(1e-4, 1e-5, balancer, **options)
    make_capturable([model.optimizer, *([] if model.opponent is None else [model.opponent.optimizer])])
    generator = torch.Generator().manual_seed(0)
    batch, memory, beta = sequences(3).all, remembered(4), torch.tensor(0.5)

    def step() -> None:
        model.training_step_sequence(*batch, beta=beta, generator=generator)
        model.rehearse(memory, 2, 2, generator=generator)

    with use_backend("torch"):
        for _ in range(2):  # which task reaches which parameter is learnt in the first steps
            step()
        with host_syncs() as seen:
            step()
    found = [line for line in seen if "indices.aminmax()" not in line]  # vq_statistics looks at CPU tensors alone
    assert not found, "\n".join(sorted(set(found)))
