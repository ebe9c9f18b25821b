"""Slot attention with the key and value projections absorbed, on PyTorch's own kernels.

logits = q.(Wk x + bk) = (Wk^T q).x + q.bk and sum_n a (Wv x + bv) / sum_n a = Wv (sum_n a x / sum_n a) + bv: exact, and the
(B, N, D) keys and values are never made.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import ACTIVATIONS, LAYER_NORM_EPS
from .weights import SlotAttentionWeights


def _project_queries(slots: Tensor, w: SlotAttentionWeights, heads: int) -> tuple[Tensor, Tensor | None]:
    """Queries seen from input space (B, S * heads, C), scale included, and their share q.bk (B, S * heads, 1)."""
    batch, count, width = slots.shape
    normed = F.layer_norm(slots, (width,), w.norm_slots_weight, w.norm_slots_bias, LAYER_NORM_EPS)
    scale = (width // heads) ** -0.5
    if heads == 1:
        queries = F.linear(normed, w.query_weight, w.query_bias) * scale  # (B, S, D)
        seen = queries @ w.key_weight  # (B, S, C)
        return seen, None if w.key_bias is None else (queries @ w.key_bias).unsqueeze(-1)
    queries = (F.linear(normed, w.query_weight, w.query_bias) * scale).view(batch, count, heads, -1)
    key_weight = w.key_weight.view(heads, width // heads, -1)
    seen = torch.einsum("bshd,hdc->bshc", queries, key_weight).reshape(batch, count * heads, -1)
    if w.key_bias is None:
        return seen, None
    offset = torch.einsum("bshd,hd->bsh", queries, w.key_bias.view(heads, -1))
    return seen, offset.reshape(batch, count * heads, 1)


def _project_updates(means: Tensor, w: SlotAttentionWeights, count: int, heads: int) -> Tensor:
    """Weighted means of inputs (B, S * heads, C) through the value projection, (B * S, D)."""
    if heads == 1:
        return F.linear(means, w.value_weight, w.value_bias).flatten(0, 1)
    split = means.view(means.shape[0], count, heads, -1)
    value_weight = w.value_weight.view(heads, -1, means.shape[-1])
    updates = torch.einsum("bshc,hdc->bshd", split, value_weight).flatten(2).flatten(0, 1)
    return updates if w.value_bias is None else updates + w.value_bias


def slot_attention(
    inputs: Tensor,
    slots: Tensor,
    w: SlotAttentionWeights,
    iters: int,
    eps: float,
    activation: str,
    heads: int,
    mask: Tensor | None,
    implicit: bool,
) -> tuple[Tensor, Tensor]:
    """All iterations; arguments and results as the op documents."""
    batch, count, width = slots.shape
    dtype = slots.dtype
    normed = F.layer_norm(inputs, inputs.shape[-1:], w.norm_inputs_weight, w.norm_inputs_bias, LAYER_NORM_EPS)
    transposed = normed.transpose(1, 2)  # (B, C, N)
    flat = slots.reshape(batch * count, width)
    attention = inputs.new_zeros(batch, count, inputs.shape[1])
    for iteration in range(iters):
        if implicit and iteration == iters - 1:
            flat = flat.detach()
        seen, offset = _project_queries(flat.view(batch, count, width), w, heads)
        logits = torch.bmm(seen, transposed.to(seen.dtype))  # (B, S * heads, N)
        if offset is not None:
            logits = logits + offset
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if heads == 1:
            attention = logits.softmax(1)  # over slots
            coefficients = attention + eps
        else:
            per_head = logits.view(batch, count, heads, -1).softmax(1)
            attention = per_head.mean(2)
            coefficients = per_head.flatten(1, 2) + eps
        if mask is not None:
            coefficients = coefficients * mask[:, None, :]
        sums = torch.bmm(coefficients.to(normed.dtype), normed)  # (B, S * heads, C)
        means = sums / coefficients.sum(-1, keepdim=True)
        updates = _project_updates(means.to(normed.dtype), w, count, heads)
        flat = torch.gru_cell(
            updates.to(flat.dtype), flat, w.gru_weight_ih, w.gru_weight_hh, w.gru_bias_ih, w.gru_bias_hh
        )
        hidden = F.layer_norm(flat, (width,), w.norm_mlp_weight, w.norm_mlp_bias, LAYER_NORM_EPS)
        hidden = ACTIVATIONS[activation](F.linear(hidden, w.mlp_in_weight, w.mlp_in_bias))
        flat = flat + F.linear(hidden, w.mlp_out_weight, w.mlp_out_bias)
    return flat.view(batch, count, width).to(dtype), attention
