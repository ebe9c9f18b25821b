"""Task perceiver: the tokenizer and the token predictor."""

from __future__ import annotations

from aime.multi_task_learning.losses.task_loss import (
    LossWeights,
    Outputs,
    TaskLoss,
    TaskLossValue,
    register_loss,
    time_mean,
)


@register_loss
class PerceiverLoss(TaskLoss):
    """The Perceiver's own total (cross-entropy, commitment, reconstruction), passed on from perceiver_total_loss."""

    name = "perceiver"

    def __call__(self, outputs: Outputs, weights: LossWeights) -> TaskLossValue:  # noqa: ARG002
        """Compute the task's loss from the model's outputs."""
        total = time_mean(outputs, "perceiver_total_loss")
        return TaskLossValue(total, {"perceiver_loss": total})
