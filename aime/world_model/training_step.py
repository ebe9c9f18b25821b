"""One optimisation step of the world model: losses, gradient balancing, clipping, AdamW, buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from aime.multi_task_learning import make_balancer

if TYPE_CHECKING:
    from aime.world_model.model import DPGMMVariationalRecurrentAutoencoder

RATE_MULTIPLIERS = {
    "perceiver": 1.5,
    "attention": 1.2,
    "reward_head": 1.2,
    "continue_head": 1.2,
}
"""Learning rate of a part over that of the trunk."""


def parameter_groups(
    model: DPGMMVariationalRecurrentAutoencoder, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """AdamW groups: perceiver 1.5x, heads and attention 1.2x, learned initial states .1x; no decay on vectors."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = name.partition(".")[0]
        initial_state = part == "dynamics" and ".initial_" in name
        multiplier = 0.1 if initial_state else RATE_MULTIPLIERS.get(part, 1.0)
        decay = 0.0 if parameter.dim() < 2 or initial_state else weight_decay
        # Perceiver and heads decay half as much: their rate, which multiplies the decay, is higher.
        decay = decay * 0.5 if multiplier > 1.0 else decay
        groups.setdefault((multiplier, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": multiplier * learning_rate, "weight_decay": decay, "rate_multiplier": multiplier}
        for (multiplier, decay), parameters in groups.items()
    ]


def configure_optimizer(
    model: DPGMMVariationalRecurrentAutoencoder,
    learning_rate: float,
    weight_decay: float,
    balancer: str,
    **options: Any,
) -> None:
    """Set ``model.optimizer`` (fused AdamW) and ``model.rgb_optimizer`` (the balancer, with its options)."""
    groups = parameter_groups(model, learning_rate, weight_decay)
    if model.config.orthogonal == "manifold":
        from aime.temporal_dynamics.manifold import riemannian_adam

        model.optimizer = riemannian_adam(groups, lr=learning_rate)
    else:
        model.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), fused=True)
    model.rgb_optimizer = make_balancer(
        balancer, device=model.mean_image.device, get_share_params=lambda: model.trainable, **options
    )


def training_step(
    model: DPGMMVariationalRecurrentAutoencoder,
    observations: Tensor,
    actions: Tensor | None = None,
    rewards: Tensor | None = None,
    continues: Tensor | None = None,
    *,
    beta: float = 1.0,
    entropy_weight: float = 0.0,
    lambda_recon: float = 1.0,
    lambda_att_dyn: float = 0.1,
    lambda_gram: float = 0.05,
    lambda_diversity: float = 0.01,
    grad_clip: float = 5.0,
    autocast: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Losses, one balanced backward pass, clipping, one AdamW step, codebook and teacher updates.

    Args:
        model: the world model.
        observations: (B, T, C, H, W) uint8, or float in [-1, 1].
        actions: (B, T, A), each taken after the frame of its index.
        rewards: (B, T) of those actions.
        continues: (B, T), 0 where the episode ended.
        beta: weight of the KL terms.
        entropy_weight: weight of the entropy of component use, which is subtracted.
        lambda_recon: weight of the reconstruction.
        lambda_att_dyn: weight of the attention's motion loss.
        lambda_gram: weight of the Gram loss.
        lambda_diversity: weight of the slots' diversity; small, because balancing gives the predictive task's gradient
            the length of the likelihood's, and diversity is the only part of it that moves the posterior map.
        grad_clip: largest norm of the balanced gradient.
        autocast: dtype of mixed precision; none when absent.
        generator: source of randomness.

    Returns:
        scalars on the model's device, nothing synchronised: the losses, ``grad_norm`` before clipping, ``finite``
        (1 if the step was taken, 0 if it was skipped for a NaN or Inf), and the norm and pairwise cosines of each
        task's gradient.

    Raises:
        RuntimeError: ``configure_optimizer`` was not called.
    """
    optimizer, balancer = model.optimizer, model.rgb_optimizer
    if optimizer is None or balancer is None:
        raise RuntimeError("the model has no optimizer: call configure_optimizer before training_step_sequence")
    with torch.autocast(model.mean_image.device.type, autocast, enabled=autocast is not None):
        outputs = model.forward_sequence(observations, actions, rewards, continues, generator=generator)
    losses, tasks = model.loss_aggregator.compute_losses(
        outputs,
        beta=beta,
        entropy_weight=entropy_weight,
        lambda_recon=lambda_recon,
        lambda_att_dyn=lambda_att_dyn,
        lambda_gram=lambda_gram,
        lambda_diversity=lambda_diversity,
    )
    optimizer.zero_grad(set_to_none=True)
    balanced = balancer.backward(tasks, model.trainable, max_norm=grad_clip)
    finite = balanced.finite
    apply_step(optimizer, finite)
    update_buffers(model, outputs, finite, generator)
    metrics = {name: value.detach() for name, value in losses.items()}
    metrics["grad_norm"], metrics["finite"] = balanced.grad_norm, finite.float()
    metrics["K_eff"] = outputs["K_eff"].detach()
    for name in ("perceiver_perplexity", "perceiver_usage", "perceiver_accuracy"):
        metrics[name] = outputs[name].detach()
    names = balanced.task_names
    for i, name in enumerate(names):
        metrics[f"grad_norm/{name}"] = balanced.task_norms[i]
        for j in range(i):
            metrics[f"grad_cosine/{names[j]}_{name}"] = balanced.cosines[i, j]
    return metrics


def apply_step(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Step unless a gradient is not finite; fused AdamW takes the decision on the device, without a host sync."""
    if not isinstance(optimizer, torch.optim.AdamW):
        if bool(finite):
            optimizer.step()
        return
    optimizer.found_inf = 1.0 - finite.float()  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]


def update_buffers(
    model: DPGMMVariationalRecurrentAutoencoder,
    outputs: dict[str, Any],
    finite: Tensor,
    generator: torch.Generator | None,
) -> None:
    """Codebook and teacher, kept as they were when the step was skipped."""
    quantizer = model.perceiver.tokenizer.quantizer
    before = {name: buffer.clone() for name, buffer in quantizer.named_buffers()}
    model.update_buffers(outputs, generator)
    for name, buffer in quantizer.named_buffers():
        buffer.copy_(torch.where(finite, buffer, before[name]))
