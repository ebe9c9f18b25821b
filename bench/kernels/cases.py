"""What is measured: for every op, sizes, the implementations to compare, and the work that cannot be avoided."""

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aime.kernels import SlotAttentionWeights, dispatch, mixture_kl, mixture_logistics_nll, slot_attention, vq_lookup
from aime.kernels.mixture_logistics.reference import mixture_logistics_nll_reference
from aime.kernels.slot_attention.reference import slot_attention_reference

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One op at one size: `runs` maps an implementation's name to a call that does the whole work once."""

    op: str
    size: str
    runs: Mapping[str, Run]
    flops: float  # multiplications and additions of the formula, counted for the fused form
    moved: float  # bytes of inputs and outputs, each once: the floor of a memory-bound kernel


def ours(
    device: str, op: Callable[..., object], backends: tuple[str, ...]
) -> Iterator[tuple[str, Callable[..., object]]]:
    """The op by each backend that can run on the device, under the names of the tables."""
    for backend in backends:
        possible = {
            "torch": True,
            "cpp": device == "cpu" and dispatch.EXTENSION_BUILT,
            "triton": device == "cuda" and dispatch.TRITON_INSTALLED,
        }
        if possible[backend]:
            yield f"aime {backend}", lambda *args, backend=backend, **options: op(*args, backend=backend, **options)


def nbytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def training(function: Callable[..., Tensor], leaves: list[Tensor]) -> Run:
    """Forward and backward of a scalar function of leaves that require gradients."""

    def run() -> object:
        return torch.autograd.grad(function(*leaves), leaves)

    return run


def vq_cases(device: str, compiled: bool) -> Iterator[Case]:
    sizes = [(8192, 512, 64), (8192, 1024, 64), (32768, 256, 32)]
    sizes += [(65536, 1024, 64), (65536, 8192, 256), (1_000_000, 1024, 64)] if device == "cuda" else []
    for rows, codes, width in sizes:
        x, codebook = torch.randn(rows, width, device=device), torch.randn(codes, width, device=device)

        def whole(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
            half = codebook.square().sum(-1) / 2
            indices = torch.addmm(half, x, codebook.t(), alpha=-1).argmin(-1)
            return indices, codebook[indices]

        def distances(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
            indices = torch.cdist(x, codebook).argmin(-1)
            return indices, codebook[indices]

        functions: dict[str, Callable[..., object]] = {"cdist + argmin": distances, "addmm + argmin": whole}
        if compiled:
            functions["torch.compile"] = torch.compile(whole)
        functions |= dict(ours(device, vq_lookup, ("torch", "cpp", "triton")))
        runs = {name: (lambda f=f, x=x, codebook=codebook: f(x, codebook)) for name, f in functions.items()}
        if importlib.util.find_spec("vector_quantize_pytorch"):
            runs["vector-quantize-pytorch"] = vector_quantize_pytorch(x, codebook)
        moved = 2 * nbytes(x) + nbytes(codebook) + 8 * rows
        yield Case("vq_lookup", f"{rows} x {codes} x {width}", runs, 2.0 * rows * codes * width, moved)


def vector_quantize_pytorch(x: Tensor, codebook: Tensor) -> Run:
    """The peer package in evaluation mode with the same codes."""
    module: Any = importlib.import_module("vector_quantize_pytorch")
    quantizer = (
        module.VectorQuantize(dim=x.shape[-1], codebook_size=len(codebook), kmeans_init=False).to(x.device).eval()
    )
    quantizer.codebook = codebook
    rows = x[None]
    return lambda: quantizer(rows)


def mixture_cases(device: str, compiled: bool) -> Iterator[Case]:
    sizes = [(4, 512, 15, 36), (8, 1024, 32, 64)]
    sizes += [(8, 4096, 32, 64), (8, 65536, 15, 36)] if device == "cuda" else []
    for samples, rows, components, width in sizes:
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

        functions: dict[str, Callable[..., Tensor]] = {"MixtureSameFamily": peer}
        if compiled:
            functions["torch.compile"] = torch.compile(direct)
        for name, op in ours(device, mixture_kl, ("torch", "triton")):
            functions[name] = lambda *t, op=op, eps=eps: op(*t, eps).sum()  # type: ignore[attr-defined]
        runs = {name: training(function, leaves) for name, function in functions.items()}
        flops = 14.0 * samples * rows * components * width  # 4 forward, 10 backward a sample and component
        moved = 3 * nbytes(*leaves) + 2 * nbytes(eps)  # forward reads; backward reads and writes
        yield Case("mixture_kl", f"S {samples}, N {rows}, K {components}, D {width}", runs, flops, moved)


def slot_loss(op: Callable[..., Any]) -> Callable[..., Tensor]:
    """A scalar that reads slots and attention."""

    def function(inputs: Tensor, initial: Tensor, *weights: Tensor) -> Tensor:
        out, attention = op(inputs, initial, SlotAttentionWeights(*weights))
        return out.sum() + attention[:, 0].sum()

    return function


def slot_cases(device: str, compiled: bool) -> Iterator[Case]:
    sizes = [(256, 64, 4, 64), (32, 1024, 8, 128)]
    sizes += [(8, 256, 8, 64), (64, 4096, 16, 128)] if device == "cuda" else []
    for batch, count, slots, width in sizes:
        shapes = [(width,)] * 4 + [(width, width)] * 3 + [(3 * width, width)] * 2 + [(3 * width,)] * 2
        shapes += [(width,)] * 2 + [(2 * width, width), (2 * width,), (width, 2 * width), (width,)]
        weights = [(torch.randn(*shape, device=device) * width**-0.5).requires_grad_() for shape in shapes]
        inputs = torch.randn(batch, count, width, device=device, requires_grad=True)
        initial = torch.randn(batch, slots, width, device=device, requires_grad=True)

        functions: dict[str, Callable[..., Tensor]] = {"textbook": slot_loss(slot_attention_reference)}
        if compiled:
            functions["torch.compile"] = torch.compile(slot_loss(slot_attention_reference))
        functions |= {name: slot_loss(op) for name, op in ours(device, slot_attention, ("torch", "triton"))}
        leaves = [inputs, initial, *weights]
        runs = {name: training(function, leaves) for name, function in functions.items()}
        flops = 3 * 3 * 4.0 * batch * count * slots * width  # three iterations, backward twice forward
        yield Case("slot_attention", f"B {batch}, N {count}, S {slots}, D {width}", runs, flops, 3 * nbytes(*leaves))


def logistics_loss(op: Callable[..., Any], x: Tensor) -> Callable[..., Tensor]:
    """A scalar that reads likelihood and mean."""

    def function(*leaves: Tensor) -> Tensor:
        nll, mean = op(x, *leaves)
        return nll.sum() + mean.sum()

    return function


def logistics_cases(device: str, compiled: bool) -> Iterator[Case]:
    for batch, side in [(4, 64)] + ([(128, 64)] if device == "cuda" else []):
        x = torch.randint(0, 256, (batch, 3, side, side), device=device) / 127.5 - 1
        shapes = [(batch, 10, side, side), *3 * [(batch, 10, 3, side, side)]]
        leaves = [(0.3 * torch.randn(*shape, device=device)).requires_grad_() for shape in shapes]

        functions: dict[str, Callable[..., Tensor]] = {"eager": logistics_loss(mixture_logistics_nll_reference, x)}
        if compiled:
            functions["torch.compile"] = torch.compile(logistics_loss(mixture_logistics_nll_reference, x))
        functions |= {
            name: logistics_loss(op, x) for name, op in ours(device, mixture_logistics_nll, ("torch", "triton"))
        }
        runs = {name: training(function, leaves) for name, function in functions.items()}
        flops = 250.0 * batch * side * side * 10
        yield Case("mixture_logistics_nll", f"B {batch}, M 10, {side} x {side}", runs, flops, 3 * nbytes(*leaves))


CASES = {
    "vq_lookup": vq_cases,
    "mixture_kl": mixture_cases,
    "slot_attention": slot_cases,
    "mixture_logistics": logistics_cases,
}


def cases(device: str, compiled: bool, ops: list[str]) -> Iterator[Case]:
    """All cases of the named ops."""
    return itertools.chain.from_iterable(CASES[op](device, compiled) for op in ops)
