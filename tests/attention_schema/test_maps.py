"""Centres, divergences, diversity and weights of maps with known answers."""

import math

import pytest
import torch
from torch import Tensor

from aime.attention_schema import (
    attention_dynamics_loss,
    categorical_kl,
    center_of_mass,
    precision_weights,
    slot_diversity_loss,
)


def peak(row: int, column: int, side: int = 6) -> Tensor:
    grid = torch.zeros(side, side)
    grid[row, column] = 1.0
    return grid


def random_maps(*leading: int, side: int = 6) -> Tensor:
    return torch.randn(*leading, side * side).softmax(-1).reshape(*leading, side, side)


def test_center_is_x_then_y_at_the_middle_of_the_cell() -> None:
    assert center_of_mass(peak(1, 4)).tolist() == [4.5, 1.5]
    assert center_of_mass((peak(0, 0) + peak(2, 4)) / 2).tolist() == [2.5, 1.5]
    assert center_of_mass(random_maps(1, 1)).shape == (1, 1, 2)  # batch 1 keeps its axes


def test_divergence_is_that_of_torch_and_finite_for_peaks() -> None:
    p, q = random_maps(4, 3), random_maps(4, 3)
    categorical = torch.distributions.Categorical
    exact = torch.distributions.kl_divergence(categorical(p.flatten(-2)), categorical(q.flatten(-2)))
    assert torch.allclose(categorical_kl(p, q.log()), exact, atol=1e-5)
    assert torch.allclose(categorical_kl(p, p.log()), torch.zeros(4, 3), atol=1e-6)
    sharp = peak(2, 2).requires_grad_()
    divergence = categorical_kl(sharp, torch.full((6, 6), 1 / 36).log())
    assert math.isclose(divergence.item(), math.log(36), rel_tol=1e-5)
    (gradient,) = torch.autograd.grad(divergence, sharp)
    assert gradient.isfinite().all()


def test_dynamics_loss_is_zero_for_the_true_motion_and_moves_no_map() -> None:
    before, after = peak(1, 1).requires_grad_(), peak(3, 0).requires_grad_()
    assert attention_dynamics_loss(before, after, torch.tensor([-1.0, 2.0])).item() == 0.0
    # smooth L1: .5 e^2 below 1, |e| - .5 above
    movement = torch.tensor([-0.5, 4.0], requires_grad=True)
    loss = attention_dynamics_loss(before, after, movement)
    assert math.isclose(loss.item(), 0.5 * 0.25 + 1.5)
    loss.backward()
    assert movement.grad is not None and before.grad is None and after.grad is None


def test_diversity_is_zero_for_disjoint_and_one_for_equal_slots() -> None:
    disjoint = torch.stack((peak(0, 0), peak(2, 3), peak(5, 1)))
    assert slot_diversity_loss(disjoint).item() == 0.0
    assert math.isclose(slot_diversity_loss(random_maps(1)[[0, 0, 0]]).item(), 1.0, rel_tol=1e-5)
    assert abs(slot_diversity_loss(random_maps(1)).item()) < 1e-6
    assert slot_diversity_loss(random_maps(2, 5, 4)).shape == (2, 5)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_precision_weights_have_mean_one_and_a_floor(leading: tuple[int, ...]) -> None:
    maps = random_maps(*leading).requires_grad_()
    weights = precision_weights(maps, (24, 30), floor=0.2)
    assert weights.shape == (*leading, 24, 30) and not weights.requires_grad
    assert torch.allclose(weights.mean((-2, -1)), torch.ones(leading), atol=1e-5)
    assert (weights >= 0.2 - 1e-6).all()


def test_precision_weights_are_large_where_attention_is() -> None:
    weights = precision_weights(peak(1, 4), (24, 24))
    row, column = divmod(int(weights.argmax()), 24)
    assert 4 <= row < 8 and 16 <= column < 20
    assert torch.allclose(precision_weights(torch.full((6, 6), 1 / 36), (24, 24)), torch.ones(24, 24), atol=1e-5)
    with pytest.raises(ValueError, match="floor: expected in"):
        precision_weights(peak(1, 4), (24, 24), floor=1.5)
