"""Orthogonalised steps: what they are, and that they skip, resume and mix with AdamW."""

from __future__ import annotations

import copy

import pytest
import torch

from aime.multi_task_learning.orthogonal_step import RMS, OrthogonalAdamW, orthogonal_factor


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6), (1, 9)])
def test_the_factor_keeps_the_singular_vectors_and_levels_the_values(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linspace(1.0, 0.05, min(shape), dtype=torch.float64)  # a gradient's: twenty to one
    found = orthogonal_factor((u * values) @ v).double()
    rotated = u.mT @ found @ v.mT
    levelled = rotated.diagonal()
    assert float(levelled.min()) > 0.6
    assert float(levelled.max()) < 1.3
    assert float((rotated - torch.diag(levelled)).abs().max()) < 0.05  # bfloat16
    torch.testing.assert_close(orthogonal_factor(1e6 * matrix), orthogonal_factor(matrix), rtol=0, atol=0.02)


def layers() -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.nn.Parameter(torch.randn(4, 3, 2, 2, generator=generator)) for _ in range(2))  # type: ignore[return-value]


def optimizer_of(convolution: torch.nn.Parameter, plain: torch.nn.Parameter) -> OrthogonalAdamW:
    return OrthogonalAdamW(
        [{"params": [convolution], "orthogonal": True}, {"params": [plain]}], lr=0.1, weight_decay=0.01, fused=True
    )


def test_marked_groups_step_orthogonally_and_the_others_as_adamw() -> None:
    convolution, plain = layers()
    reference = torch.nn.Parameter(plain.detach().clone())
    adamw = torch.optim.AdamW([reference], lr=0.1, weight_decay=0.01, fused=True)
    optimizer = optimizer_of(convolution, plain)
    before = convolution.detach().clone()
    gradient = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    convolution.grad, plain.grad, reference.grad = gradient.clone(), gradient.clone(), gradient.clone()
    optimizer.step()
    adamw.step()
    torch.testing.assert_close(plain, reference)
    expected = before * (1 - 0.1 * 0.01) - 0.1 * RMS * 12**0.5 * orthogonal_factor(gradient.flatten(1)).view(4, 3, 2, 2)
    torch.testing.assert_close(convolution.detach(), expected, rtol=0, atol=5e-3)
    assert convolution.grad is not None  # nothing is taken away


def test_a_skipped_step_changes_nothing_and_a_loaded_state_continues() -> None:
    convolution, plain = layers()
    optimizer = optimizer_of(convolution, plain)
    for seed in range(3):
        for parameter in (convolution, plain):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
    before = [p.detach().clone() for p in (convolution, plain, optimizer.state[convolution]["momentum_buffer"])]
    convolution.grad = torch.full_like(convolution, float("nan"))
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), None
    optimizer.step()
    del optimizer.found_inf, optimizer.grad_scale
    after = [convolution, plain, optimizer.state[convolution]["momentum_buffer"]]
    assert all(torch.equal(left, right) for left, right in zip(before, after, strict=True))

    other = [torch.nn.Parameter(p.detach().clone()) for p in (convolution, plain)]
    resumed = optimizer_of(*other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # it shares tensors otherwise
    for pair in zip((convolution, plain), other, strict=True):
        for parameter in pair:
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9))
    optimizer.step()
    resumed.step()
    assert all(torch.equal(left, right) for left, right in zip((convolution, plain), other, strict=True))
