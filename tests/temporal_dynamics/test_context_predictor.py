"""Predicted context: learns the target, leaves it alone."""

import pytest
import torch

from aime.temporal_dynamics import ContextPredictor, context_prediction_loss


def test_learns_a_function_of_the_state() -> None:
    torch.manual_seed(0)
    predictor, mixing = ContextPredictor(6, 4, width=32), torch.randn(6, 4)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=1e-2)
    hidden = torch.randn(64, 8, 6)
    context = torch.tanh(hidden @ mixing)
    first = context_prediction_loss(predictor(hidden), context).mean().item()
    for _ in range(150):
        loss = context_prediction_loss(predictor(hidden), context).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * first


def test_loss_keeps_leading_axes_and_does_not_move_the_target() -> None:
    predicted, context = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True)
    loss = context_prediction_loss(predicted, context)
    assert torch.allclose(loss, (predicted - context).square().mean(-1))
    loss.sum().backward()
    assert predicted.grad is not None and context.grad is None


def test_wrong_size_is_named() -> None:
    with pytest.raises(ValueError, match=r"hidden: expected \(..., Hd=6\), found \(2, 5\)"):
        ContextPredictor(6, 4)(torch.zeros(2, 5))
