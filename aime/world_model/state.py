"""What the world model carries from one frame to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aime.perceiver_io import PerceiverMemory


@dataclass(frozen=True)
class ObservationMemory:
    """What is kept of earlier frames to observe further ones.

    Attributes:
        perceiver: memory of the Perceiver; None in a model without context.
        frames: (B, frame_stack - 1, C, H, W) last whitened frames; None before the first frame.
    """

    perceiver: PerceiverMemory | None
    frames: Tensor | None


@dataclass(frozen=True)
class WorldModelState:
    """State after a frame o_t, its action a_t included; with one time axis more it is a whole trajectory.

    Attributes:
        hidden: (B, Hd) normalised recurrent output, has absorbed z_t and a_t.
        lstm_hidden: (B, L, Hd) raw recurrent state.
        lstm_cell: (B, L, Hd).
        latent: (B, D) z_t.
        context: (B, Cc) c_t, or its prediction in imagination.
        attention_map: (B, R, R) A_t, sums to 1.
        attention_hidden: (B, F, R, R) state of the attention prior.
        memory: of earlier frames, to observe further frames; None in imagination and inside a trajectory.
    """

    hidden: Tensor
    lstm_hidden: Tensor
    lstm_cell: Tensor
    latent: Tensor
    context: Tensor
    attention_map: Tensor
    attention_hidden: Tensor
    memory: ObservationMemory | None = None

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _map(self, function: Callable[[Tensor], Tensor], memory: ObservationMemory | None = None) -> WorldModelState:
        return WorldModelState(**{name: function(value) for name, value in self._tensors().items()}, memory=memory)

    def after(self, hidden: Tensor, lstm_hidden: Tensor, lstm_cell: Tensor) -> WorldModelState:
        """The same frame with the recurrent state that has absorbed it and its action."""
        return dataclasses.replace(self, hidden=hidden, lstm_hidden=lstm_hidden, lstm_cell=lstm_cell)

    @property
    def is_trajectory(self) -> bool:
        """Whether there is a time axis: (B, T, ...) instead of (B, ...)."""
        return self.hidden.dim() == 3

    def at(self, time: int) -> WorldModelState:
        """State (B, ...) at one time of a trajectory; the last one keeps the memory to observe further frames."""
        last = self.hidden.shape[1] - 1
        return self._map(lambda x: x[:, time], self.memory if time in (-1, last) else None)

    def flatten_time(self) -> WorldModelState:
        """Trajectory (B, T, ...) as B * T separate states."""
        return self._map(lambda x: x.flatten(0, 1))

    def repeat(self, count: int) -> WorldModelState:
        """Each of the B states ``count`` times in a row: (B * count, ...)."""
        return self._map(lambda x: x.repeat_interleave(count, 0))

    def detach(self) -> WorldModelState:
        """The same values without gradient history."""
        return self._map(lambda x: x.detach(), self.memory)

    @staticmethod
    def stack(states: list[WorldModelState]) -> WorldModelState:
        """States of successive frames as one trajectory; it keeps the memory of the last."""
        rows = [state._tensors() for state in states]
        return WorldModelState(
            **{name: torch.stack([row[name] for row in rows], 1) for name in rows[0]}, memory=states[-1].memory
        )
