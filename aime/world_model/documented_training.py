"""Loops of the original AIME's documents: an optimizer of their own, `loss.backward()`, no call after the step.

`training_step` moves codebook and teacher after the optimizer's step. A loop that was written for the original calls
nothing then, where the original moved its codebook in the forward pass. Here it moves when a backward pass has gone
through the Perceiver's loss: a pass that nobody learns from changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aime.world_model.parts import WorldModelParts
from aime.world_model.sequence import SequencePass
from aime.world_model.training_step import update_buffers


def move_buffers_after_backward(parts: WorldModelParts, result: SequencePass) -> None:
    """Move codebook and teacher once, at the end of the first backward pass through the Perceiver's loss of a pass."""
    loss = result.perceiver_losses.get("total_loss")
    if loss is None or not loss.requires_grad:
        return
    moved: list[bool] = []

    def reached(gradient: Tensor) -> None:
        if moved:
            return
        moved.append(True)
        finite = torch.isfinite(gradient).all()
        # Only when the pass is over: what it saved of the codebook has to stay until then.
        torch.autograd.Variable._execution_engine.queue_callback(lambda: update_buffers(parts, result, finite, None))

    loss.register_hook(reached)
