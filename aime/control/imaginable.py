"""This project's world model as one that can be planned with (`aime.world_model.Imaginable`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from aime.nn import expect_shape
from aime.temporal_dynamics import LSTMState
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelState
from aime.world_model.imaginable import Featured, Imaginable, Imagined, check_imagined

__all__ = ["Featured", "Imaginable", "Imagined", "WorldModelImaginable", "check_imagined"]

Head = Callable[[Tensor], Tensor]
"""[h_t, z_t] (..., Hd + D) -> a number (...); h_t has absorbed z_t and, for rewards and continues, a_t."""


class WorldModelImaginable:
    """The world model with the actions where planners have them: before the frame that they lead to.

    The state is that at frame o_t before an action: z_t with h_{t-1}, and the memory to observe further frames.
    Attention maps are not rolled forward, because neither rewards nor frames depend on them.

    Args:
        model: the world model; it is put into evaluation mode.
        reward: of an action, from [h_t, z_t]; the model's own reward head by default.
        continues: probability that the episode goes on after an action; None: 1 (the Control Suite's end by time).
        value: return expected at a frame, from [h_{t-1}, z_t], such as a critic's; None: planning ends at the horizon.
        temperature: of the latent samples; 0 takes the most likely component's mean.
    """

    def __init__(
        self,
        model: DPGMMVariationalRecurrentAutoencoder,
        reward: Head | None = None,
        *,
        continues: Head | None = None,
        value: Head | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.model = model.eval()
        self.reward = reward or self._own_reward
        self.continues, self.value, self.temperature = continues, value, temperature

    def _own_reward(self, features: Tensor) -> Tensor:
        reward: Tensor = self.model.reward_head(features[..., : self.model.config.hidden_dim]).squeeze(-1)
        return reward

    @torch.no_grad()
    def observe(
        self,
        observations: Tensor,
        actions: Tensor,
        state: WorldModelState | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> WorldModelState:
        """See `Imaginable.observe`.

        Raises:
            ValueError: a shape that does not fit the model.
        """
        sizes = expect_shape(actions, "B T A", "actions", A=self.model.config.action_size)
        before = self.model.initial_state(sizes["B"]) if state is None else self._absorb(state, actions[:, 0])
        # The action after the last frame is not known: what the recurrence makes of this one is thrown away.
        following = torch.cat([actions[:, 1:], torch.zeros_like(actions[:, :1])], 1)  # (B, T, A)
        states = self.model.observe(observations, following, before, generator=generator)
        earlier = before if sizes["T"] == 1 else states.at(sizes["T"] - 2)
        return states.at(-1).after(earlier.hidden, earlier.lstm_hidden, earlier.lstm_cell)

    @torch.no_grad()
    def imagine(
        self,
        state: WorldModelState,
        actions: Tensor,
        *,
        frames: bool = False,
        generator: torch.Generator | None = None,
    ) -> Imagined:
        """See `Imaginable.imagine`."""
        model = self.model
        sizes = expect_shape(actions, "B N Hz A", "actions", B=len(state.hidden), A=model.config.action_size)
        batch, count, horizon = sizes["B"], sizes["N"], sizes["Hz"]
        taken = actions.flatten(0, 1).to(state.latent)  # (B N, Hz, A)
        # The first action follows the observed latent: candidates share it and differ in the action alone.
        start = state.repeat(count)  # (B N, ...)
        hidden, latent, lstm = start.hidden, start.latent, LSTMState(start.lstm_hidden, start.lstm_cell)
        acted, hiddens, latents = [], [], []
        for k in range(horizon):
            hidden, lstm = model.dynamics.step(model.recurrent_input(latent, taken[:, k]), lstm)  # (B N, Hd)
            acted.append(torch.cat([hidden, latent], -1))  # (B N, Hd + D): what the reward of action k is read from
            if k + 1 < horizon or frames or self.value is not None:  # nothing else looks beyond the last reward
                latent, _ = model.sample_next_latent(hidden, latent, self.temperature, generator)  # (B N, D)
            hiddens.append(hidden)
            latents.append(latent)
        features = torch.stack(acted, 1)  # (B N, Hz, Hd + D)
        rewards = self.reward(features).unflatten(0, (batch, count))  # (B, N, Hz)
        continues = None if self.continues is None else self.continues(features).unflatten(0, (batch, count))
        values = None
        if self.value is not None:
            values = self.value(torch.cat([hidden, latent], -1)).unflatten(0, (batch, count))  # (B, N)
        images = None
        if frames:
            decoded = model.expected_images(torch.cat(latents), torch.cat(hiddens))  # (Hz B N, C, H, W)
            images = decoded.unflatten(0, (horizon, batch, count)).permute(1, 2, 0, 3, 4, 5)  # (B, N, Hz, C, H, W)
        return Imagined(rewards, images, continues, values)

    def features(self, state: WorldModelState) -> Tensor:
        """(B, Hd + D) [h_{t-1}, z_t] at the frame, before an action."""
        return torch.cat([state.hidden, state.latent], -1)

    def _absorb(self, state: WorldModelState, action: Tensor) -> WorldModelState:
        """The state after its action (B, A); it keeps the memory of frames."""
        hidden, lstm = self.model.dynamics.step(
            self.model.recurrent_input(state.latent, action.to(state.latent)),
            LSTMState(state.lstm_hidden, state.lstm_cell),
        )
        return dataclasses.replace(state, hidden=hidden, lstm_hidden=lstm.hidden, lstm_cell=lstm.cell)
