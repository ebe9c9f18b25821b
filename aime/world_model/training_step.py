"""Optimisation steps of the world model: one on frames, balanced over the tasks, and one on remembered posteriors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aime.adversarial import CriticPlayer
from aime.multi_task_learning import make_balancer
from aime.multi_task_learning.balancer import BalancedStep, GradientBalancer, sum_gradients
from aime.multi_task_learning.loss_aggregator import LossAggregator
from aime.multi_task_learning.losses.task_loss import LossWeights
from aime.multi_task_learning.orthogonal_step import OrthogonalAdamW
from aime.nn import apply_step
from aime.perceiver_io.quantizer import codebook_statistics
from aime.ranks import Ranks
from aime.world_model.outputs import SequenceOutputs
from aime.world_model.parts import WorldModelParts
from aime.world_model.rehearsal import RememberedSequences, rehearsal_loss
from aime.world_model.sequence import SequencePass, forward_sequence

RATE_MULTIPLIERS = {
    "perceiver": 1.5,
    "attention": 1.2,
    "reward_head": 1.2,
    "continue_head": 1.2,
}
"""Learning rate of a part over that of the trunk."""
ORTHOGONAL_PARTS = ("dynamics", "prior")
"""Parts whose matrices step along the orthogonal factor of their momentum. Recurrence and prior have to keep up with
latents that move under them; the image networks are better off without (docs/ablations.md)."""
SMALLEST_MATRIX = 16
"""Rows and columns from which on a matrix of those parts is large enough for it."""
STEP_WEIGHTS = LossWeights(entropy_weight=0.0, lambda_diversity=0.01)
"""Weights of a step's losses where nothing else is asked for (docs/ablations.md)."""
REHEARSAL_CLIP = 100.0
"""Largest norm of a rehearsal's gradient: a guard against single steps, far above the usual norm of 1 to 10."""


def parameter_groups(parts: WorldModelParts, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: perceiver 1.5x, heads and attention 1.2x, learned initial states .1x; no decay on vectors.

    Large matrices of recurrence and prior are in groups of their own, marked ``orthogonal``.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    moved = {id(parameter) for parameter in parts.trainable}
    for name, parameter in parts.named_parameters():
        if id(parameter) not in moved:
            continue
        part = name.partition(".")[0]
        initial_state = part == "dynamics" and ".initial_" in name
        multiplier = 0.1 if initial_state else RATE_MULTIPLIERS.get(part, 1.0)
        decay = 0.0 if parameter.dim() < 2 or initial_state or hasattr(parameter, "manifold") else weight_decay
        # Perceiver and heads decay half as much: their rate, which multiplies the decay, is higher.
        decay = decay * 0.5 if multiplier > 1.0 else decay
        matrix = parameter.dim() == 2 and min(parameter.shape) >= SMALLEST_MATRIX
        orthogonal = matrix and part in ORTHOGONAL_PARTS and not initial_state
        groups.setdefault((multiplier, decay, orthogonal), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": multiplier * learning_rate,
            "weight_decay": decay,
            "rate_multiplier": multiplier,
            "orthogonal": orthogonal,
        }
        for (multiplier, decay, orthogonal), parameters in groups.items()
    ]


def make_optimizer(
    parts: WorldModelParts,
    learning_rate: float,
    weight_decay: float,
    balancer: str,
    get_share_params: Callable[[], list[nn.Parameter]],
    **options: Any,
) -> tuple[torch.optim.Optimizer, GradientBalancer]:
    """AdamW with orthogonal steps for recurrence and prior, and the balancer, which takes the options.

    For ``orthogonal="manifold"`` it is RiemannianAdam.
    """
    groups = parameter_groups(parts, learning_rate, weight_decay)
    optimizer: torch.optim.Optimizer
    if parts.config.orthogonal == "manifold":
        from aime.temporal_dynamics.manifold import riemannian_adam

        optimizer = riemannian_adam(groups, lr=learning_rate)
    else:
        optimizer = OrthogonalAdamW(groups, lr=learning_rate, betas=(0.9, 0.999), fused=True)
    device = parts.mean_image.device
    return optimizer, make_balancer(balancer, device=device, get_share_params=get_share_params, **options)


def make_opponent(parts: WorldModelParts, learning_rate: float) -> CriticPlayer | None:
    """The critics' own optimizer, at ``critic_rate`` times the model's rate; None without critics."""
    if parts.critics is None:
        return None
    return CriticPlayer(parts.critics, parts.config.critic_rate * learning_rate, parts.config.critic_steps)


def training_step(
    parts: WorldModelParts,
    optimizer: torch.optim.Optimizer,
    balancer: GradientBalancer,
    aggregator: LossAggregator,
    observations: Tensor,
    actions: Tensor | None = None,
    rewards: Tensor | None = None,
    continues: Tensor | None = None,
    *,
    weights: LossWeights = STEP_WEIGHTS,
    grad_clip: float = 5.0,
    autocast: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    opponent: CriticPlayer | None = None,
    before_update: Callable[[], object] | None = None,
    after_pass: Callable[[SequencePass], None] | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Tensor]:
    """Losses, one balanced backward pass, clipping, one AdamW step, codebook and teacher updates.

    Args:
        parts: the pillars.
        optimizer: moves the parameters.
        balancer: turns the gradients of the tasks into one.
        aggregator: turns outputs into losses and tasks.
        observations: (B, T, C, H, W) uint8, or float in [-1, 1].
        actions: (B, T, A), each taken after the frame of its index.
        rewards: (B, T) of those actions.
        continues: (B, T), 0 where the episode ended.
        weights: of the terms inside the tasks.
        grad_clip: largest norm of the balanced gradient.
        autocast: dtype of mixed precision; none when absent.
        generator: source of randomness.
        opponent: steps the critics on this step's frames and reconstructions, after the model's own step.
        before_update: called when the gradient is there and no parameter has moved: readers beside it end by then.
        after_pass: called with the pass when the step is done, for those who keep something of it.
        ranks: the processes of a distributed step, each with its rows of the batch; gradients, codebook and teacher
            become those of one process with the whole batch. Losses and metrics that are no gradients' are of this
            rank's rows, but for the use of the codebook.

    Returns:
        what `step_metrics` gathers, and what the critics report.
    """
    with torch.autocast(parts.mean_image.device.type, autocast, enabled=autocast is not None):
        result = forward_sequence(parts, observations, actions, rewards, continues, generator=generator, ranks=ranks)
    outputs = SequenceOutputs(parts, result, ranks)
    losses, tasks = aggregator.weigh(outputs, weights)
    optimizer.zero_grad(set_to_none=True)
    balanced = balancer.backward(tasks, parts.trainable, max_norm=grad_clip, ranks=ranks)
    if before_update is not None:
        before_update()
    apply_step(optimizer, balanced.finite)
    update_buffers(parts, result, balanced.finite, generator, ranks)
    if after_pass is not None:
        after_pass(result)
    contest = None if opponent is None else result.contest
    played = {} if opponent is None or contest is None else opponent.step(contest, generator)
    return step_metrics(losses, outputs, balanced) | played | perceiver_metrics(parts, result, ranks)


def step_metrics(losses: dict[str, Tensor], outputs: SequenceOutputs, balanced: BalancedStep) -> dict[str, Tensor]:
    """Scalars on the model's device, nothing synchronised.

    Returns:
        the losses, ``grad_norm`` before clipping, ``finite`` (1 if the step was taken, 0 if it was skipped for a NaN or
        Inf), ``K_eff``, and the norm and pairwise cosines of each task's gradient.
    """
    metrics = {name: value.detach() for name, value in losses.items()}
    metrics["grad_norm"], metrics["finite"] = balanced.grad_norm, balanced.finite.float()
    metrics["K_eff"] = outputs["K_eff"].detach()
    names = balanced.task_names
    for i, name in enumerate(names):
        metrics[f"grad_norm/{name}"] = balanced.task_norms[i]
        for j in range(i):
            metrics[f"grad_cosine/{names[j]}_{name}"] = balanced.cosines[i, j]
    return metrics


def perceiver_metrics(parts: WorldModelParts, result: SequencePass, ranks: Ranks | None) -> dict[str, Tensor]:
    """Codebook use over all ranks, accuracy of the next tokens over this one's rows; nothing without context."""
    names = ("perplexity", "usage", "accuracy", "copy_accuracy")
    losses = result.perceiver_losses
    metrics = {f"perceiver_{name}": losses[name].detach() for name in names if name in losses}
    if ranks is not None and result.perceived.perceiver is not None:
        ids, book = result.perceived.perceiver.tokens.ids, parts.perceiver.tokenizer.quantizer
        statistics = codebook_statistics(ids, book.num_codes, book.heads, ranks)
        metrics["perceiver_perplexity"], metrics["perceiver_usage"] = statistics
    return metrics


@dataclass(frozen=True)
class RehearsalGradient:
    """What a rehearsal found, before anything is moved by it.

    Attributes:
        loss: ().
        gradients: of each trainable parameter, in order; None for those that a rehearsal does not reach.
    """

    loss: Tensor
    gradients: tuple[Tensor | None, ...]


def rehearsal_gradient(
    parts: WorldModelParts,
    sequences: RememberedSequences,
    seen: int,
    rolled: int | None = None,
    *,
    autocast: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> RehearsalGradient:
    """Gradient of recurrence and prior on remembered posteriors; see `aime.world_model.rehearsal`.

    It only reads the parameters and leaves every ``.grad`` alone, so that it may run on a thread beside the pass and
    the gradient of a :func:`training_step`.
    """
    with torch.autocast(parts.mean_image.device.type, autocast, enabled=autocast is not None):
        loss = rehearsal_loss(parts, sequences, seen, rolled, generator=generator)
    gradients = torch.autograd.grad(loss, parts.trainable, allow_unused=True)
    return RehearsalGradient(loss.detach(), gradients)


@torch.no_grad()
def rehearsal_update(
    parts: WorldModelParts, optimizer: torch.optim.Optimizer, found: RehearsalGradient, ranks: Ranks | None = None
) -> dict[str, Tensor]:
    """One optimizer step along a rehearsal's gradient.

    With ``ranks`` every process takes the same step: it costs what it costs one process, and averaging the gradients
    keeps what differs between devices in the last digit from adding up.

    Returns:
        ``rehearsal_loss`` and ``rehearsal_finite`` (0 where the step was skipped), on the model's device.
    """
    optimizer.zero_grad(set_to_none=True)
    moved = []
    for parameter, gradient in zip(parts.trainable, found.gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient
            moved.append(parameter)
    if ranks is not None:
        torch._foreach_div_([parameter.grad for parameter in moved if parameter.grad is not None], ranks.size)
        sum_gradients(moved, ranks)
    norm = torch.nn.utils.clip_grad_norm_(moved, REHEARSAL_CLIP)
    finite = torch.isfinite(norm) & torch.isfinite(found.loss)
    apply_step(optimizer, finite)
    return {"rehearsal_loss": found.loss, "rehearsal_finite": finite.float()}


@torch.no_grad()
def update_buffers(
    parts: WorldModelParts,
    result: SequencePass,
    finite: Tensor,
    generator: torch.Generator | None,
    ranks: Ranks | None = None,
) -> None:
    """Move codebook and teacher after a step; both stay as they were when it was skipped."""
    if result.perceived.perceiver is not None:
        quantizer = parts.perceiver.tokenizer.quantizer
        before = {name: buffer.clone() for name, buffer in quantizer.named_buffers()}
        parts.perceiver.update_codebook(result.perceived.perceiver.tokens, generator, ranks)
        for name, buffer in quantizer.named_buffers():
            buffer.copy_(torch.where(finite, buffer, before[name]))
    if parts.teacher_trunk is not None:
        weight = (1.0 - parts.config.teacher_decay) * finite.float()
        for teacher, student in zip(parts.teacher_trunk.parameters(), parts.encoder.trunk.parameters(), strict=True):
            teacher.lerp_(student, weight.to(teacher.dtype))
