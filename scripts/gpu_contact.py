"""First contact with a GPU: every op on the Triton backend, forward and backward, against PyTorch's own on the CPU.

Writes a line of JSON an op to the named file as it ends: seconds of the first call (compiling included) and of the
second, the largest relative error of values and gradients, or the exception. What fails does not keep the next op away.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aime.kernels import (
    mixture_kl,
    mixture_log_prob,
    mixture_logistics_nll,
    slot_attention,
    stick_log_weights,
    vq_lookup,
    vq_statistics,
)
from aime.kernels.slot_attention import SlotAttentionWeights

TOLERANCE = 2e-2  # TF32 products of random numbers stay well below; a wrong kernel does not

Op = Callable[..., Any]


def cases() -> dict[str, tuple[Op, list[Tensor]]]:
    """Per op a call of its tensors: widths of AIME's presets, few rows; floating tensors get gradients."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    rows, components, width, samples = 8, 15, 36, 2
    density = [normal(rows, components).log_softmax(-1), normal(rows, components, width)]
    density.append(0.3 * normal(rows, components, width))
    indices = torch.randint(0, 128, (64, 2), generator=generator, dtype=torch.int32)
    sticks = [normal(rows, components - 1) for _ in range(2)]
    sticks.append(torch.rand(rows, components - 1, generator=generator).clamp(0.01, 0.99))
    return {
        "vq_lookup": (vq_lookup, [normal(64, 2, 32), normal(2, 128, 32)]),
        "vq_statistics": (lambda x, i, **o: vq_statistics(x, i, 128, **o), [normal(64, 2, 32), indices]),
        "stick_log_weights": (stick_log_weights, sticks),
        "mixture_log_prob": (mixture_log_prob, [normal(samples, rows, width), *density]),
        "mixture_kl": (
            mixture_kl,
            [normal(rows, width), 0.3 * normal(rows, width), *density, normal(samples, rows, width)],
        ),
        "slot_attention": (_slots, [normal(2, 100, 64), normal(2, 8, 64), *_slot_weights(normal, 64)]),
        "slot_attention, columns split": (
            _slots,
            [normal(2, 100, 128), normal(2, 8, 128), *_slot_weights(normal, 128)],
        ),
        "mixture_logistics_nll": (mixture_logistics_nll, _image(normal)),
    }


def _slots(inputs: Tensor, slots: Tensor, *weights: Tensor, backend: str) -> Any:
    return slot_attention(inputs, slots, SlotAttentionWeights(*weights), iters=3, backend=backend)


def _slot_weights(normal: Callable[..., Tensor], width: int) -> list[Tensor]:
    """Weights in the order of SlotAttentionWeights, without the three optional biases."""
    wide, small = 2 * width, width**-0.5
    norm = [1 + 0.1 * normal(width), 0.1 * normal(width)]
    projections = [small * normal(width, width) for _ in range(3)]
    gru = [small * normal(3 * width, width) for _ in range(2)] + [0.1 * normal(3 * width) for _ in range(2)]
    mlp = [small * normal(wide, width), 0.1 * normal(wide), small * normal(width, wide), 0.1 * normal(width)]
    return [*norm, *[tensor.clone() for tensor in norm], *projections, *gru, *[t.clone() for t in norm], *mlp]


def _image(normal: Callable[..., Tensor]) -> list[Tensor]:
    x = normal(2, 3, 9, 9).tanh()
    return [x, normal(2, 10, 9, 9), normal(2, 10, 3, 9, 9), normal(2, 10, 3, 9, 9), normal(2, 10, 3, 9, 9)]


def call(op: Op, tensors: Sequence[Tensor], backend: str, device: str) -> tuple[list[Tensor], float]:
    """Results and gradients on the CPU in float64, and seconds."""
    start = time.perf_counter()
    leaves = [t.detach().to(device).requires_grad_(t.is_floating_point()) for t in tensors]
    result = op(*leaves, backend=backend)
    outputs = [t for t in (result if isinstance(result, tuple) else (result,)) if isinstance(t, Tensor)]
    found = list(outputs)
    sources = [t for t in outputs if t.requires_grad]
    if sources:
        total = torch.stack([t.float().square().mean() for t in sources]).sum()
        gradients = torch.autograd.grad(total, [t for t in leaves if t.requires_grad], allow_unused=True)
        found += [t for t in gradients if t is not None]
    results = [t.detach().cpu().double() for t in found]  # waits for the device
    return results, time.perf_counter() - start


def contact(op: Op, tensors: Sequence[Tensor], backend: str, device: str) -> dict[str, Any]:
    """Times and the largest error, relative to its tensor's norm or 1e-3 of the largest, below which is rounding."""
    expected, _ = call(op, tensors, "torch", "cpu")
    found, first = call(op, tensors, backend, device)
    found, second = call(op, tensors, backend, device)
    norms = [float(tensor.norm()) for tensor in expected]
    least = 1e-3 * max(norms)
    worst = max(
        float((left - right).norm()) / max(norm, least)
        for left, right, norm in zip(found, expected, norms, strict=True)
    )
    return {"first_seconds": first, "second_seconds": second, "error": worst, "passed": worst <= TOLERANCE}


def main() -> int:
    """Each op in turn; status 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="file of JSON lines")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backends", nargs="+", default=["torch", "triton"], help="torch first: is it the device?")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    with arguments.out.open("w") as file:
        for name, (op, tensors) in cases().items():
            for backend in arguments.backends:
                line: dict[str, Any] = {"op": name, "backend": backend, "device": arguments.device}
                try:
                    line |= contact(op, tensors, backend, arguments.device)
                except Exception as error:  # noqa: BLE001 - one op's failure is a result, the others still run
                    line |= {"passed": False, "exception": f"{type(error).__name__}: {error}"[:2000]}
                    traceback.print_exc(limit=-4)
                failed += not line["passed"]
                file.write(json.dumps(line) + "\n")
                file.flush()
                print(json.dumps(line), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
