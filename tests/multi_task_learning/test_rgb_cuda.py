"""RGB on a GPU: exact with TF32 products allowed, and without a host sync once its layout has settled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aime.multi_task_learning import RGB

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def steps(device: str, balancer: RGB, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(300, 500, generator=generator).to(device)) for _ in range(3)]
    results = []
    for _ in range(count):
        rows = [[torch.randn(300, 500, generator=generator).to(device) for _ in parameters] for _ in range(3)]
        losses = {
            str(task): sum((p * g).sum() for p, g in zip(parameters, row, strict=True)) for task, row in enumerate(rows)
        }
        balancer.backward(losses, parameters, max_norm=1.0)
        results.append(torch.cat([p.grad.reshape(-1) for p in parameters]).cpu().double())
    return results


def test_equal_to_cpu_with_tf32_allowed() -> None:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = steps("cuda", RGB(), 4)
    finally:
        torch.set_float32_matmul_precision(precision)
    for left, right in zip(found, steps("cpu", RGB(), 4), strict=True):
        assert (left - right).norm() <= 1e-5 * right.norm()


def test_no_host_sync() -> None:
    parameters = [nn.Parameter(torch.randn(40, 30, device="cuda")) for _ in range(2)]
    balancer = RGB(update_interval=2)
    for step in range(5):
        losses = {"a": parameters[0].square().sum(), "b": sum(p.sum() for p in parameters)}
        torch.cuda.set_sync_debug_mode("default" if step < 2 else "error")
        try:
            result = balancer.backward(losses, parameters, max_norm=5.0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert result.finite
