"""Windows of an episode (numpy) and batches of windows (torch).

Alignment, everywhere in this package: ``actions[t]`` is applied after ``observations[t]`` was seen, ``rewards[t]`` and
``continues[t]`` are what followed that action, and ``observations[t + 1]`` is the frame after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """T consecutive steps of one episode."""

    observations: NDArray[np.uint8]
    """(T, C, H, W)"""
    actions: NDArray[np.float32]
    """(T, A)"""
    rewards: NDArray[np.float32]
    """(T,) summed over the action repeat"""
    continues: NDArray[np.float32]
    """(T,) discount after the action: 0 only at a true termination"""
    body_masks: NDArray[np.bool_] | None = None
    """(T, H, W) True where a moving body is seen, or None where the source has no masks"""
    physics: NDArray[np.float32] | None = None
    """(T, nq + nv) qpos, then qvel; or None"""
    episode: int = 0
    start: int = 0
    body_ids: NDArray[np.uint8] | None = None
    """(T, H, W) 0 where no moving body is seen, i + 1 where ``spec.bodies[i]`` is; or None where ids are not stored"""


@dataclass(frozen=True)
class Batch:
    """B windows of T steps as tensors."""

    observations: Tensor
    """(B, T, C, H, W) uint8"""
    actions: Tensor
    """(B, T, A) float32"""
    rewards: Tensor
    """(B, T) float32"""
    continues: Tensor
    """(B, T) float32"""
    body_masks: Tensor | None = None
    """(B, T, H, W) bool, or None"""
    physics: Tensor | None = None
    """(B, T, nq + nv) float32, or None"""
    episodes: Tensor | None = None
    """(B,) int64, episode of each window"""
    starts: Tensor | None = None
    """(B,) int64, first step of each window"""
    body_ids: Tensor | None = None
    """(B, T, H, W) uint8, or None"""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The batch on ``device``; ``episodes`` and ``starts`` stay where they are, since the host reads them."""
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return replace(moved, episodes=self.episodes, starts=self.starts)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, so that a later ``to("cuda", non_blocking=True)`` overlaps with work."""
        return self._map(lambda tensor: tensor.pin_memory())

    def __len__(self) -> int:
        """B, the number of windows."""
        return self.observations.shape[0]

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        mapped: dict[str, Any] = {key: None if value is None else function(value) for key, value in values.items()}
        return Batch(**mapped)


def collate(windows: Sequence[Window]) -> Batch:
    """Stack windows of equal length into a batch.

    Raises:
        ValueError: no windows, windows of different lengths, or masks, ids or physics in only some of them.
    """
    if not windows:
        raise ValueError("collate: expected at least one window, found none")
    lengths = sorted({len(window.actions) for window in windows})
    if len(lengths) > 1:
        raise ValueError(f"collate: expected windows of one length, found lengths {lengths}")

    def stack(name: str) -> Tensor | None:
        arrays = [getattr(window, name) for window in windows]
        missing = sum(array is None for array in arrays)
        if missing == len(arrays):
            return None
        if missing:
            raise ValueError(
                f"collate: expected {name} in every window, found it missing in {missing} of {len(arrays)}"
            )
        return torch.from_numpy(np.stack(arrays))

    def required(name: str) -> Tensor:
        tensor = stack(name)
        if tensor is None:
            raise ValueError(f"collate: expected {name} in every window, found none")
        return tensor

    return Batch(
        observations=required("observations"),
        actions=required("actions"),
        rewards=required("rewards"),
        continues=required("continues"),
        body_masks=stack("body_masks"),
        physics=stack("physics"),
        episodes=torch.tensor([window.episode for window in windows]),
        starts=torch.tensor([window.start for window in windows]),
        body_ids=stack("body_ids"),
    )
