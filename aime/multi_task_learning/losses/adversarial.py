"""Task adversarial: reconstructions that critics take for frames."""

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
class AdversarialLoss(TaskLoss):
    """lambda_img (image critic + video critic + feature matching); see `aime.adversarial.GeneratorLosses`.

    Reads img_adv_loss, temporal_adv_loss and feat_match_loss. A task only where the outputs hold them: a model without
    critics has three tasks, and so has one in evaluation.
    """

    name = "adversarial"

    def applies(self, outputs: Outputs) -> bool:
        """Whether there are critics."""
        return "img_adv_loss" in outputs

    def __call__(self, outputs: Outputs, weights: LossWeights) -> TaskLossValue:
        """Compute the task's loss from the model's outputs."""
        terms = {
            "img_adv_loss": time_mean(outputs, "img_adv_loss"),
            "temporal_adv_loss": time_mean(outputs, "temporal_adv_loss"),
            "feat_match_loss": time_mean(outputs, "feat_match_loss"),
        }
        total = weights.lambda_img * (terms["img_adv_loss"] + terms["temporal_adv_loss"] + terms["feat_match_loss"])
        return TaskLossValue(total, terms | {"adversarial_loss": total})
