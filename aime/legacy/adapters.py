"""Classes whose calls, not only their names, the original's documents write otherwise: subclasses of those here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aime import attention_schema, temporal_dynamics
from aime.attention_schema import center_of_mass
from aime.attention_schema.maps import SMALLEST_MASS
from aime.legacy.attention_pictures import PICTURES, slot_pictures
from aime.temporal_dynamics import LSTMState


class LSTMLayer(temporal_dynamics.LSTMLayer):
    """`output, (hxs, cxs) = lstm(x, hxs, cxs, masks)`: one step, with layers before the batch."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        hxs: Tensor | tuple[Tensor, Tensor] | None = None,
        cxs: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One step (B, input_size), or a sequence (B, T, input_size).

        Args:
            x: input.
            hxs: (L, B, Hd) hidden states; the learned initial state when absent. The pair (hxs, cxs) may come here.
            cxs: (L, B, Hd) cell states.
            masks: (B,) factor on the states, 0 where a new sequence begins.

        Returns:
            outputs (B, Hd) or (B, T, Hd), normalised, and the new (hxs, cxs).
        """
        if isinstance(hxs, tuple):
            hxs, cxs = hxs
        state = None
        if hxs is not None and cxs is not None:
            kept = 1.0 if masks is None else masks[:, None, None]
            state = LSTMState(hxs.transpose(0, 1) * kept, cxs.transpose(0, 1) * kept)  # (B, L, Hd) each
        output, state = self.step(x, state) if x.dim() == 2 else super().forward(x, state)
        return output, (state.hidden.transpose(0, 1), state.cell.transpose(0, 1))


class AttentionPosterior(attention_schema.AttentionPosterior):
    """`map, coords = posterior(observation, hidden_state, context)`; what else it found lies on it as attributes."""

    def forward(  # type: ignore[override]
        self, observation: Tensor, hidden_state: Tensor, context: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Map (B, R, R), sums to 1, and its centre (B, 2) in (-1, 1), of frames (B, C, H, W)."""
        found = super().forward(observation, hidden_state, context)
        self.slot_attention_maps = found.slot_maps  # (B, S, R, R)
        self.slot_features = found.slots  # (B, S, d)
        self.slot_centers = found.slot_centers  # (B, S, 2)
        self.fusion_weights = found.fusion_weights  # (B, S)
        self.group_assignments = (found.slot_maps / found.slot_maps.sum(1, keepdim=True)).movedim(1, -1)  # (B, R, R, S)
        self.regularized_coords, self.diversity_loss = found.coords, found.diversity_loss
        return found.map, found.coords

    def visualize_multi_object_attention(
        self,
        observation: Tensor,
        slot_attention_maps: Tensor,
        slot_centers: Tensor,
        group_assignments: Tensor | None = None,
        return_mode: str = "all",
    ) -> dict[str, Tensor]:
        """Pictures of slots over frames (B, 3, H, W), see `slot_pictures`: all of them, or the one that is named."""
        if return_mode not in ("all", *PICTURES):
            raise ValueError(f"return_mode: expected all, {', '.join(PICTURES)}, found {return_mode!r}")
        if group_assignments is None:
            group_assignments = slot_attention_maps.movedim(1, -1)  # (B, R, R, S)
        pictures = slot_pictures(observation, slot_attention_maps, slot_centers, group_assignments)
        return pictures if return_mode == "all" else {return_mode: pictures[return_mode]}


class AttentionPrior(attention_schema.AttentionPrior):
    """`map, info = prior(prev_attention, hidden_state, latent_state)`: one step."""

    def forward(  # type: ignore[override]
        self, prev_attention: Tensor, hidden_state: Tensor, latent_state: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """Predict from a map (B, R, R), h (B, Hd) and z (B, D).

        Returns:
            the map (B, R, R), and spatial_features (B, G, R, R), predicted_movement (dx, dy), (B, R, R) each, which
            is the motion of the centre in cells, everywhere the same, and attention_logits (B, R, R).
        """
        # The documents' example hands over plain noise: what is negative is no mass, the rest is brought to sum to 1.
        mass = prev_attention.clamp_min(0.0)
        mass = mass / mass.sum((-2, -1), keepdim=True).clamp_min(SMALLEST_MASS)
        found = super().forward(mass[:, None], hidden_state[:, None], latent_state[:, None])
        shape = (-1, self.resolution, self.resolution)
        dx, dy = (axis[:, None, None].expand(shape) for axis in found.movement[:, 0].unbind(-1))
        return found.maps[:, 0], {
            "spatial_features": found.state,
            "predicted_movement": (dx, dy),
            "attention_logits": found.log_maps[:, 0],
        }


class AttentionSchema(attention_schema.AttentionSchema):
    """`posterior_net` and `prior_net` with the documents' calls, and the loss of lists of maps and motions."""

    def __init__(self, *args: Any, **names: Any) -> None:
        super().__init__(*args, **names)
        self.posterior_net.__class__ = AttentionPosterior
        self.prior_net.__class__ = AttentionPrior

    def forward(  # type: ignore[override]
        self, observation: Tensor, hidden_state: Tensor, context: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Map (B, R, R) and its centre (B, 2) of frames (B, C, H, W)."""
        found: tuple[Tensor, Tensor] = self.posterior_net(observation, hidden_state, context)
        return found

    def compute_attention_dynamics_loss(
        self, attention_sequence: Sequence[Tensor], predicted_movements: Sequence[Tensor | tuple[Tensor, Tensor]]
    ) -> Tensor:
        """() smooth-L1 distance in cells of predicted and observed motion, summed over x and y.

        Args:
            attention_sequence: T maps (B, R, R).
            predicted_movements: T - 1 motions, (B, 2) or fields (B, 2, R, R), or the pairs (dx, dy) of either.
        """
        centers = center_of_mass(torch.stack(list(attention_sequence)))  # (T, B, 2)
        motions = [torch.stack(motion, 1) if isinstance(motion, tuple) else motion for motion in predicted_movements]
        predicted = torch.stack([motion.flatten(2).mean(2) if motion.dim() == 4 else motion for motion in motions])
        observed = (centers[1:] - centers[:-1]).detach()  # (T - 1, B, 2)
        return F.smooth_l1_loss(predicted.float(), observed, reduction="none").sum(-1).mean()


class ConvGRUCell(attention_schema.ConvGRUCell):
    """`hidden = cell(x, hidden)`, where no hidden state means zeros."""

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """New state (B, G, R, R) from input (B, C, R, R)."""
        if hidden is None:
            hidden = x.new_zeros(x.shape[0], self.hidden_channels, *x.shape[-2:])
        return super().forward(x, hidden)
