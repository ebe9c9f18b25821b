"""Do the slots part the moving bodies from one another?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aime.evaluation.metrics import adjusted_rand_index


def foreground_ari(slot_maps: np.ndarray, bodies: np.ndarray) -> float:
    """FG-ARI: agreement of the slots' partition with the bodies', over foreground pixels (Greff et al., 2019).

    Args:
        slot_maps: (S, H, W) shares of each slot at each pixel; a pixel belongs to the largest.
        bodies: (H, W) integer body ids, 0 for the background.

    Returns:
        The adjusted Rand index; NaN where fewer than two bodies are seen. With one foreground class the index only asks
        that one slot take all of it, and any collapsed model scores 1: such a frame says nothing, and data whose masks
        only tell body from background leaves the figure null.
    """
    foreground = bodies > 0
    if len(np.unique(bodies[foreground])) < 2:
        return float("nan")
    return adjusted_rand_index(slot_maps.argmax(0)[foreground], bodies[foreground])


def foreground_ari_of_clips(slot_maps: Tensor, bodies: Tensor) -> Tensor:
    """FG-ARI averaged over the frames of each clip.

    Args:
        slot_maps: (N, L, S, R, R), brought to the frame's size bilinearly.
        bodies: (N, L, H, W) integer body ids, 0 for the background.

    Returns:
        (N,), NaN for a clip in which two bodies are never seen.
    """
    clips, length = slot_maps.shape[:2]
    sized = torch.nn.functional.interpolate(slot_maps.flatten(0, 1).float(), bodies.shape[-2:], mode="bilinear")
    maps, ids = sized.numpy(), bodies.flatten(0, 1).numpy()
    scores = np.array([foreground_ari(*pair) for pair in zip(maps, ids, strict=True)]).reshape(clips, length)
    seen = ~np.isnan(scores)
    total = np.where(seen, scores, 0.0).sum(1)
    return torch.from_numpy(np.divide(total, seen.sum(1), out=np.full(clips, np.nan), where=seen.any(1)))
