"""Frames as they were given to the model, and what is made of them when it is first read."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from aime.world_model.parts import WorldModelParts


class ObservedFrames:
    """Frames of B sequences and those before them.

    On the CPU a trunk reads patches that one kernel makes of the frames as they are stored
    (:meth:`WorldModelParts.patches`), and a Gaussian likelihood those frames themselves: whitened frames exist only
    where something else asks for them. On other devices whitened frames serve both, in PyTorch's operations.

    Args:
        parts: the pillars.
        given: (B, T, C, H, W) uint8, or float in [-1, 1].
        before: (B, frame_stack - 1, C, H, W) whitened frames before these; none when absent.
    """

    def __init__(self, parts: WorldModelParts, given: Tensor, before: Tensor | None = None) -> None:
        self._parts, self.given, self.before = parts, given, before
        self.read_as_stored = given.device.type == "cpu"
        """Whether trunk and likelihood read the frames as they are stored."""

    @functools.cached_property
    def whitened(self) -> Tensor:
        """(B, T, C, H, W)."""
        return self._parts.whiten(self.given)

    @functools.cached_property
    def stacked(self) -> Tensor:
        """(B, T, S C, H, W), what the trunk sees: the frames and their differences to those before."""
        return self._parts.stack(self.whitened, self.before)[0]

    @functools.cached_property
    def patches(self) -> Tensor:
        """(B, T, H / p, W / p, S C p p), the same in patches."""
        return self._parts.patches(self.given, self.before)

    @property
    def last(self) -> Tensor:
        """(B, frame_stack - 1, C, H, W) whitened, to continue with."""
        if not self.read_as_stored:
            return self._parts.last_frames(self.whitened, self.before)
        first = max(self.given.shape[1] - self._parts.config.frame_stack + 1, 0)
        return self._parts.last_frames(self._parts.whiten(self.given[:, first:]), self.before)

    def at(self, times: Tensor) -> Tensor:
        """The frames (B * n, C, H, W) at times (n,), as they were given."""
        return self.given.index_select(1, times).flatten(0, 1)

    def features(self, trunk: Callable[..., tuple[Tensor, ...]], times: Tensor | None = None) -> tuple[Tensor, ...]:
        """Maps (B * T, F_i, H_i, W_i) of a trunk, or (B * n, ...) of the frames at times (n,)."""
        seen = self.patches if self.read_as_stored else self.stacked
        if times is not None:
            seen = seen[:, times]
        return trunk(seen.flatten(0, 1), as_patches=self.read_as_stored)
