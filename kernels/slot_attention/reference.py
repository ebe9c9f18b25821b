"""Slot attention as published (Locatello et al., 2020, algorithm 1): the truth in every test."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .weights import SlotAttentionWeights

LAYER_NORM_EPS = 1e-5
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


def slot_attention_reference(
    inputs: Tensor,
    slots: Tensor,
    weights: SlotAttentionWeights,
    iters: int = 3,
    eps: float = 1e-8,
    *,
    activation: str = "gelu",
    heads: int = 1,
    mask: Tensor | None = None,
    implicit: bool = False,
) -> tuple[Tensor, Tensor]:
    """Textbook form: keys and values exist, every step is its own tensor.

    Args and returns as `aime.kernels.slot_attention`.
    """
    w = weights
    batch, count, width = slots.shape
    of_slots, of_inputs = ((batch, number, heads, width // heads) for number in (count, inputs.shape[1]))
    if mask is not None:
        inputs = torch.where(mask[:, :, None], inputs, 0.0)
    normed = F.layer_norm(inputs, inputs.shape[-1:], w.norm_inputs_weight, w.norm_inputs_bias, LAYER_NORM_EPS)
    keys = F.linear(normed, w.key_weight, w.key_bias).view(of_inputs)  # (B, N, heads, D / heads)
    values = F.linear(normed, w.value_weight, w.value_bias).view(of_inputs)
    attention = inputs.new_zeros(batch, count, inputs.shape[1])

    def step(current: Tensor) -> tuple[Tensor, Tensor]:
        slots_normed = F.layer_norm(current, (width,), w.norm_slots_weight, w.norm_slots_bias, LAYER_NORM_EPS)
        queries = F.linear(slots_normed, w.query_weight, w.query_bias).view(of_slots)
        logits = torch.einsum("bshd,bnhd->bhsn", queries, keys) * (width // heads) ** -0.5
        attention = logits.softmax(2)  # over slots
        coefficients = attention + eps
        if mask is not None:
            coefficients = coefficients * mask[:, None, None, :]
        coefficients = coefficients / coefficients.sum(-1, keepdim=True)  # weighted mean over inputs
        updates = torch.einsum("bhsn,bnhd->bshd", coefficients, values).reshape(-1, width)
        flat = torch.gru_cell(
            updates, current.reshape(-1, width), w.gru_weight_ih, w.gru_weight_hh, w.gru_bias_ih, w.gru_bias_hh
        )
        hidden = F.layer_norm(flat, (width,), w.norm_mlp_weight, w.norm_mlp_bias, LAYER_NORM_EPS)
        hidden = ACTIVATIONS[activation](F.linear(hidden, w.mlp_in_weight, w.mlp_in_bias))
        flat = flat + F.linear(hidden, w.mlp_out_weight, w.mlp_out_bias)
        return flat.view(batch, count, width), attention.mean(1)  # attention (B, S, N), mean of heads

    for iteration in range(iters):
        if implicit and iteration == iters - 1:
            slots = slots.detach()
        slots, attention = step(slots)
    return slots, attention
