"""Host time a call of every op on tiny CPU tensors: `python bench/kernels/host.py [--against CHECKOUT] [--rounds N]`.

The tensors are so small that what is measured is Python, the dispatcher and allocation. With `--against`, another
checkout (built) is measured in turns with this one, each round in processes of their own; least times are kept.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from aime.kernels import (
    SlotAttentionWeights,
    mixture_kl,
    mixture_log_prob,
    mixture_logistics_nll,
    slot_attention,
    stick_log_weights,
    vq_lookup,
    vq_statistics,
)

CALLS, REPEATS = 60, 12
Operation = tuple[Callable[..., Tensor], list[Tensor]]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def operations() -> dict[str, Operation]:
    """By op: a function that returns the tensor to differentiate, and its leaves."""
    u, noise, image = torch.full((4, 3), 0.3), normal(2, 4, 4), normal(1, 3, 2, 2).clamp(-1, 1)
    indices = torch.zeros(4, 2, dtype=torch.int32)
    mixture = [normal(4, 3), normal(4, 3, 4), normal(4, 3, 4)]
    shapes = [(4,), (4,), (8,), (8,), (8, 8), (8, 4), (8, 4), (24, 8), (24, 8), (24,), (24,), (8,), (8,), (8, 8), (8,)]
    weights = SlotAttentionWeights(*(0.3 * normal(*shape) for shape in (*shapes, (8, 8), (8,))))
    return {
        "vq_lookup": (lambda x, c: vq_lookup(x, c).distance, [normal(4, 2, 8), normal(2, 4, 8)]),
        "vq_statistics": (lambda x: vq_statistics(x, indices, 4)[1], [normal(4, 2, 8)]),
        "stick_log_weights": (lambda a, b: stick_log_weights(a, b, u)[0], [normal(4, 3), normal(4, 3)]),
        "mixture_log_prob": (mixture_log_prob, [noise, *mixture]),
        "mixture_kl": (lambda *t: mixture_kl(*t, noise), [normal(4, 4), normal(4, 4), *mixture]),
        "mixture_logistics_nll": (
            lambda *t: mixture_logistics_nll(image, *t)[0],
            [normal(1, 2, 2, 2), *(normal(1, 2, 3, 2, 2) for _ in range(3))],
        ),
        "slot_attention, torch": (
            lambda x, s: slot_attention(x, s, weights, 1, backend="torch")[0],
            [normal(2, 6, 4), normal(2, 2, 8)],
        ),
        "slot_attention, cpp": (
            lambda x, s: slot_attention(x, s, weights, 1, backend="cpp")[0],
            [normal(2, 6, 4), normal(2, 2, 8)],
        ),
    }


def least_microseconds(call: Callable[[], object]) -> float:
    """Least processor time a call over REPEATS runs of CALLS; other processes on the machine do not count."""
    best = float("inf")
    for _ in range(REPEATS):
        begin = time.process_time()
        for _ in range(CALLS):
            call()
        best = min(best, (time.process_time() - begin) / CALLS)
    return best * 1e6


def measure() -> dict[str, float]:
    """Forward without a gradient, and forward with backward, of every op."""
    torch.set_num_threads(1)
    results = {}
    for name, (function, tensors) in operations().items():
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        upstream = torch.ones_like(function(*tensors))

        def both(
            function: Callable[..., Tensor] = function, leaves: list[Tensor] = leaves, g: Tensor = upstream
        ) -> None:
            torch.autograd.grad(function(*leaves), leaves, g)

        results[f"{name} | forward"] = least_microseconds(lambda f=function, t=tensors: f(*t))  # type: ignore[misc]
        if function(*leaves).requires_grad:
            results[f"{name} | with backward"] = least_microseconds(both)
    return results


def main() -> None:
    """Measure and print; with `--once` as JSON, for a round of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", type=Path, help="another checkout of this project, built")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of processes, in turns (default 5)")
    parser.add_argument("--once", action="store_true", help="measure in this process and print JSON")
    options = parser.parse_args()
    if options.once:
        print(json.dumps(measure()))
        return
    trees = [Path(__file__).resolve().parents[2], *([options.against] if options.against else [])]
    best: list[dict[str, float]] = [{} for _ in trees]
    for _ in range(options.rounds):
        for tree, kept in zip(trees, best, strict=True):
            environment = {**os.environ, "PYTHONPATH": str(tree)}
            command = [sys.executable, __file__, "--once"]
            found = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
            kept.update({name: min(value, kept.get(name, value)) for name, value in found.items()})
    print(
        "microseconds" + "".join(f"{title:>12}" for title in ("here", "there", "ratio")[: 3 if options.against else 1])
    )
    for name, here in best[0].items():
        there = f"{best[1][name]:12.1f}{here / best[1][name]:12.2f}" if options.against else ""
        print(f"{name:40}{here:12.1f}{there}")


if __name__ == "__main__":
    main()
