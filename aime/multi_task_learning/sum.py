"""The plain sum of task gradients: the baseline every balancer is compared with, through the same interface."""

from __future__ import annotations

from torch import Tensor

from aime.multi_task_learning.balancer import GradientBalancer


class Sum(GradientBalancer):
    """g = sum_i g_i. Same backward passes, same diagnostics, no state."""

    def weigh(self, gram: Tensor, losses: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """See `GradientBalancer.weigh`."""
        gradient = gram.new_ones(gram.shape[0])
        gradient[-1].zero_()
        return gradient, gram.new_zeros(gram.shape[0])
