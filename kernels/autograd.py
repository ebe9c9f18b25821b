"""One definition of an op's gradient, two faces: the torch.library operator and an autograd.Function."""

from collections.abc import Callable
from typing import Any

import torch


def attach_gradient(op: Any, setup_context: Callable[..., None], backward: Callable[..., Any]) -> type[Any]:
    """Register the gradient with the custom op and return an autograd.Function whose `apply` is the same op."""
    op.register_autograd(backward, setup_context=setup_context)

    def forward(*inputs: Any) -> Any:
        return op(*inputs)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        setup_context(ctx, inputs, output)

    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup),
        "backward": staticmethod(backward),
    }
    return type(f"{op._name}_function", (torch.autograd.Function,), members)
