"""Slot attention with the key and value projections absorbed, on PyTorch's own kernels.

logits = q.(Wk x + bk) = (Wk^T q).x + q.bk and sum_n a (Wv x + bv) / sum_n a = Wv (sum_n a x / sum_n a) + bv: exact,
and the (B, N, D) keys and values are never made.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shapes import cast
from .reference import ACTIVATIONS, LAYER_NORM_EPS
from .weights import SlotAttentionWeights


def _project_queries(slots: Tensor, w: SlotAttentionWeights, heads: int) -> tuple[Tensor, Tensor | None]:
    """Queries seen from input space (B, S * heads, C), scale included, and their share q.bk (B, S * heads, 1)."""
    batch, count, width = slots.shape
    normed = torch.layer_norm(slots, (width,), w.norm_slots_weight, w.norm_slots_bias, LAYER_NORM_EPS)
    scale = (width // heads) ** -0.5
    if heads == 1:
        queries = F.linear(normed, w.query_weight, w.query_bias) * scale  # (B, S, D)
        seen = queries @ w.key_weight  # (B, S, C)
        return seen, None if w.key_bias is None else (queries @ w.key_bias).unsqueeze(-1)
    # sizes in full: an empty batch leaves no way to infer one
    queries = (F.linear(normed, w.query_weight, w.query_bias) * scale).view(batch, count, heads, width // heads)
    key_weight = w.key_weight.view(heads, width // heads, -1)
    seen = torch.einsum("bshd,hdc->bshc", queries, key_weight).flatten(1, 2)
    if w.key_bias is None:
        return seen, None
    offset = torch.einsum("bshd,hd->bsh", queries, w.key_bias.view(heads, width // heads))
    return seen, offset.reshape(batch, count * heads, 1)


def _project_updates(means: Tensor, w: SlotAttentionWeights, count: int, heads: int) -> Tensor:
    """Weighted means of inputs (B, S * heads, C) through the value projection, (B * S, D)."""
    if heads == 1:
        return F.linear(means, w.value_weight, w.value_bias).flatten(0, 1)
    batch, _, channels = means.shape
    split = means.view(batch, count, heads, channels)
    value_weight = w.value_weight.view(heads, -1, channels)
    updates = torch.einsum("bshc,hdc->bshd", split, value_weight).flatten(2).flatten(0, 1)
    return updates if w.value_bias is None else updates + w.value_bias


class AttendInputs:
    """The pass over the inputs on PyTorch's own kernels; normalised inputs are made once for all iterations."""

    def __init__(self, inputs: Tensor, w: SlotAttentionWeights, eps: float, heads: int, mask: Tensor | None) -> None:
        self.normed = torch.layer_norm(
            inputs, inputs.shape[-1:], w.norm_inputs_weight, w.norm_inputs_bias, LAYER_NORM_EPS
        )
        self.eps, self.heads, self.mask = eps, heads, mask

    def __call__(self, seen: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weighted means of inputs (B, S * heads, C) and attention (B, S, N)."""
        logits = torch.bmm(seen, cast(self.normed.transpose(1, 2), seen.dtype))  # (B, S * heads, N)
        if offset is not None:
            logits = logits + offset
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        if self.heads == 1:
            attention = logits.softmax(1)  # over slots
            coefficients = attention + self.eps
        else:
            batch, columns, count = logits.shape
            per_head = logits.view(batch, columns // self.heads, self.heads, count).softmax(1)
            attention = per_head.mean(2)
            coefficients = per_head.flatten(1, 2) + self.eps
        if self.mask is not None:
            coefficients = coefficients * self.mask[:, None, :]
        sums = torch.bmm(cast(coefficients, self.normed.dtype), self.normed)  # (B, S * heads, C)
        return sums / coefficients.sum(-1, keepdim=True), attention


def slot_attention(
    slots: Tensor,
    w: SlotAttentionWeights,
    attend: AttendInputs,
    iters: int,
    activation: str,
    heads: int,
    implicit: bool,
) -> tuple[Tensor, Tensor]:
    """All iterations; arguments and results as the op documents."""
    batch, count, width = slots.shape
    flat = slots.reshape(batch * count, width)
    attention = slots  # of no iteration yet; there is at least one
    for iteration in range(iters):
        if implicit and iteration == iters - 1:
            flat = flat.detach()
        seen, offset = _project_queries(flat.view(batch, count, width), w, heads)
        means, attention = attend(seen, offset)
        updates = _project_updates(cast(means, w.value_weight.dtype), w, count, heads)
        flat = torch.gru_cell(
            cast(updates, flat.dtype), flat, w.gru_weight_ih, w.gru_weight_hh, w.gru_bias_ih, w.gru_bias_hh
        )
        hidden = torch.layer_norm(flat, (width,), w.norm_mlp_weight, w.norm_mlp_bias, LAYER_NORM_EPS)
        hidden = ACTIVATIONS[activation](F.linear(hidden, w.mlp_in_weight, w.mlp_in_bias))
        flat = flat + F.linear(hidden, w.mlp_out_weight, w.mlp_out_bias)
    return cast(flat.view(batch, count, width), slots.dtype), attention
