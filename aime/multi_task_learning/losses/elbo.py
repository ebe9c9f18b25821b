"""Task elbo: the negative evidence lower bound of frames, rewards and continuation."""

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
class ELBOLoss(TaskLoss):
    """Reconstruction + beta (KL of z + KL of the sticks) - entropy bonus + Gram + diversity + reward + continue.

    Reads reconstruction_losses, kl_latents, kumaraswamy_kl_losses, cluster_entropies, gram_enc,
    attention_diversity_losses, reward_loss and continue_loss. The attention's KL belongs to the predictive task; the
    diversity of the slots belongs here, since it moves the posterior's maps, which nothing else of that task reaches:
    there it would cost a second pass back through the trunk.
    """

    name = "elbo"

    def __call__(self, outputs: Outputs, weights: LossWeights) -> TaskLossValue:
        """Compute the task's loss from the model's outputs."""
        terms = {
            "recon_loss": time_mean(outputs, "reconstruction_losses"),
            "kl_z": time_mean(outputs, "kl_latents"),
            "hierarchical_kl": time_mean(outputs, "kumaraswamy_kl_losses"),
            "cluster_entropy": time_mean(outputs, "cluster_entropies"),
            "gram_enc_loss": time_mean(outputs, "gram_enc"),
            "attention_diversity": time_mean(outputs, "attention_diversity_losses"),
            "reward_loss": time_mean(outputs, "reward_loss"),
            "continue_loss": time_mean(outputs, "continue_loss"),
        }
        total = (
            weights.lambda_recon * terms["recon_loss"]
            + weights.beta * (terms["kl_z"] + terms["hierarchical_kl"])
            - weights.entropy_weight * terms["cluster_entropy"]
            + weights.lambda_gram * terms["gram_enc_loss"]
            + weights.lambda_diversity * terms["attention_diversity"]
            + weights.lambda_reward * terms["reward_loss"]
            + weights.lambda_continue * terms["continue_loss"]
        )
        return TaskLossValue(total, terms)
