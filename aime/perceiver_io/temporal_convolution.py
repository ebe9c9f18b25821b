"""Time in the tokenizer: causal convolutions, and groups of frames with an exact inverse."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aime.nn import normalisation


class CausalTemporalCell(nn.Module):
    """Residual causal convolution over time of frames (N, F, h, w), N = B T.

    Beside a 3 x 3 convolution over space this is the factorised form of a causal 3-D convolution (Tran et al. 2018,
    R(2+1)D). Frame t sees t - k + 1 .. t; before the first there are zeros.

    Args:
        channels: F.
        kernel: k >= 1, frames that are seen, the present one included.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        if kernel < 1:
            raise ValueError(f"kernel: expected at least 1 frame, found {kernel}")
        self.kernel = kernel
        self.norm = normalisation(channels)
        self.mix = nn.Conv2d(kernel * channels, channels, 1)

    def forward(self, x: Tensor, batch: int, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frames (B T, F, h, w), and the k - 1 normalised frames (B, k - 1, F, h, w) to continue with."""
        stacked, memory = stack_frames(self.norm(x), batch, self.kernel, memory)
        return x + self.mix(torch.nn.functional.silu(stacked)), memory


def stack_frames(x: Tensor, batch: int, kernel: int, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each frame of (B T, F, h, w) with the k - 1 before it: (B T, k F, h, w), oldest first, and the last k - 1.

    A 1 x 1 convolution over them is a causal convolution over time. Without a memory zeros stand before the first.
    """
    frames = x.unflatten(0, (batch, -1))  # (B, T, F, h, w)
    length = frames.shape[1]
    if memory is None:
        memory = frames.new_zeros(batch, kernel - 1, *x.shape[1:])
    extended = torch.cat([memory, frames], 1)
    stacked = torch.cat([extended[:, k : k + length] for k in range(kernel)], 2)  # (B, T, k F, h, w)
    return stacked.flatten(0, 1), extended[:, length:]


def count_groups(frames: int, size: int) -> int:
    """1 + ceil((T - 1) / s): the first frame is a group of its own."""
    return 1 + -(-(frames - 1) // size)


def group_frames(x: Tensor, size: int) -> Tensor:
    """Frames (B, T, F, h, w) to groups (B, T', s F, h, w), T' = 1 + ceil((T - 1) / s).

    The first frame, repeated s times, is a group of its own, so that the first group of any video is that of its first
    frame alone, and group j ends at frame s j (Yu et al. 2024, MAGVIT-v2). A last group that is not full repeats the
    last frame. :func:`ungroup_frames` undoes it exactly.
    """
    length = x.shape[1]
    missing = (count_groups(length, size) - 1) * size - (length - 1)
    before, after = x[:, :1].expand(-1, size - 1, *x.shape[2:]), x[:, -1:].expand(-1, missing, *x.shape[2:])
    full = torch.cat([before, x, after], 1)  # (B, T' s, F, h, w)
    groups: Tensor = full.unflatten(1, (-1, size)).flatten(2, 3)
    return groups


def ungroup_frames(x: Tensor, size: int, frames: int | None = None) -> Tensor:
    """Groups (B, T', s F, h, w) to their frames (B, T, F, h, w); T = 1 + (T' - 1) s when ``frames`` is absent.

    Raises:
        ValueError: T frames do not make T' groups.
    """
    groups = x.shape[1]
    length = 1 + (groups - 1) * size if frames is None else frames
    if count_groups(length, size) != groups:
        raise ValueError(f"frames: expected a length of {groups} groups of {size}, found {length}")
    full: Tensor = x.unflatten(2, (size, -1)).flatten(1, 2)  # (B, T' s, F, h, w)
    return full[:, size - 1 : size - 1 + length]
