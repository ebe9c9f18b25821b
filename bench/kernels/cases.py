"""What is measured: for every op, the sizes and the peers. CPU sizes go from AIME's own to a million rows."""

import importlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aime.kernels import (
    SlotAttentionWeights,
    frame_error,
    frame_patches,
    mixture_kl,
    mixture_log_prob,
    mixture_logistics_nll,
    slot_attention,
    stick_log_weights,
    vq_lookup,
)
from aime.kernels.frame_error.reference import frame_error_reference
from aime.kernels.frame_patches.reference import frame_patches_reference
from aime.kernels.mixture_kl import eager as stick_eager
from aime.kernels.mixture_kl.reference import stick_log_weights_reference
from aime.kernels.mixture_logistics import eager as logistics_eager
from aime.kernels.mixture_logistics.reference import mixture_logistics_nll_reference
from aime.kernels.slot_attention import eager as slot_eager
from aime.kernels.slot_attention.reference import slot_attention_reference
from aime.kernels.vq_lookup.cublas import float32_products
from bench.kernels.case import (
    FAST,
    HALVES,
    TRANSCENDENTAL,
    Case,
    Contestants,
    Forward,
    Kind,
    Run,
    kinds,
    nbytes,
    ours,
    training,
    within,
)
from bench.kernels.rivals import (
    addmm_argmin,
    cdist_argmin,
    installed,
    iterated_attention,
    lucidrains,
    packaged_lookups,
    streamed_assign,
)
from bench.kernels.statistics_cases import statistics_cases


def vq_cases(device: str, compiled: bool, large: bool) -> Iterator[Case]:
    """(rows, codes, width): laptop and tier 1, the sizes of the design, and a million rows."""
    sizes = [(4096, 256, 32), (8192, 1024, 64), (40960, 1024, 64), (65536, 1024, 64), (1_000_000, 1024, 64)]
    sizes += [(8192, 512, 64), (65536, 8192, 256)] if device == "cuda" else []
    sizes = [size for size in sizes if within(size[0])]
    for size, kind in itertools.product(sizes if large else sizes[:2], kinds(device, *HALVES, FAST)):
        yield vq_case(device, compiled and (size[0] == 8192 or device == "cuda"), kind, *size)


def vq_case(device: str, compiled: bool, kind: Kind, rows: int, codes: int, width: int) -> Case:
    """One size in one dtype: our backends, PyTorch's products, and packages."""
    x, codebook = (torch.randn(n, width, device=device).to(kind.dtype) for n in (rows, codes))
    scores = 4.0 * rows * codes  # bytes of the matrix that the peers hold
    fast = kind.precision == "fast" and device == "cuda"  # then rivals may round as well
    functions: list[tuple[str, Callable[..., object], float]] = [("addmm + argmin", addmm_argmin, scores)]
    if kind.dtype == torch.float32:
        functions.append(("cdist + argmin", cdist_argmin, 2 * scores))
    if compiled:
        functions.append(("torch.compile", torch.compile(addmm_argmin, dynamic=False), scores))
        functions.append(("torch.compile, our algorithm", torch.compile(streamed_assign, dynamic=False), 0.0))
    backends = ("torch", "cpp", "triton", *(("cublas",) if kind.dtype == torch.float32 else ()))
    for name, op in ours(device, vq_lookup, backends):
        functions.append((name, partial(op, precision=kind.precision), 0.0))
    contestants = Contestants(device)
    for name, function, needs in functions:
        rounded = fast and not name.startswith("aime")
        contestants.add(name, partial(look_up, function, x, codebook, rounded), needs)
    for name, run, needs in packaged_lookups(x, codebook):
        contestants.add(name, run, needs)
    moved = 2 * nbytes(x) + nbytes(codebook) + 8 * rows
    flops = 2.0 * rows * codes * width
    size = f"{rows} x {codes} x {width}{kind.suffix}"
    inputs = nbytes(x, codebook)
    left_out = contestants.left_out
    return Case("vq_lookup", size, contestants.runs, flops, moved, moved, inputs, left_out, flops, kind.products)


def look_up(function: Callable[..., object], x: Tensor, codebook: Tensor, rounded: bool) -> object:
    """The function's result, with products in TF32 where they may be rounded."""
    with float32_products("tf32") if rounded else nullcontext():
        return function(x, codebook)


def stick_cases(device: str, compiled: bool, large: bool) -> Iterator[Case]:
    """(rows, sticks): those of the laptop preset, of the mixture below, and many."""
    sizes = [(256, 5), (4096, 31), (1_000_000, 14)]
    sizes = [size for size in sizes if within(size[0])]
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
            function = torch.compile(total(stick_eager.stick_log_weights), dynamic=False)
            contestants.add("torch.compile, our algorithm", training(function, leaves))
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
    sizes = [size for size in sizes if within(size[1])]
    for samples, rows, components, width in sizes if large else sizes[:3]:
        shapes = ((rows, width), (rows, width), (rows, components), *2 * ((rows, components, width),))
        leaves = [(0.3 * torch.randn(*shape, device=device)).requires_grad_() for shape in shapes]
        eps = torch.randn(samples, rows, width, device=device)

        def peer(*t: Tensor, eps: Tensor = eps) -> Tensor:
            checks = {"validate_args": False}
            q = torch.distributions.Independent(torch.distributions.Normal(t[0], t[1].exp(), **checks), 1, **checks)
            parts = torch.distributions.Normal(t[3], t[4].exp(), **checks)
            weights = torch.distributions.Categorical(logits=t[2], **checks)
            prior = torch.distributions.MixtureSameFamily(
                weights, torch.distributions.Independent(parts, 1, **checks), **checks
            )
            return (-q.entropy() - prior.log_prob(t[0] + t[1].exp() * eps).mean(0)).sum()

        def direct(*t: Tensor, eps: Tensor = eps) -> Tensor:
            z = t[0] + t[1].exp() * eps
            square = ((z[:, :, None, :] - t[3]) * torch.exp(-t[4])).square().sum(-1)
            return (t[1].sum(-1) + torch.logsumexp(t[2] - t[4].sum(-1) - 0.5 * square, -1).mean(0)).sum()

        contestants, elements = Contestants(device), rows * components * width
        contestants.add("MixtureSameFamily, unchecked", training(peer, leaves), 4.0 * 6 * samples * elements)
        if compiled and rows in {1024, 4096}:
            contestants.add("torch.compile, our algorithm", training(torch.compile(direct, dynamic=False), leaves))
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


def log_prob_cases(device: str, compiled: bool, large: bool) -> Iterator[Case]:
    """(S, N, K, D): the density by itself at tier 1's size and at that of the design."""
    for samples, rows, components, width in [(8, 160, 8, 18), (8, 4096, 32, 64)] if large else [(8, 160, 8, 18)]:
        if not within(rows):
            continue
        shapes = ((samples, rows, width), (rows, components), *2 * ((rows, components, width),))
        leaves = [(0.3 * torch.randn(*shape, device=device)).requires_grad_() for shape in shapes]

        def peer(z: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
            checks = {"validate_args": False}
            parts = torch.distributions.Normal(means, log_scales.exp(), **checks)
            weights = torch.distributions.Categorical(logits=logits, **checks)
            mixture = torch.distributions.MixtureSameFamily(
                weights, torch.distributions.Independent(parts, 1, **checks), **checks
            )
            return mixture.log_prob(z).sum()

        def direct(z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
            square = ((z[:, :, None, :] - means) * torch.exp(-log_scales)).square().sum(-1)
            return torch.logsumexp(log_pi - log_scales.sum(-1) - 0.5 * square, -1).sum()

        contestants, elements = Contestants(device), rows * components * width
        contestants.add("MixtureSameFamily, unchecked", training(peer, leaves), 4.0 * 6 * samples * elements)
        if compiled and rows == 4096:
            contestants.add("torch.compile, our algorithm", training(torch.compile(direct, dynamic=False), leaves))
        for name, op in ours(device, mixture_log_prob, ("torch", "cpp", "triton")):
            function: Forward = lambda *t, op=op: op(*t).sum()  # noqa: E731
            contestants.add(name, training(function, leaves))
        flops = 16.0 * samples * elements + 2 * (TRANSCENDENTAL + 1) * elements  # as the divergence
        yield Case(
            "mixture_log_prob",
            f"S {samples}, N {rows}, K {components}, D {width}",
            contestants.runs,
            flops,
            3 * nbytes(*leaves),
            2 * nbytes(*leaves),
            nbytes(*leaves),
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
    sizes = [size for size in sizes if within(size[0] * size[1])]
    for size, kind in itertools.product(sizes if large else sizes[:2], kinds(device, *HALVES)):
        yield slot_case(device, compiled and size[1] == 1024, kind, *size)


def slot_case(
    device: str, compiled: bool, kind: Kind, batch: int, count: int, slots: int, width: int, iters: int
) -> Case:
    """One size in one dtype; the weights have it too."""
    shapes = [(width,)] * 4 + [(width, width)] * 3 + [(3 * width, width)] * 2 + [(3 * width,)] * 2
    shapes += [(width,)] * 2 + [(2 * width, width), (2 * width,), (width, 2 * width), (width,)]
    drawn = [torch.randn(*shape, device=device) * width**-0.5 for shape in shapes]
    drawn = [torch.randn(batch, n, width, device=device) for n in (count, slots)] + drawn
    leaves = [tensor.to(kind.dtype).requires_grad_() for tensor in drawn]
    contestants, inputs = Contestants(device), leaves[0]
    textbook = slot_loss(slot_attention_reference, iters)
    contestants.add("textbook", training(textbook, leaves), 8 * nbytes(inputs))
    if compiled:
        contestants.add("torch.compile", training(torch.compile(textbook, dynamic=False), leaves))
        function = torch.compile(slot_loss(absorbed_attention, iters), dynamic=False)
        contestants.add("torch.compile, our algorithm", training(function, leaves))
    if installed("slot_attention"):
        contestants.add("lucidrains", lucidrains(inputs, slots, iters), 8 * nbytes(inputs))
    else:
        run = training(slot_loss(iterated_attention, iters), leaves)
        contestants.add("plain, lucidrains", run, 8 * nbytes(inputs))
    for name, op in ours(device, slot_attention, ("torch", "cpp", "triton")):
        contestants.add(name, training(slot_loss(op, iters), leaves))
        if name == "aime triton":
            for other, run in unsplit(training(slot_loss(op, iters), leaves), batch * slots, width):
                contestants.add(other, run)
    flops = 3 * iters * 4.0 * batch * count * slots * width  # backward twice forward
    size = f"B {batch}, N {count}, S {slots}, D {width}, {iters} iterations{kind.suffix}"
    held, products = 2 * nbytes(*leaves), "tf32" if kind.dtype == torch.float32 else kind.products
    moved, left_out = 3 * nbytes(*leaves), contestants.left_out
    return Case(
        "slot_attention", size, contestants.runs, flops, moved, held, nbytes(*leaves), left_out, flops, products
    )


def unsplit(run: Run, rows: int, width: int) -> Iterator[tuple[str, Run]]:
    """The same with a program for 16 slots, where the table of slot_side.py splits columns over programs."""
    slot_side: Any = importlib.import_module("aime.kernels.slot_attention.slot_side")  # imports Triton
    table = slot_side.COLUMNS
    if slot_side.columns(width, rows, 1) is None:
        return

    def in_one_launch() -> object:
        slot_side.COLUMNS = ()
        try:
            return run()
        finally:
            slot_side.COLUMNS = table

    yield "aime triton, 16 slots a program", in_one_launch


def absorbed_attention(inputs: Tensor, initial: Tensor, weights: SlotAttentionWeights, iters: int) -> Any:
    """Our algorithm in PyTorch's operations alone: projections of keys and values absorbed into queries and means."""
    normed = F.layer_norm(inputs, inputs.shape[-1:], weights.norm_inputs_weight, weights.norm_inputs_bias)

    def attend(seen: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = seen @ normed.transpose(1, 2)  # (B, S, N)
        attention = (logits if offset is None else logits + offset).softmax(1)
        shares = attention + 1e-8
        return shares / shares.sum(-1, keepdim=True) @ normed, attention

    return slot_eager.slot_attention(initial, weights, attend, iters, "gelu", 1, False)  # type: ignore[arg-type]


def logistics_loss(op: Callable[..., Any], x: Tensor) -> Forward:
    """A scalar that reads likelihood and mean."""

    def function(*leaves: Tensor) -> Tensor:
        nll, mean = op(x, *leaves)
        result: Tensor = nll.sum() + mean.sum()
        return result

    return function


def eager_logistics(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Our algorithm in PyTorch's operations, every pixel with weight 1."""
    return logistics_eager.mixture_logistics_nll(x, *parameters, None)  # type: ignore[call-arg, arg-type]


def logistics_cases(device: str, compiled: bool, large: bool) -> Iterator[Case]:
    """Images of 64 x 64 with ten components: a few, the batch of tier 1, and a million pixels."""
    sizes = [(4, 64), (160, 64), (244, 64), *([(128, 64)] if device == "cuda" else [])]
    sizes = [size for size in sizes if within(size[0] * size[1] ** 2)]
    for (batch, side), kind in itertools.product(sizes if large else sizes[:1], kinds(device, HALVES[0])):
        x = (torch.randint(0, 256, (batch, 3, side, side), device=device) / 127.5 - 1).to(kind.dtype)
        shapes = [(batch, 10, side, side), *3 * [(batch, 10, 3, side, side)]]
        leaves = [(0.3 * torch.randn(*shape, device=device)).to(kind.dtype).requires_grad_() for shape in shapes]

        contestants, components = Contestants(device), 10.0 * batch * side * side
        textbook = logistics_loss(mixture_logistics_nll_reference, x)
        contestants.add("textbook", training(textbook, leaves), 12.0 * 50 * components)
        if compiled and batch in {4, 128}:
            contestants.add("torch.compile", training(torch.compile(textbook, dynamic=False), leaves))
            function = torch.compile(logistics_loss(eager_logistics, x), dynamic=False)
            contestants.add("torch.compile, our algorithm", training(function, leaves))
        for name, op in ours(device, mixture_logistics_nll, ("torch", "cpp", "triton")):
            needs = 12.0 * 40 * components if name == "aime torch" else 0.0
            contestants.add(name, training(logistics_loss(op, x), leaves), needs)
        # a component: 12 exponentials of bins and couplings, one logarithm, two weights; all again backward
        flops = 2 * (15 * TRANSCENDENTAL + 90) * components
        yield Case(
            "mixture_logistics_nll",
            f"B {batch}, M 10, {side} x {side}{kind.suffix}",
            contestants.runs,
            flops,
            3 * nbytes(*leaves) + 2 * nbytes(x),
            2 * nbytes(*leaves) + 2 * nbytes(x),
            nbytes(x, *leaves),
            contestants.left_out,
        )


def pixels(batch: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Frames (B, 16, 3, 64, 64) as they are stored, a mean image and a factor."""
    frames = torch.randint(0, 256, (batch, 16, 3, 64, 64), dtype=torch.uint8, device=device)
    return frames, 255 * torch.rand(3, 64, 64, device=device), torch.rand(1, 64, 64, device=device) / 64


def patch_cases(device: str, _compiled: bool, large: bool) -> Iterator[Case]:
    """Sequences of 16 frames with their changes: the laptop preset's batch, and four times as many."""
    for batch in (16, 64) if large else (2,):
        frames, mean, factor = pixels(batch, device)
        arguments = (frames, mean, factor)
        contestants = Contestants(device)
        run = partial(frame_patches_reference, *arguments, None, 4, 2, torch.bfloat16)
        contestants.add("textbook", run)
        for name, op in ours(device, frame_patches, ("torch", "cpp")):
            contestants.add(name, partial(op, *arguments, patch_size=4, stack=2, dtype=torch.bfloat16))
        moved = nbytes(*arguments) + 4.0 * frames.numel()
        size, flops = f"B {batch}, T 16, 3 x 64 x 64, bfloat16 patches", 3.0 * frames.numel()
        yield Case(
            "frame_patches", size, contestants.runs, flops, moved, moved, nbytes(*arguments), contestants.left_out
        )


def error_cases(device: str, _compiled: bool, large: bool) -> Iterator[Case]:
    """Decoded images in bfloat16: half of the frames of the laptop preset's batch, and four times as many."""
    for batch in (8, 32) if large else (1,):
        frames, mean, factor = pixels(batch, device)
        frames = frames.flatten(0, 1)  # (N, C, H, W)
        drawn = torch.randn(*frames.shape, device=device, dtype=torch.bfloat16)
        leaves = [drawn.contiguous(memory_format=torch.channels_last).requires_grad_()]

        def total(op: Callable[..., Any], arguments: tuple[Tensor, ...] = (frames, mean, factor)) -> Forward:
            def loss(decoded: Tensor) -> Tensor:
                result: Tensor = op(decoded, *arguments).sum()
                return result

            return loss

        contestants = Contestants(device)
        contestants.add("textbook", training(total(frame_error_reference), leaves))
        for name, op in ours(device, frame_error, ("torch", "cpp")):
            contestants.add(name, training(total(op), leaves))
        inputs = nbytes(frames, mean, factor, *leaves)
        moved, held = 2.0 * inputs + nbytes(*leaves), inputs + nbytes(*leaves)
        size, flops = f"N {len(frames)}, 3 x 64 x 64, bfloat16", 9.0 * frames.numel()
        yield Case("frame_error", size, contestants.runs, flops, moved, held, inputs, contestants.left_out)


CASES = {
    "vq_lookup": vq_cases,
    "vq_statistics": statistics_cases,
    "stick_log_weights": stick_cases,
    "mixture_kl": mixture_cases,
    "mixture_log_prob": log_prob_cases,
    "slot_attention": slot_cases,
    "mixture_logistics": logistics_cases,
    "frame_patches": patch_cases,
    "frame_error": error_cases,
}


def cases(device: str, compiled: bool, ops: list[str], large: bool = True) -> Iterator[Case]:
    """The cases of the named ops, made one after another; without the large ones they fit in memory together."""
    return itertools.chain.from_iterable(CASES[op](device, compiled, large) for op in ops)
