"""Slot attention (Locatello et al. 2020): slots compete for inputs. The iterations run in `aime.kernels`."""

import torch
from torch import Tensor, nn

from aime.documented_tables import accepts_documented_names
from aime.kernels import SlotAttentionWeights, slot_attention


@accepts_documented_names()
class SlotAttention(nn.Module):
    """Parameters of slot attention and one call of the fused op.

    >>> attention = SlotAttention(num_slots=4, in_dim=32, slot_dim=16)
    >>> slots, assignment = attention(torch.randn(2, 100, 32))
    >>> slots.shape, assignment.shape
    (torch.Size([2, 4, 16]), torch.Size([2, 4, 100]))

    Args:
        num_slots: S.
        in_dim: channels of an input.
        slot_dim: d, channels of a slot.
        iters: rounds of competition.
        mlp_hidden: hidden units of the residual perceptron.
        eps: added to the assignment before the mean over positions.
    """

    def __init__(
        self, num_slots: int, in_dim: int, slot_dim: int, iters: int = 3, mlp_hidden: int = 128, eps: float = 1e-8
    ) -> None:
        super().__init__()
        self.num_slots, self.in_dim, self.slot_dim, self.iters, self.eps = num_slots, in_dim, slot_dim, iters, eps
        # Distinct starting points break the symmetry between slots and give each its place in all frames.
        self.slot_embeddings = nn.Parameter(torch.randn(num_slots, slot_dim))
        self.norm_inputs, self.norm_slots = nn.LayerNorm(in_dim), nn.LayerNorm(slot_dim)
        self.query = nn.Linear(slot_dim, slot_dim, bias=False)
        self.key, self.value = nn.Linear(in_dim, slot_dim, bias=False), nn.Linear(in_dim, slot_dim, bias=False)
        self.gru = nn.GRUCell(slot_dim, slot_dim)
        self.norm_mlp = nn.LayerNorm(slot_dim)
        self.mlp_in, self.mlp_out = nn.Linear(slot_dim, mlp_hidden), nn.Linear(mlp_hidden, slot_dim)

    def weights(self) -> SlotAttentionWeights:
        """The parameters in the order of the op."""
        return SlotAttentionWeights(
            norm_inputs_weight=self.norm_inputs.weight,
            norm_inputs_bias=self.norm_inputs.bias,
            norm_slots_weight=self.norm_slots.weight,
            norm_slots_bias=self.norm_slots.bias,
            query_weight=self.query.weight,
            key_weight=self.key.weight,
            value_weight=self.value.weight,
            gru_weight_ih=self.gru.weight_ih,
            gru_weight_hh=self.gru.weight_hh,
            gru_bias_ih=self.gru.bias_ih,
            gru_bias_hh=self.gru.bias_hh,
            norm_mlp_weight=self.norm_mlp.weight,
            norm_mlp_bias=self.norm_mlp.bias,
            mlp_in_weight=self.mlp_in.weight,
            mlp_in_bias=self.mlp_in.bias,
            mlp_out_weight=self.mlp_out.weight,
            mlp_out_bias=self.mlp_out.bias,
        )

    def forward(self, x: Tensor, seed_slots: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Group inputs.

        Args:
            x: (B, N, in_dim).
            seed_slots: (B, S, d), added to the learned starting slots.

        Returns:
            slots (B, S, d), and the assignment (B, S, N), which sums to 1 over the slots.

        Raises:
            ValueError: a shape that does not fit.
        """
        if x.dim() != 3 or x.shape[-1] != self.in_dim:
            raise ValueError(f"x: expected (B, N, in_dim={self.in_dim}), found {tuple(x.shape)}")
        start = self.slot_embeddings.expand(len(x), -1, -1)
        if seed_slots is not None:
            if seed_slots.shape != start.shape:
                raise ValueError(f"seed_slots: expected {tuple(start.shape)}, found {tuple(seed_slots.shape)}")
            start = start + seed_slots
        slots, assignment = slot_attention(x, start, self.weights(), self.iters, self.eps)
        return slots, assignment
