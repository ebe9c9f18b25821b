"""Task predictive: attention and context must be foreseeable from the past."""

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
class PredictiveLoss(TaskLoss):
    """beta KL of the attention maps + centre motion + context prediction.

    Reads attention_losses, attention_dynamics_loss and context_prediction_loss.
    """

    name = "predictive"

    def __call__(self, outputs: Outputs, weights: LossWeights) -> TaskLossValue:
        """Compute the task's loss from the model's outputs."""
        terms = {
            "attention_kl": time_mean(outputs, "attention_losses"),
            "attention_dynamics_loss": time_mean(outputs, "attention_dynamics_loss"),
            "context_prediction_loss": time_mean(outputs, "context_prediction_loss"),
        }
        total = (
            weights.beta * terms["attention_kl"]
            + weights.lambda_att_dyn * terms["attention_dynamics_loss"]
            + weights.lambda_context * terms["context_prediction_loss"]
        )
        return TaskLossValue(total, terms)
