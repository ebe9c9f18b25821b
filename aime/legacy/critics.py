"""The critic of videos with the call of the original's documents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aime import adversarial


class TemporalDiscriminator(adversarial.TemporalDiscriminator):
    """`scores = critic(x, z, sequence_lengths, return_features=True)`, a dictionary with the documents' keys."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        z: Tensor | None = None,
        sequence_lengths: Tensor | None = None,
        return_features: bool = False,
    ) -> dict[str, Any]:
        """Score videos (B, T, C, H, W), given latents (B, T, D) or (B, D).

        Returns:
            temporal_score, spatial_score and final_score (B, 1), per_frame_scores (B, T, 1), sequence_lengths (B,) and
            spatial_shape, (1, 1), since a frame is one token here; with ``return_features`` also features (B, T, d) and
            hidden_3d (B, T, 1, d), the same with an axis of places.
        """
        scores: dict[str, Any] = dict(super().forward(x, z, sequence_lengths))
        features = scores.pop("features")  # (B, T, d)
        whole = torch.full(x.shape[:1], x.shape[1], device=x.device)
        scores |= {"sequence_lengths": whole if sequence_lengths is None else sequence_lengths, "spatial_shape": (1, 1)}
        return scores | ({"features": features, "hidden_3d": features[:, :, None]} if return_features else {})
