"""What is measured: for every op, the sizes and the peers. CPU sizes go from AIME's own to a million rows."""

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from aime.kernels import (
    SlotAttentionWeights,
    mixture_kl,
    mixture_logistics_nll,
    slot_attention,
    stick_log_weights,
    vq_lookup,
)
from aime.kernels.mixture_kl.reference import stick_log_weights_reference
from aime.kernels.mixture_logistics.reference import mixture_logistics_nll_reference
from aime.kernels.slot_attention.reference import slot_attention_reference
from bench.kernels.case import TRANSCENDENTAL, Case, Contestants, Forward, Run, nbytes, ours, training


def vq_cases(device: str, compiled: bool, large: bool) -> Iterator[Case]:
    """(rows, codes, width); torch.compile at the first size of the design."""
    sizes = [(8192, 1024, 64), (16384, 256, 32), (65536, 1024, 64), (1_000_000, 1024, 64)]
    sizes += [(8192, 512, 64), (65536, 8192, 256)] if device == "cuda" else []
    for rows, codes, width in sizes if large else sizes[:2]:
        x, codebook = torch.randn(rows, width, device=device), torch.randn(codes, width, device=device)
        scores = 4.0 * rows * codes  # bytes of the matrix that the peers hold

        def whole(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
            half = codebook.square().sum(-1) / 2
            indices = torch.addmm(half, x, codebook.t(), alpha=-1).argmin(-1)
            return indices, codebook[indices]

        def distances(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
            indices = torch.cdist(x, codebook).argmin(-1)
            return indices, codebook[indices]

        functions: list[tuple[str, Callable[..., object], float]] = [
            ("cdist + argmin", distances, 2 * scores),
            ("addmm + argmin", whole, scores),
        ]
        if compiled and (rows == 8192 or device == "cuda"):
            functions.append(("torch.compile", torch.compile(whole, dynamic=False), scores))
        functions += [(name, op, 0.0) for name, op in ours(device, vq_lookup, ("torch", "cpp", "triton"))]
        contestants = Contestants(device)
        for name, f, needs in functions:
            contestants.add(name, lambda f=f, x=x, codebook=codebook: f(x, codebook), needs)
        if importlib.util.find_spec("vector_quantize_pytorch"):
            contestants.add("vector-quantize-pytorch", vector_quantize_pytorch(x, codebook), 3 * scores)
        moved = 2 * nbytes(x) + nbytes(codebook) + 8 * rows
        yield Case(
            "vq_lookup",
            f"{rows} x {codes} x {width}",
            contestants.runs,
            2.0 * rows * codes * width,
            moved,
            moved,
            nbytes(x, codebook),
            contestants.left_out,
        )


def vector_quantize_pytorch(x: Tensor, codebook: Tensor) -> Run:
    """The peer package in evaluation mode with the same codes."""
    module: Any = importlib.import_module("vector_quantize_pytorch")
    quantizer = (
        module.VectorQuantize(dim=x.shape[-1], codebook_size=len(codebook), kmeans_init=False).to(x.device).eval()
    )
    quantizer.codebook = codebook
    rows = x[None]

    def run() -> object:
        with torch.no_grad():
            return quantizer(rows)

    return run


def stick_cases(device: str, compiled: bool, large: bool) -> Iterator[Case]:
    """(rows, sticks): those of the laptop preset, of the mixture below, and many."""
    sizes = [(256, 5), (4096, 31), (1_000_000, 14)]
    for rows, sticks in sizes if large else sizes[:2]:
        leaves = [torch.randn(rows, sticks, device=device).requires_grad_() for _ in range(2)]
        u = torch.rand(rows, sticks, device=device).clamp(1e-3, 1 - 1e-3)

        def total(op: Callable[..., Any], u: Tensor = u) -> Forward:
            def loss(log_a: Tensor, log_b: Tensor) -> Tensor:
                log_pi, log_v, log_q = op(log_a, log_b, u)
                result: Tensor = log_pi.sum() + log_v.sum() + log_q.sum()
                return result

            return loss

        contestants, elements = Contestants(device), rows * sticks
        contestants.add("textbook", training(total(stick_log_weights_reference), leaves), 4.0 * 40 * elements)
        if compiled and rows == 4096:
            function = torch.compile(total(stick_log_weights_reference), dynamic=False)
            contestants.add("torch.compile", training(function, leaves))
        for name, op in ours(device, stick_log_weights, ("torch", "cpp", "triton")):
            contestants.add(name, training(total(op), leaves))
        size = f"N {rows}, K {sticks + 1}"
        flops = (18 * TRANSCENDENTAL + 40) * elements
        moved, held = 4.0 * 11 * elements, 4.0 * 8 * elements
        inputs = 12.0 * elements
        yield Case("stick_log_weights", size, contestants.runs, flops, moved, held, inputs, contestants.left_out)


def mixture_cases(device: str, compiled: bool, large: bool) -> Iterator[Case]:
    """(S, N, K, D): laptop and tier 1, the sizes of the design, and a million rows."""
    sizes = [(2, 256, 6, 16), (8, 160, 8, 18), (8, 1024, 32, 64), (8, 4096, 32, 64), (2, 1_000_000, 6, 16)]
    sizes += [(8, 65536, 15, 36)] if device == "cuda" else []
    for samples, rows, components, width in sizes if large else sizes[:3]:
        shapes = ((rows, width), (rows, width), (rows, components), *2 * ((rows, components, width),))
        leaves = [(0.3 * torch.randn(*shape, device=device)).requires_grad_() for shape in shapes]
        eps = torch.randn(samples, rows, width, device=device)

        def peer(*t: Tensor, eps: Tensor = eps) -> Tensor:
            q = torch.distributions.Independent(torch.distributions.Normal(t[0], t[1].exp()), 1)
            parts = torch.distributions.Independent(torch.distributions.Normal(t[3], t[4].exp()), 1)
            prior = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=t[2]), parts)
            return (-q.entropy() - prior.log_prob(t[0] + t[1].exp() * eps).mean(0)).sum()

        def direct(*t: Tensor, eps: Tensor = eps) -> Tensor:
            z = t[0] + t[1].exp() * eps
            square = ((z[:, :, None, :] - t[3]) * torch.exp(-t[4])).square().sum(-1)
            return (t[1].sum(-1) + torch.logsumexp(t[2] - t[4].sum(-1) - 0.5 * square, -1).mean(0)).sum()

        contestants, elements = Contestants(device), rows * components * width
        contestants.add("MixtureSameFamily", training(peer, leaves), 4.0 * 6 * samples * elements)
        if compiled and rows in {1024, 4096}:
            contestants.add("torch.compile", training(torch.compile(direct, dynamic=False), leaves))
        for name, op in ours(device, mixture_kl, ("torch", "cpp", "triton")):
            function: Forward = lambda *t, op=op, eps=eps: op(*t, eps).sum()  # noqa: E731
            contestants.add(name, training(function, leaves))
        # a sample and element: 4 forward, 4 again and 8 backward; the scale's exponential in both directions
        flops = 16.0 * samples * elements + 2 * (TRANSCENDENTAL + 1) * elements
        moved = 3 * nbytes(*leaves) + 2 * nbytes(eps)  # forward reads; backward reads and writes
        yield Case(
            "mixture_kl",
            f"S {samples}, N {rows}, K {components}, D {width}",
            contestants.runs,
            flops,
            moved,
            2 * nbytes(*leaves) + nbytes(eps),
            nbytes(*leaves, eps),
            contestants.left_out,
        )


def slot_loss(op: Callable[..., Any], iters: int) -> Forward:
    """A scalar that reads slots and attention."""

    def function(inputs: Tensor, initial: Tensor, *weights: Tensor) -> Tensor:
        out, attention = op(inputs, initial, SlotAttentionWeights(*weights), iters)
        result: Tensor = out.sum() + attention[:, 0].sum()
        return result

    return function


def slot_cases(device: str, compiled: bool, large: bool) -> Iterator[Case]:
    """(B, N, S, D, iterations): laptop and tier 1, the size of the design, and a million inputs."""
    sizes = [(256, 64, 4, 32, 2), (160, 256, 4, 64, 3), (32, 1024, 8, 128, 3), (256, 4096, 4, 64, 3)]
    sizes += [(8, 256, 8, 64, 3), (64, 4096, 16, 128, 3)] if device == "cuda" else []
    for batch, count, slots, width, iters in sizes if large else sizes[:2]:
        shapes = [(width,)] * 4 + [(width, width)] * 3 + [(3 * width, width)] * 2 + [(3 * width,)] * 2
        shapes += [(width,)] * 2 + [(2 * width, width), (2 * width,), (width, 2 * width), (width,)]
        weights = [(torch.randn(*shape, device=device) * width**-0.5).requires_grad_() for shape in shapes]
        inputs = torch.randn(batch, count, width, device=device, requires_grad=True)
        initial = torch.randn(batch, slots, width, device=device, requires_grad=True)
        leaves = [inputs, initial, *weights]

        contestants = Contestants(device)
        contestants.add("textbook", training(slot_loss(slot_attention_reference, iters), leaves), 8 * nbytes(inputs))
        if compiled and count == 1024:
            function = torch.compile(slot_loss(slot_attention_reference, iters), dynamic=False)
            contestants.add("torch.compile", training(function, leaves))
        if importlib.util.find_spec("slot_attention"):
            contestants.add("lucidrains", lucidrains(inputs, slots, iters), 8 * nbytes(inputs))
        for name, op in ours(device, slot_attention, ("torch", "cpp", "triton")):
            contestants.add(name, training(slot_loss(op, iters), leaves))
        flops = 3 * iters * 4.0 * batch * count * slots * width  # backward twice forward
        size = f"B {batch}, N {count}, S {slots}, D {width}, {iters} iterations"
        held = 2 * nbytes(*leaves)
        yield Case(
            "slot_attention",
            size,
            contestants.runs,
            flops,
            3 * nbytes(*leaves),
            held,
            nbytes(*leaves),
            contestants.left_out,
        )


def lucidrains(inputs: Tensor, slots: int, iters: int) -> Run:
    """The peer package at the same sizes on the same inputs; it draws its slots and has a ReLU."""
    width = inputs.shape[-1]
    module: Any = importlib.import_module("slot_attention").SlotAttention(slots, width, iters, hidden_dim=2 * width)
    module = module.to(inputs.device)
    leaves = [inputs, *module.parameters()]

    def run() -> object:
        return torch.autograd.grad(module(inputs).sum(), leaves)

    return run


def logistics_loss(op: Callable[..., Any], x: Tensor) -> Forward:
    """A scalar that reads likelihood and mean."""

    def function(*leaves: Tensor) -> Tensor:
        nll, mean = op(x, *leaves)
        result: Tensor = nll.sum() + mean.sum()
        return result

    return function


def logistics_cases(device: str, compiled: bool, large: bool) -> Iterator[Case]:
    """Images of 64 x 64 with ten components: a few, the batch of tier 1, and a million pixels."""
    sizes = [(4, 64), (160, 64), (244, 64), *([(128, 64)] if device == "cuda" else [])]
    for batch, side in sizes if large else sizes[:1]:
        x = torch.randint(0, 256, (batch, 3, side, side), device=device) / 127.5 - 1
        shapes = [(batch, 10, side, side), *3 * [(batch, 10, 3, side, side)]]
        leaves = [(0.3 * torch.randn(*shape, device=device)).requires_grad_() for shape in shapes]

        contestants, components = Contestants(device), 10.0 * batch * side * side
        textbook = logistics_loss(mixture_logistics_nll_reference, x)
        contestants.add("textbook", training(textbook, leaves), 12.0 * 50 * components)
        if compiled and batch in {4, 128}:
            contestants.add("torch.compile", training(torch.compile(textbook, dynamic=False), leaves))
        for name, op in ours(device, mixture_logistics_nll, ("torch", "cpp", "triton")):
            needs = 12.0 * 40 * components if name == "aime torch" else 0.0
            contestants.add(name, training(logistics_loss(op, x), leaves), needs)
        # a component: 12 exponentials of bins and couplings, one logarithm, two weights; all again backward
        flops = 2 * (15 * TRANSCENDENTAL + 90) * components
        yield Case(
            "mixture_logistics_nll",
            f"B {batch}, M 10, {side} x {side}",
            contestants.runs,
            flops,
            3 * nbytes(*leaves) + 2 * nbytes(x),
            2 * nbytes(*leaves) + 2 * nbytes(x),
            nbytes(x, *leaves),
            contestants.left_out,
        )


CASES = {
    "vq_lookup": vq_cases,
    "stick_log_weights": stick_cases,
    "mixture_kl": mixture_cases,
    "slot_attention": slot_cases,
    "mixture_logistics": logistics_cases,
}


def cases(device: str, compiled: bool, ops: list[str], large: bool = True) -> Iterator[Case]:
    """The cases of the named ops, made one after another; without the large ones they fit in memory together."""
    return itertools.chain.from_iterable(CASES[op](device, compiled, large) for op in ops)
