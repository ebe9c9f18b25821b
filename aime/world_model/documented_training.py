"""Loops of the original AIME's documents: an optimizer of their own, `loss.backward()`, no call after the step.

`training_step` moves codebook and teacher after the optimizer's step, and lets the critics take theirs. A loop that was
written for the original calls nothing then, where the original moved its codebook in the forward pass. Here what is not
the optimizer's moves when a backward pass has gone through the loss that needs it, once a pass: codebook and teacher
by the Perceiver's loss, the critics by the adversarial one. A pass that nobody learns from changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aime.adversarial import CriticPlayer
from aime.world_model.parts import WorldModelParts
from aime.world_model.sequence import SequencePass
from aime.world_model.training_step import update_buffers


def move_after_backward(
    parts: WorldModelParts, result: SequencePass, opponent: Callable[[], CriticPlayer | None]
) -> None:
    """Let codebook, teacher and critics follow the first backward pass through the losses of a pass.

    Args:
        parts: whose codebook and teacher.
        result: the pass.
        opponent: gives who steps the critics; called when they step.
    """
    loss, contest = result.perceiver_losses.get("total_loss"), result.contest
    if loss is not None and loss.requires_grad:
        after_first_backward(loss, lambda finite: update_buffers(parts, result, finite, None))
    if contest is not None and contest.fake.requires_grad:

        def critics_step(_: Tensor) -> None:
            player = opponent()
            if player is not None:
                with torch.enable_grad():
                    player.step(contest)  # which skips a step that is not finite

        after_first_backward(contest.fake, critics_step)


def after_first_backward(through: Tensor, act: Callable[[Tensor], None]) -> None:
    """Call once, at the end of the first backward pass through a tensor, with whether its gradient was finite ()."""
    moved: list[bool] = []

    def reached(gradient: Tensor) -> None:
        if moved:
            return
        moved.append(True)
        finite = torch.isfinite(gradient).all()
        # Only when the pass is over: what it saved of the codebook has to stay until then.
        torch.autograd.Variable._execution_engine.queue_callback(lambda: act(finite))

    through.register_hook(reached)
