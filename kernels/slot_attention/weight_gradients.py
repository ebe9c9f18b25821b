"""Gradients of slot attention's weights from what the fused backward pass leaves in its workspaces (triton_slots)."""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import LAYER_NORM_EPS

Gradient = Callable[[], Tensor]


def weight_gradients(
    rows: Tensor,
    wide: Tensor,
    g_rows: Tensor,
    g_wide: Tensor,
    g_scalars: Tensor,
    D: int,
    C: int,
    hidden: int,
    heads: int,
) -> tuple[Gradient, ...]:
    """A function a weight, in the order of SlotAttentionWeights: one product or sum over the slots of all iterations.

    What nobody calls is not computed: frozen weights cost nothing.
    """
    after = g_rows[1:, :, :D].flatten(0, 1)  # (rows, D): gradients of the slots that an iteration gives
    rows, g_rows = rows.flatten(0, 1), g_rows[:-1].flatten(0, 1)
    of_heads = (len(rows), heads, -1)
    slots, normed, query, updates = (rows[:, i * D : (i + 1) * D] for i in range(4))
    state, normed_mlp, active = rows[:, 8 * D : 9 * D], rows[:, 9 * D : 10 * D], rows[:, 10 * D + hidden :]
    g_normed, g_query, g_updates = (g_rows[:, i * D : (i + 1) * D] for i in range(1, 4))
    g_gates, g_normed_mlp, g_hidden = g_rows[:, 4 * D : 8 * D], g_rows[:, 8 * D : 9 * D], g_rows[:, 9 * D :]
    seen, means, moved = wide.flatten(0, 1).view(len(rows), heads, 3 * C).split(C, -1)  # (rows, heads, C)
    g_scaled, g_seen, _, g_moved = g_wide.flatten(0, 1).view(len(rows), heads, 4 * C).split(C, -1)
    g_offset = g_scalars.flatten(0, 1)[:, 0].view(len(rows), heads, 1)

    def unit(values: Tensor) -> Tensor:
        return F.layer_norm(values, (D,), eps=LAYER_NORM_EPS)

    @cache
    def of_gates() -> Tensor:
        return g_gates.sum(0)  # (4 D,): gates r, z, the candidate's n, the state's share of it

    def without_candidate(values: Tensor) -> Tensor:
        return torch.cat((values[: 2 * D], values[3 * D :]))

    return (
        lambda: (g_moved * means).sum((0, 1)) + (g_scaled * seen).sum((0, 1)),  # norm_inputs_weight
        lambda: g_moved.sum((0, 1)) + (g_offset * seen).sum((0, 1)),
        lambda: (g_normed * unit(slots)).sum(0),  # norm_slots_weight
        lambda: g_normed.sum(0),
        lambda: g_query.t() @ normed,
        lambda: torch.einsum("rhk,rhc->hkc", query.reshape(of_heads), g_seen),  # key_weight
        lambda: torch.einsum("rhk,rhc->hkc", g_updates.reshape(of_heads), moved),
        lambda: g_gates[:, : 3 * D].t() @ updates,  # gru_weight_ih
        lambda: without_candidate(g_gates.t() @ slots),
        lambda: of_gates()[: 3 * D],  # gru_bias_ih
        lambda: without_candidate(of_gates()),
        lambda: (g_normed_mlp * unit(state)).sum(0),  # norm_mlp_weight
        lambda: g_normed_mlp.sum(0),
        lambda: g_hidden.t() @ normed_mlp,  # mlp_in_weight
        lambda: g_hidden.sum(0),
        lambda: after.t() @ active,  # mlp_out_weight
        lambda: after.sum(0),
        lambda: g_query.sum(0),  # query_bias
        lambda: (g_offset * query.reshape(of_heads)).sum(0),
        lambda: g_updates.sum(0),
    )
