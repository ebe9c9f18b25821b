"""Operators of the namespace `aime`: one definition, its gradient, and little Python between a call and its kernel.

`torch.library.custom_op` does the same with more of it (docs/kernels/host.md): it looks at every output for aliases of
inputs, and wraps each layer again. Here the dispatcher meets one Python function for autograd and one for the kernel.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

LIBRARY = torch.library.Library("aime", "FRAGMENT")

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
OPERATORS: dict[str, Any] = {}  # by name

# Of every operator, its kernel, filled by `operator`.
_KERNELS: dict[Any, Callable[..., Any]] = {}

# Of every operator, what runs it where a gradient is wanted; filled by `operator` and `attach_gradient`.
_DIFFERENTIABLE: dict[Any, Callable[..., Any]] = {}


def _tensors(arguments: tuple[Any, ...]) -> list[Tensor]:
    """Tensors among arguments, those of lists too."""
    found: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            found.append(argument)
        elif isinstance(argument, (list, tuple)):
            found.extend(item for item in argument if isinstance(item, Tensor))
    return found


def _wants_gradient(arguments: tuple[Any, ...]) -> bool:
    """Whether a tensor among arguments or in their lists requires a gradient; a plain loop is the fastest form."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            if argument.requires_grad:
                return True
        elif isinstance(argument, (list, tuple)) and _wants_gradient(tuple(argument)):
            return True
    return False


def _keep_nothing(_ctx: Any, _inputs: tuple[Any, ...], _output: Any) -> None:
    """Context of a function that cannot be differentiated."""


def _refuse_tangents(name: str, arguments: tuple[Any, ...]) -> None:
    """Raise if an argument carries a tangent: an operator without a rule for it would answer 0."""
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in _tensors(arguments)):
        raise NotImplementedError(
            f"aime::{name}: forward-mode differentiation (torch.func.jvp, jacfwd, hessian, torch.autograd.forward_ad)"
            " is not defined for this operator; use reverse mode (backward, torch.autograd.grad) or the op's reference"
            " in plain PyTorch, aime.kernels.<op>.reference"
        )


def _function(op: Any, name: str, setup_context: Callable[..., None], backward: Callable[..., Any]) -> Any:
    """autograd.Function whose forward pass is the operator below autograd and its preparation for the backward pass.

    One function instead of forward and setup_context: with two, `apply` binds arguments to a signature, which takes
    longer than the rest of the call.
    """
    run = direct(op)

    def forward(ctx: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = run(*inputs)  # no gradients are recorded here
        setup_context(ctx, inputs, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(f"{name}_function", (torch.autograd.Function,), members)


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: the annotated function becomes `torch.ops.aime.<name>`, and its name stands for the operator.

    Until `attach_gradient` says otherwise, the operator has no gradient and says so in the backward pass. Forward-mode
    differentiation is refused.
    """

    def define(kernel: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(kernel, mutates_args=())
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
        op = getattr(torch.ops.aime, name).default

        def no_gradient(ctx: Any, *_: Any) -> None:
            raise RuntimeError(f"aime::{name}: it has no gradient; if this is a backward pass, no second derivative")

        def autograd(*arguments: Any) -> Any:
            if forward_ad._current_level >= 0:
                _refuse_tangents(name, arguments)
            if torch.is_grad_enabled() and _wants_gradient(arguments):
                return _DIFFERENTIABLE[op](*arguments)
            with torch._C._AutoDispatchBelowAutograd():
                return op(*arguments)

        LIBRARY.impl(name, autograd, "Autograd")
        OPERATORS[name] = op
        _KERNELS[op] = kernel
        _DIFFERENTIABLE[op] = _function(op, name, _keep_nothing, no_gradient).apply
        return op

    return define


def watched() -> bool:
    """Whether somebody is to see the operator itself: a compiler, a tracer, a transform, a mode or a profiler."""
    return (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.maybe_current_level() is not None
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    )


def _plain(tensor: Tensor) -> bool:
    """Whether the dispatcher would lead straight to the kernel: no subclass, real memory as it stands."""
    kind = type(tensor)
    return (kind is Tensor or kind is Parameter) and (tensor.is_cpu or tensor.is_cuda) and not tensor.is_neg()


def direct(op: Any) -> Callable[..., Any]:
    """The operator as a function that goes past the dispatcher where nobody watches it and all tensors are plain.

    Two trips through the dispatcher into Python take 5 us, as much as the smallest kernels. Results and gradients are
    those of the operator; lists of tensors go through it.
    """
    kernel = _KERNELS[op]

    def call(*arguments: Any) -> Any:
        if watched():
            return op(*arguments)
        wants_gradient = False
        for argument in arguments:
            if isinstance(argument, Tensor):
                if not _plain(argument):
                    return op(*arguments)
                wants_gradient = wants_gradient or argument.requires_grad
            elif isinstance(argument, (list, tuple)):
                return op(*arguments)
        if wants_gradient and torch.is_grad_enabled():
            return _DIFFERENTIABLE[op](*arguments)
        return kernel(*arguments)

    return call


def fake(op: Any) -> Callable[[Kernel], Kernel]:
    """Decorator: the function makes empty results of the operator's shapes and dtypes, for tensors without data."""

    def register(function: Kernel) -> Kernel:
        torch.library.register_fake(op)(function)
        return function

    return register


def attach_gradient(op: Any, setup_context: Callable[..., None], backward: Callable[..., Any]) -> type[Any]:
    """Give the operator its gradient; returns an autograd.Function whose `apply` is the same op.

    Args:
        op: from `operator`.
        setup_context: (ctx, inputs, output) keeps what the backward pass needs, as in torch.autograd.Function.
        backward: (ctx, *gradients of the outputs) to a gradient or None for every argument.
    """
    name = op._schema.name.removeprefix("aime::")
    _DIFFERENTIABLE[op] = _function(op, name, setup_context, backward).apply

    def forward(*inputs: Any) -> Any:
        return op(*inputs)

    # for callers, in the form that the transforms of torch.func take
    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
    }
    return type(f"{name}_function", (torch.autograd.Function,), members)
