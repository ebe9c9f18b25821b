"""The rollout of `latent_rollout` on a CPU in C++: one call forward, one backward (csrc/kernels/latent_rollout.hpp).

A frame is a few products of some dozen rows; as PyTorch operations, 45 a frame forward and backward, most of its time
goes into calling them. Here the frames are a loop in C++ on the calling thread; the gradients of the matrices are
products over all frames, which PyTorch computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aime.kernels.dispatch import extension_obstacle
from aime.kernels.extension import addresses, load
from aime.nn import expect_shape
from aime.world_model.parts import WorldModelParts

MULTIPLE = 16
"""Of Hd and the widths of the networks: whole vectors of every instruction set (csrc/kernels/latent_rollout.hpp)."""


def compiled_obstacle(parts: WorldModelParts, narrow: torch.dtype) -> str | None:
    """Why the C++ rollout cannot run for this model, or None.

    It takes float32 weights on a CPU, products in float32 or bfloat16, a recurrence of one layer, no context vector,
    and hidden units in multiples of 16.

    Args:
        parts: the pillars.
        narrow: dtype in which matrices are multiplied.
    """
    config = parts.config
    missing = extension_obstacle(parts.persistence, allowed=(torch.float32,))
    if missing is not None:
        return missing
    if narrow not in (torch.float32, torch.bfloat16):
        return f"it multiplies in float32 or bfloat16, found {narrow}"
    if config.num_lstm_layers != 1:
        return f"it takes a recurrence of one layer, found {config.num_lstm_layers}"
    if config.context_size:
        return f"it takes no context vector, found one of {config.context_size}"
    sticks = stick_layers(parts)
    widths = {"hidden_dim": config.hidden_dim, "prior_hidden_dim": config.prior_hidden_dim}
    if sticks:
        widths["width of the sticks' network"] = len(sticks[1])
    for name, width in widths.items():
        if width % MULTIPLE:
            return f"{name}: it takes multiples of {MULTIPLE}, found {width}"
    return None


def stick_layers(parts: WorldModelParts) -> tuple[Tensor, ...]:
    """Weights of the sticks' network: first layer, LayerNorm, last layer; none where there is one component."""
    if parts.config.max_components == 1:
        return ()
    first, norm, _, last = parts.prior.stick_breaking.kumar_net.network
    assert isinstance(first, nn.Linear)
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(last, nn.Linear)
    return first.weight, first.bias, norm.weight, norm.bias, last.weight, last.bias


@dataclass(frozen=True)
class Record:
    """Arguments of the C++ calls, kept alive, and what the forward call found for the backward call.

    Attributes:
        sizes: N, B, Hd, W, width of the sticks' network, K, D, A.
        narrow: dtype of the products, bfloat16 or float32.
        weights: as RolloutWeights has them.
        inputs: actions (B, N, A), h (B, Hd), z (B, D), raw state and cell (B, Hd), and noise.
        found: as RolloutRecord has them, hiddens (B, N, Hd) and latents (B, N, D) first.
        instructions: name of an instruction set, "" for the best.
    """

    sizes: tuple[int, ...]
    narrow: torch.dtype
    weights: tuple[Tensor | None, ...]
    inputs: tuple[Tensor, ...]
    found: tuple[Tensor, ...]
    instructions: str

    @property
    def described(self) -> tuple[Any, ...]:
        """What both calls begin with."""
        addressed = (addresses(*tensors) for tensors in (self.weights, self.inputs, self.found))
        return self.sizes, self.narrow == torch.bfloat16, *addressed

    def narrow_rows(self, index: int) -> Tensor:
        """(N B, F) of a narrow tensor of ``found``."""
        return self.found[index].flatten(0, 1)


def run_forward(
    parts: WorldModelParts,
    noise: tuple[Tensor, Tensor, Tensor],
    given: tuple[Tensor, ...],
    weights: tuple[Tensor, ...],
    narrow: torch.dtype,
    instructions: str = "",
) -> Record:
    """Roll out and keep what `run_backward` needs.

    Args:
        parts: the pillars, without :func:`compiled_obstacle`.
        noise: sticks (N, B, K - 1), choice (N, B, K), normal (N, B, D).
        given: actions (B, N, A), h (B, Hd), z (B, D), raw state and cell (B, 1, Hd); float32.
        weights: those of `roll_latents`, in its order.
        narrow: dtype in which matrices are multiplied.
        instructions: one of the extension's instruction sets, "" takes the best.

    Raises:
        ValueError: a tensor of another shape, or an unknown instruction set.
    """
    config = parts.config
    batch, frames = given[0].shape[:2]
    hidden, latent, components = config.hidden_dim, config.latent_dim, config.max_components
    sizes = {"B": batch, "N": frames, "Hd": hidden, "D": latent, "K": components, "A": config.action_size}
    sizes |= {"S": components - 1, "L": 1}
    shapes = {"actions": "B N A", "hidden": "B Hd", "latent": "B D", "raw state": "B L Hd", "cell": "B L Hd"}
    shapes |= {"sticks": "N B S", "choice": "N B K", "normal": "N B D"}
    for tensor, (name, shape) in zip((*given, *noise), shapes.items(), strict=True):
        expect_shape(tensor, shape, name, **{axis: sizes[axis] for axis in shape.split()})
    *plain, bias_ih, bias_hh = (weight.detach().float().contiguous() for weight in weights)
    sticks = tuple(weight.detach().contiguous() for weight in stick_layers(parts))
    width, stick_width = config.prior_hidden_dim, len(sticks[1]) if sticks else 0
    pair = -(-(latent + config.action_size + hidden) // 2) * 2  # a whole number of pairs

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    found = (
        *(empty(batch, frames, hidden), empty(batch, frames, latent)),
        *(empty(frames, batch, size, dtype=narrow) for size in (hidden, width, pair)),
        *(empty(frames, batch, 4 * hidden), empty(frames + 1, batch, hidden)),
        *(empty(frames, batch, hidden), empty(frames, batch), empty(frames, batch, width), empty(frames, batch)),
        *(empty(frames, batch, latent), empty(frames, batch, dtype=torch.int32)),
    )
    record = Record(
        (frames, batch, hidden, width, stick_width, components, latent, config.action_size),
        narrow,
        (*plain, bias_ih + bias_hh, *(sticks or [None] * 6)),
        tuple(tensor.detach().contiguous() for tensor in (*given, *noise)),
        found,
        instructions,
    )
    load().latent_rollout(*record.described, instructions)
    return record


def run_backward(record: Record, g_hiddens: Tensor, g_latents: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Gradients of actions, state (hidden, latent, raw, cell) and weights, from those of h and z of each frame.

    Args:
        record: of `run_forward`.
        g_hiddens: (B, N, Hd).
        g_latents: (B, N, D).
    """
    frames, batch, hidden, width, _, components, latent, action = record.sizes
    outputs = 2 * components * latent
    rows = [torch.empty(frames, batch, size, dtype=record.narrow) for size in (4 * hidden, width, outputs)]
    given = [torch.empty(batch, *shape) for shape in ((frames, action), (hidden,), (latent,), (1, hidden), (1, hidden))]
    # biases and LayerNorms, in the order of RolloutGradients::vectors
    lengths = [width, width, width, hidden, hidden, 4 * hidden, outputs, latent]
    vectors = torch.empty(sum(lengths))
    upstream = [gradient.float().contiguous() for gradient in (g_hiddens, g_latents)]
    gradients = addresses(*upstream, *rows, *given, vectors)
    load().latent_rollout_backward(*record.described, gradients, record.instructions)
    first_bias, norm, norm_bias, top_norm, top_norm_bias, gate_bias, last_bias, persistence = vectors.split(lengths)
    conditions, active, joined = (record.narrow_rows(index) for index in (2, 3, 4))
    gates, linear, last = (part.flatten(0, 1) for part in rows)
    joint = (gates.t() @ joined).float()  # (4 Hd, I + Hd and the pair's other half)
    inputs = latent + action
    weights = (
        *((linear.t() @ conditions).float(), first_bias, norm, norm_bias),
        *((last.t() @ active).float(), last_bias, persistence, top_norm, top_norm_bias),
        *(joint[:, :inputs], joint[:, inputs : inputs + hidden], gate_bias, gate_bias),
    )
    return tuple(given), weights


class CompiledRollout(torch.autograd.Function):
    """`aime.world_model.latent_rollout.Rollout` by `run_forward` and `run_backward`."""

    @staticmethod
    def forward(
        ctx: Any,
        parts: WorldModelParts,
        noise: tuple[Tensor, Tensor, Tensor],
        narrow: torch.dtype,
        actions: Tensor,
        hidden: Tensor,
        latent: Tensor,
        raw: Tensor,
        cell: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(B, N, Hd) and (B, N, D)."""
        ctx.record = run_forward(parts, noise, (actions, hidden, latent, raw, cell), weights, narrow)
        hiddens, latents = ctx.record.found[:2]
        # other tensors of the same memory: an output that its own gradient's node held would outlive the step
        return hiddens.detach(), latents.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_hiddens: Tensor, g_latents: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of actions, state and weights."""
        with torch.autocast(g_hiddens.device.type, enabled=False):
            given, weights = run_backward(ctx.record, g_hiddens, g_latents)
        return None, None, None, *given, *weights
