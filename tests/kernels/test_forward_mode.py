"""Forward-mode differentiation: right where PyTorch's own kernels carry it, else refused, never a silent 0."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from aime.kernels import (
    SlotAttentionWeights,
    dispatch,
    mixture_kl,
    mixture_log_prob,
    mixture_logistics_nll,
    slot_attention,
    stick_log_weights,
    vq_lookup,
)
from aime.kernels.autograd import OPERATORS
from aime.kernels.mixture_logistics.reference import mixture_logistics_nll_reference
from aime.kernels.slot_attention.reference import slot_attention_reference
from aime.kernels.vq_lookup.op import VQLookupFunction, vq_statistics

# PyTorch compiles its rules for forward mode by torch.jit.script when they are first needed
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

BACKENDS = ["torch"]
BACKENDS += ["triton"] if dispatch.TRITON_INSTALLED and dispatch.TRITON_INTERPRETED else []
BACKENDS += ["cpp"] if dispatch.EXTENSION_BUILT else []


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def slot_weights(channels: int, width: int) -> SlotAttentionWeights:
    shapes: list[tuple[int, ...]] = [(channels,), (channels,), (width,), (width,)]
    shapes += [(width, width), (width, channels), (width, channels), (3 * width, width), (3 * width, width)]
    shapes += [(3 * width,), (3 * width,), (width,), (width,), (5, width), (5,), (width, 5), (width,)]
    return SlotAttentionWeights(*(0.3 * normal(*shape) for shape in shapes))


CODEBOOK, LOG_PI, MEANS, NOISE = normal(2, 7, 8), normal(3, 5), normal(3, 5, 4), normal(2, 3, 4)
WEIGHTS, SLOTS = slot_weights(4, 8), normal(2, 3, 8)
IMAGE, LOGITS = normal(2, 3, 2, 2).clamp(-1, 1), normal(2, 3, 2, 2, seed=1)
PARAMETERS = [normal(2, 3, 3, 2, 2, seed=seed) for seed in range(2)]

# by op, a function of one tensor (and the backend), and that tensor
CALLS: dict[str, tuple[Callable[..., Any], Tensor]] = {
    "vq_lookup": (lambda x, b: vq_lookup(x, CODEBOOK, backend=b).distance, normal(6, 2, 8)),
    "stick_log_weights": (lambda a, b: stick_log_weights(a, a, a.detach().sigmoid(), backend=b)[0], normal(3, 4)),
    "mixture_log_prob": (lambda z, b: mixture_log_prob(z, LOG_PI, MEANS, MEANS, backend=b), NOISE),
    "mixture_kl": (lambda q, b: mixture_kl(q, q, LOG_PI, MEANS, MEANS, NOISE, backend=b), normal(3, 4)),
    "slot_attention": (lambda x, b: slot_attention(x, SLOTS, WEIGHTS, 2, backend=b)[0], normal(2, 9, 4)),
    "mixture_logistics_nll": (
        lambda m, b: mixture_logistics_nll(IMAGE, LOGITS, m, *PARAMETERS, backend=b)[0],
        normal(2, 3, 3, 2, 2),
    ),
}
BY_PYTORCH = {("slot_attention", "torch"), ("mixture_logistics_nll", "torch")}  # no operator of ours in between


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", CALLS)
def test_ops_refuse_tangents(op: str, backend: str) -> None:
    if (op, backend) in BY_PYTORCH:
        pytest.skip("differentiated by PyTorch, see below")
    function, point = CALLS[op]
    with pytest.raises(NotImplementedError, match="forward-mode differentiation .* is not defined .*reference"):
        torch.func.jvp(lambda x: function(x, backend), (point,), (torch.ones_like(point),))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode differentiation"):
        function(forward_ad.make_dual(point, torch.ones_like(point)), backend)
    with forward_ad.dual_level():  # inputs without a tangent are welcome inside
        torch.testing.assert_close(function(point, backend), function(point.clone(), backend))


def test_tangents_go_through_pytorchs_kernels() -> None:
    point = normal(2, 9, 4).double()
    slots, weights = SLOTS.double(), SlotAttentionWeights(*(w.double() for w in WEIGHTS if w is not None))
    ours, reference = (
        torch.func.jvp(lambda x: function(x, slots, weights, 2)[0], (point,), (torch.ones_like(point),))[1]  # noqa: B023
        for function in (slot_attention, slot_attention_reference)
    )
    torch.testing.assert_close(ours, reference)
    image, logits, means, *others = (t.double() for t in (IMAGE, LOGITS, normal(2, 3, 3, 2, 2), *PARAMETERS))
    ours, reference = (
        torch.func.jvp(lambda m: function(image, logits, m, *others)[0], (means,), (torch.ones_like(means),))[1]  # noqa: B023
        for function in (mixture_logistics_nll, mixture_logistics_nll_reference)
    )
    torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_operators_refuse_tangents(name: str) -> None:
    """Every operator there is, the backward passes included, before it looks at anything else."""
    values = {"Tensor": normal(2), "List[Tensor]": [normal(2)], "int": 1, "float": 1.0, "bool": True, "str": "torch"}
    values["List[bool]"] = [True]
    op = OPERATORS[name]
    arguments = [
        values[str(a.type).removeprefix("Optional[").rstrip("]") + "]" * ("List" in str(a.type))]
        for a in op._schema.arguments
    ]
    tensors = [index for index, argument in enumerate(op._schema.arguments) if "Tensor" in str(argument.type)]
    assert tensors
    for index in tensors:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(normal(2), normal(2))
            given = [*arguments]
            given[index] = [dual] if isinstance(given[index], list) else dual
            with pytest.raises(NotImplementedError, match=f"aime::{name}: forward-mode"):
                op(*given)


def test_autograd_function_refuses_tangents() -> None:
    with pytest.raises(RuntimeError, match="jvp"):
        torch.func.jvp(lambda x: VQLookupFunction.apply(x, CODEBOOK, "exact", "torch")[2], *[(normal(6, 2, 8),)] * 2)


def test_statistics_have_no_tangent() -> None:
    """Counts and sums are detached, as documented, in both modes."""
    x, indices = normal(6, 2, 8), torch.zeros(6, 2, dtype=torch.int32)
    with forward_ad.dual_level():
        _, sums = vq_statistics(forward_ad.make_dual(x, torch.ones_like(x)), indices, 7)
        assert forward_ad.unpack_dual(sums).tangent is None


def test_second_derivatives_are_refused() -> None:
    x, codebook = normal(6, 2, 8), CODEBOOK.clone().requires_grad_()
    distance = vq_lookup(x, codebook).distance.sum()
    (gradient,) = torch.autograd.grad(distance, codebook, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()
