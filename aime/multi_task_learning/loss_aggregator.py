"""From the model's outputs to the losses that are reported and the tasks that are balanced."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

from aime.multi_task_learning.losses.task_loss import LOSSES, LossWeights, Outputs, TaskLoss, TaskLosses, time_mean


class LossAggregator:
    """Applies every registered task to the model's outputs.

    Args:
        tasks: names of the tasks to use, in order; None takes all that are registered.

    Example:
        >>> import torch
        >>> outputs = {"reconstruction_losses": torch.tensor([2.0, 4.0]), "kl_latents": torch.tensor([1.0, 1.0])}
        >>> losses, tasks = LossAggregator().compute_losses(outputs, beta=0.5)
        >>> list(tasks), float(losses["total_loss"])
        (['elbo', 'perceiver', 'predictive'], 3.5)
    """

    def __init__(self, tasks: Sequence[str] | None = None) -> None:
        names = list(LOSSES) if tasks is None else list(tasks)
        for name in names:
            if name not in LOSSES:
                near = difflib.get_close_matches(name, LOSSES, n=3)
                hint = f"; did you mean {' or '.join(near)}?" if near else ""
                raise ValueError(f"expected a task among {', '.join(LOSSES)}, found {name!r}{hint}")
        self.tasks: list[TaskLoss] = [LOSSES[name] for name in names]

    def compute_losses(
        self,
        outputs: Outputs,
        beta: float | Tensor = 1.0,
        entropy_weight: float | Tensor = 0.1,
        lambda_recon: float | Tensor = 1.0,
        lambda_att_dyn: float | Tensor = 0.1,
        lambda_gram: float | Tensor = 0.05,
        lambda_diversity: float | Tensor = 1.0,
        lambda_context: float | Tensor = 1.0,
        lambda_reward: float | Tensor = 1.0,
        lambda_continue: float | Tensor = 1.0,
        lambda_img: float | Tensor = 1.0,
        observations: Tensor | None = None,  # noqa: ARG002
    ) -> tuple[dict[str, Tensor], TaskLosses]:
        """`weigh` with the weights by name, see `LossWeights` for each.

        The outputs hold all that a loss needs: ``observations`` are there for older code that passes them.
        """
        return self.weigh(
            outputs,
            LossWeights(
                beta=beta,
                entropy_weight=entropy_weight,
                lambda_recon=lambda_recon,
                lambda_att_dyn=lambda_att_dyn,
                lambda_gram=lambda_gram,
                lambda_diversity=lambda_diversity,
                lambda_context=lambda_context,
                lambda_reward=lambda_reward,
                lambda_continue=lambda_continue,
                lambda_img=lambda_img,
            ),
        )

    def weigh(self, outputs: Outputs, weights: LossWeights) -> tuple[dict[str, Tensor], TaskLosses]:
        """Average the outputs' losses over time, weigh them and sum them by task.

        Args:
            outputs: what `forward_sequence` returned. Every loss entry is a scalar or has one entry per frame; a
                missing one counts as 0.
            weights: of the terms inside the tasks.

        Returns:
            All losses by name, each a 0-d tensor: the terms (recon_loss, kl_z, hierarchical_kl, attention_kl,
            cluster_entropy, gram_enc_loss, attention_diversity, perceiver_loss, attention_dynamics_loss,
            context_prediction_loss, reward_loss, continue_loss; with critics img_adv_loss, temporal_adv_loss,
            feat_match_loss and their weighted sum adversarial_loss), total_vae_loss, total_elbo (with the attention's
            KL), total_predictive = attention_loss, and total_loss, the sum of the tasks. And the tasks' losses by name.

        Raises:
            ValueError: the outputs hold none of the tasks.
        """
        losses: dict[str, Tensor] = {}
        task_losses = TaskLosses()
        for task in self.tasks:
            if task.applies(outputs):
                value = task(outputs, weights)
                losses.update(value.terms)
                task_losses[task.name] = value.total
        if "elbo" in task_losses:
            losses["total_vae_loss"] = task_losses["elbo"]
            losses["total_elbo"] = task_losses["elbo"] + weights.beta * time_mean(outputs, "attention_losses")
        if "predictive" in task_losses:
            losses["attention_loss"] = losses["total_predictive"] = task_losses["predictive"]
        if not task_losses:
            raise ValueError(
                f"expected outputs of at least one task among {', '.join(t.name for t in self.tasks)}, found none"
            )
        losses["total_loss"] = torch.stack(list(task_losses.values())).sum()
        return losses, task_losses

    def get_all_metrics(self, outputs: Outputs) -> dict[str, Tensor]:
        """The quantities beside losses that are worth a curve, each a 0-d tensor, for those that the outputs hold."""
        metrics = {
            name: time_mean(outputs, name).detach()
            for name in (
                "vq_perplexity",
                "vq_commitment_loss",
                "vq_reconstruction_loss",
                "mean_attention_entropy",
                "slot_usage",
                "attention_concentration",
            )
            if isinstance(outputs.get(name), Tensor) and outputs[name].dim() <= 1
        }
        for name, key in (
            ("kl_z_mean", "kl_latents"),
            ("hierarchical_kl_mean", "kumaraswamy_kl_losses"),
            ("attention_kl_mean", "attention_losses"),
        ):
            metrics[name] = time_mean(outputs, key).detach()
        kl = outputs.get("kl_latents")
        if isinstance(kl, Tensor) and kl.dim() == 1:
            metrics["kl_z_std"] = kl.detach().std(unbiased=False)
        return metrics
