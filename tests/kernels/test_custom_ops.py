"""What PyTorch demands of its operators, for every op and backend: opcheck, and torch.compile without a graph break."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aime.kernels import (
    autograd,
    dispatch,
    mixture_kl,
    mixture_log_prob,
    mixture_logistics_nll,
    slot_attention,
    stick_log_weights,
    vq_lookup,
    vq_statistics,
)
from aime.kernels.mixture_kl import operators as mixture
from aime.kernels.mixture_logistics.operators import nll_op
from aime.kernels.slot_attention import SlotAttentionWeights
from aime.kernels.slot_attention.cpp_operator import SlotAttentionCppFunction, slot_attention_cpp_op
from aime.kernels.slot_attention.fused_operator import SlotAttentionFunction, slot_attention_op
from aime.kernels.vq_lookup.op import VQLookupFunction, lookup_backward_op, lookup_op, statistics_op

BACKENDS = ["torch"]
BACKENDS += ["triton"] if dispatch.TRITON_INSTALLED and dispatch.TRITON_INTERPRETED else []
CPU_BACKENDS = [*BACKENDS, *(["cpp"] if dispatch.EXTENSION_BUILT else [])]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def same_when_compiled(function: Callable[..., Tensor], *leaves: Tensor) -> None:
    """Value and gradients of a scalar function, eager and compiled as one graph."""
    results = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        fresh = [leaf.clone().requires_grad_() for leaf in leaves]
        loss = call(*fresh)
        loss.backward()
        results.append([loss.detach(), *(leaf.grad for leaf in fresh)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_vq_lookup_is_a_proper_operator(backend: str) -> None:
    x, codebook = normal(3, 5, 2, 8).requires_grad_(), normal(2, 7, 8).requires_grad_()
    torch.library.opcheck(lookup_op, (x, codebook, "exact", backend))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_vq_backward_and_statistics_are_proper_operators(backend: str) -> None:
    x, codebook = normal(6, 2, 8), normal(2, 7, 8)
    indices = torch.zeros(6, 2, dtype=torch.int32)
    torch.library.opcheck(lookup_backward_op, (x, codebook, indices, None, normal(6, 2), True, True, backend))
    torch.library.opcheck(statistics_op, (x, indices, 7, False, backend))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_vq_lookup_compiles(backend: str) -> None:
    def loss(x: Tensor, codebook: Tensor) -> Tensor:
        result = vq_lookup(x * 1.5, codebook, backend=backend)
        counts, sums = vq_statistics(x, result.indices, 7, backend="torch")
        return result.quantized.sin().sum() + result.distance.sum() + (counts.sum() + sums.sum()).detach()

    same_when_compiled(loss, normal(4, 3, 2, 8), normal(2, 7, 8))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_autograd_function_equals_the_op(backend: str) -> None:
    gradients: list[Any] = []
    for call in (VQLookupFunction.apply, lookup_op):
        x, codebook = normal(6, 2, 8).requires_grad_(), normal(2, 7, 8).requires_grad_()
        quantized, _, distance = call(x, codebook, "exact", backend)
        (quantized.sin().sum() + distance.sum()).backward()
        gradients.append((x.grad, codebook.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1])


def test_vq_gradcheck() -> None:
    x, codebook = normal(5, 2, 4).double().requires_grad_(), normal(2, 6, 4).double().requires_grad_()

    def op(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        result = vq_lookup(x, codebook, backend="torch")
        return result.quantized, result.distance

    assert torch.autograd.gradcheck(op, (x, codebook))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_mixture_operators_are_proper(backend: str) -> None:
    log_a, log_b, u = normal(3, 4).requires_grad_(), normal(3, 4).requires_grad_(), torch.full((3, 4), 0.3)
    torch.library.opcheck(mixture.sticks_op, (log_a, log_b, u, backend))
    z, log_pi, means, log_scales = normal(2, 3, 4), normal(3, 5), normal(3, 5, 4), normal(3, 5, 4)
    leaves = [tensor.requires_grad_() for tensor in (z, log_pi, means, log_scales)]
    torch.library.opcheck(mixture.log_prob_op, (*leaves, backend))
    torch.library.opcheck(mixture.log_joint_op, (*leaves, backend))
    q = [normal(3, 4).requires_grad_(), normal(3, 4).requires_grad_()]
    torch.library.opcheck(mixture.kl_op, (*q, *leaves[1:], normal(2, 3, 4), backend))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_mixture_compiles(backend: str) -> None:
    u, eps = torch.full((3, 4), 0.3), normal(2, 3, 4)

    def loss(log_a: Tensor, log_b: Tensor, means: Tensor, log_scales: Tensor, mean_q: Tensor) -> Tensor:
        log_pi, log_v, log_q = stick_log_weights(log_a, log_b, u, backend=backend)
        kl = mixture_kl(mean_q, mean_q * 0.1, log_pi, means, log_scales, eps, backend=backend)
        density, responsibilities = mixture_log_prob(
            eps * mean_q, log_pi, means, log_scales, return_responsibilities=True, backend=backend
        )
        return kl.sum() + density.sum() + responsibilities[..., 0].sum() + log_v.sin().sum() + log_q.sum()

    same_when_compiled(loss, normal(3, 4), normal(3, 4), normal(3, 5, 4), 0.3 * normal(3, 5, 4), normal(3, 4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixture_gradcheck(backend: str) -> None:
    """float64, on the interpreted kernels too."""
    double = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(0)}
    log_a, log_b = (torch.randn(2, 3, **double).requires_grad_() for _ in range(2))
    u = torch.rand(2, 3, **double)

    def sticks(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return stick_log_weights(a, b, u, backend=backend)

    assert torch.autograd.gradcheck(sticks, (log_a, log_b))
    q, log_pi = (torch.randn(2, size, **double).requires_grad_() for size in (4, 3))
    means, log_scales = (torch.randn(2, 3, 4, **double).requires_grad_() for _ in range(2))
    eps = torch.randn(2, 2, 4, **double)

    def kl(*tensors: Tensor) -> Tensor:
        return mixture_kl(tensors[0], 0.2 * tensors[0], *tensors[1:], eps, backend=backend)

    assert torch.autograd.gradcheck(kl, (q, log_pi, means, log_scales), fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda *t: mixture_log_prob(*t, backend=backend),
        (eps.requires_grad_(), log_pi, means, log_scales),
        fast_mode=True,
    )


def slot_weights(channels: int, width: int, hidden: int, bias: bool) -> list[Tensor | None]:
    shapes: list[tuple[int, ...]] = [(channels,), (channels,), (width,), (width,)]
    shapes += [(width, width), (width, channels), (width, channels), (3 * width, width), (3 * width, width)]
    shapes += [(3 * width,), (3 * width,), (width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,)]
    return [0.3 * normal(*shape) for shape in shapes] + [normal(width) if bias else None for _ in range(3)]


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs Triton's interpreter")
@pytest.mark.parametrize("masked", [False, True])
def test_slot_attention_is_a_proper_operator(masked: bool) -> None:
    leaves = [normal(2, 9, 4), normal(2, 3, 8), *slot_weights(4, 8, 5, bias=masked)]
    leaves = [leaf if leaf is None else leaf.requires_grad_() for leaf in leaves]
    mask = torch.arange(9).expand(2, 9) < 7 if masked else None
    arguments = (*leaves, mask, 1, 1e-8, masked, 2, False)
    # the symbolic trace of 28 arguments takes its time: once is enough
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        slot_attention_op, arguments, test_utils=tests if masked else (*tests, "test_aot_dispatch_static")
    )
    gradients = []
    for call in (SlotAttentionFunction.apply, slot_attention_op):
        out, attention, *_ = call(*arguments)
        loss = out.sin().sum() + attention[:, 0].sum()
        gradients.append(torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None]))
    torch.testing.assert_close(*gradients)


@pytest.mark.skipif(not dispatch.EXTENSION_BUILT, reason="aime.kernels._cpu is not built")
@pytest.mark.parametrize("masked", [False, True])
def test_slot_attention_in_cpp_is_a_proper_operator(masked: bool) -> None:
    """What was not saved for the backward pass is made again there, to the same bits."""
    leaves = [normal(2, 9, 4), normal(2, 3, 8), *slot_weights(4, 8, 5, bias=masked)]
    leaves = [leaf if leaf is None else leaf.requires_grad_() for leaf in leaves]
    mask = torch.arange(9).expand(2, 9) < 7 if masked else None
    arguments = (*leaves, mask, 2, 1e-8, masked, False)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        slot_attention_cpp_op, (*arguments, True), test_utils=tests if masked else (*tests, "test_aot_dispatch_static")
    )
    torch.library.opcheck(slot_attention_cpp_op, (*arguments, False), test_utils=tests)
    gradients = []
    for call, save in (
        (slot_attention_cpp_op, True),
        (slot_attention_cpp_op, False),
        (SlotAttentionCppFunction.apply, True),
    ):
        out, attention, _ = call(*arguments, save)
        loss = out.sin().sum() + attention[:, 0].sum()
        gradients.append(torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None]))
    for others in gradients[1:]:
        assert all(torch.equal(first, other) for first, other in zip(gradients[0], others, strict=True))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_slot_attention_compiles(backend: str) -> None:
    weights = SlotAttentionWeights(*slot_weights(4, 8, 5, bias=False))

    def loss(inputs: Tensor, slots: Tensor) -> Tensor:
        out, attention = slot_attention(inputs, slots, weights, backend=backend)
        return out.sin().sum() + attention[:, 0].sum()

    same_when_compiled(loss, normal(2, 9, 4), normal(2, 3, 8))


def _logistics_arguments() -> tuple[Tensor, ...]:
    shape = (2, 3, 3, 2, 2)
    x = torch.tensor([-1.0, -0.2, 0.6, 1.0]).view(1, 1, 2, 2).expand(2, 3, 2, 2).contiguous()
    return x, normal(2, 3, 2, 2), normal(*shape), normal(*shape) - 2, normal(*shape)


@pytest.mark.parametrize("backend", [name for name in CPU_BACKENDS if name != "torch"])
def test_mixture_logistics_is_a_proper_operator(backend: str) -> None:
    x, *parameters = _logistics_arguments()
    leaves = [tensor.requires_grad_() for tensor in parameters]
    torch.library.opcheck(nll_op, (x, *leaves, None, backend))


@pytest.mark.skipif("triton" not in BACKENDS, reason="needs Triton's interpreter")
def test_mixture_logistics_gradcheck() -> None:
    x, *parameters = _logistics_arguments()
    leaves = [tensor.requires_grad_() for tensor in parameters]
    doubles = tuple(leaf.detach().double().requires_grad_() for leaf in leaves)
    weights = torch.rand(2, 2, 2, generator=torch.Generator().manual_seed(0)).double()

    def nll(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return mixture_logistics_nll(x.double(), *tensors, weights, backend="triton")

    assert torch.autograd.gradcheck(nll, doubles, fast_mode=True)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_mixture_logistics_compiles(backend: str) -> None:
    x, *parameters = _logistics_arguments()

    def loss(*tensors: Tensor) -> Tensor:
        nll, mean = mixture_logistics_nll(x, *tensors, backend=backend)
        return nll.sum() + mean.sin().sum()

    same_when_compiled(loss, *parameters)


def test_a_call_that_nobody_watches_goes_past_the_dispatcher_and_one_that_is_watched_does_not() -> None:
    """The results and gradients are the same to the bit."""
    x, codebook = torch.randn(5, 2, 8, requires_grad=True), torch.randn(2, 4, 8, requires_grad=True)
    upstream = torch.randn(5, 2)

    def called() -> list[torch.Tensor]:
        found = vq_lookup(x, codebook, backend="torch")
        return [*found, *torch.autograd.grad(found.distance, (x, codebook), upstream)]

    met: list[str] = []

    class Meet(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            met.append(function._schema.name)
            return function(*args, **(kwargs or {}))

    with mock.patch.object(autograd, "_plain", return_value=False):
        through = called()
    with Meet():
        watched = called()
    assert {"aime::vq_lookup", "aime::vq_lookup_backward"} <= set(met)
    for past, *others in zip(called(), through, watched, strict=True):
        assert all(torch.equal(past, other) for other in others)
    with torch.profiler.profile() as profile:
        vq_lookup(x.detach(), codebook.detach())
    assert "aime::vq_lookup" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("watched", ["subclass", "meta", "negative view"])
def test_tensors_that_are_not_plain_go_through_the_dispatcher(watched: str) -> None:
    x = torch.randn(5, 1, 8)
    if watched == "meta":
        assert vq_lookup(x.to("meta"), torch.randn(1, 4, 8, device="meta"), backend="torch").indices.is_meta
        return
    if watched == "subclass":

        class Kind(torch.Tensor):
            pass

        other, same = x.as_subclass(Kind), x
    else:
        other = torch.complex(x, x).conj().imag
        assert other.is_neg()
        same = other.clone()
    codebook = torch.randn(1, 4, 8)
    assert torch.equal(vq_lookup(other, codebook).indices, vq_lookup(same, codebook).indices)
