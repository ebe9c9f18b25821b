"""Using the model: posterior states of observed frames, and rollouts on its own predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aime.nn import expect_shape
from aime.temporal_dynamics import LSTMState
from aime.world_model.noise import SequenceNoise
from aime.world_model.state import ObservationMemory, WorldModelState

if TYPE_CHECKING:
    from aime.world_model.model import DPGMMVariationalRecurrentAutoencoder


def predict_attention(model: DPGMMVariationalRecurrentAutoencoder, state: WorldModelState) -> tuple[Tensor, Tensor]:
    """Prior map (B, R, R) of the next frame and the attention prior's new state (B, F, R, R)."""
    prior = model.attention.prior_net.step(state.attention_map, state.hidden, state.latent, state.attention_hidden)
    return prior.maps, prior.state


def observe(
    model: DPGMMVariationalRecurrentAutoencoder,
    observations: Tensor,
    actions: Tensor,
    state: WorldModelState | None = None,
    *,
    noise: SequenceNoise | None = None,
    generator: torch.Generator | None = None,
) -> WorldModelState:
    """Posterior states of a sequence.

    Args:
        model: the world model.
        observations: (B, T, C, H, W) uint8, or float in [-1, 1].
        actions: (B, T, A), each taken after the frame of its index.
        state: (B, ...) after the frames before these; the initial state when absent.
        noise: randomness of the latents; drawn when absent.
        generator: source of randomness.

    Returns:
        trajectory (B, T, ...); its last state continues to observe or imagine, the others to imagine.

    Raises:
        ValueError: a shape that does not fit, or a state that cannot observe further frames.
    """
    frames = model.centre(observations)
    batch, length = frames.shape[:2]
    expect_shape(actions, "B T A", "actions", B=batch, T=length, A=model.config.action_size)
    state = state or model.initial_state(batch)
    if state.memory is None:
        raise ValueError(
            "state: expected one that remembers the frames before it (the initial state, or the last of a trajectory), "
            "found one from imagination or from inside a trajectory"
        )
    expect_shape(state.hidden, "B Hd", "state.hidden", B=batch, Hd=model.config.hidden_dim)
    noise = noise or SequenceNoise.draw(model.config, batch, length, frames.device, generator)
    perceived = model.perceiver(frames, state.memory.perceiver)
    stacked, kept = model.stack(frames, state.memory.frames)
    context = perceived.context.float()
    posterior = model.encoder(stacked.flatten(0, 1), context.flatten(0, 1))
    latent = posterior.rsample(noise.latent.flatten(0, 1)).unflatten(0, (batch, length))
    inputs = model.recurrent_input(latent, context, actions)
    hidden, lstm = model.dynamics.unroll(inputs, LSTMState(state.lstm_hidden, state.lstm_cell))
    previous = torch.cat([state.hidden[:, None], hidden[:, :-1]], 1)
    before = torch.cat([state.latent[:, None], latent[:, :-1]], 1)
    attention = model.attention(frames, previous, context, before, state.attention_map, state.attention_hidden)
    return WorldModelState(
        hidden=hidden,
        lstm_hidden=lstm.hidden,
        lstm_cell=lstm.cell,
        latent=latent,
        context=context,
        attention_map=attention.maps,
        attention_hidden=attention.prior.states,
        memory=ObservationMemory(perceived.memory, kept),
    )


def imagine(
    model: DPGMMVariationalRecurrentAutoencoder,
    state: WorldModelState,
    actions: Tensor | Callable[[WorldModelState], Tensor],
    horizon: int | None = None,
    temperature: float = 1.0,
    *,
    generator: torch.Generator | None = None,
    forced_latents: Tensor | None = None,
    forced_contexts: Tensor | None = None,
) -> dict[str, Tensor]:
    """Roll forward from a state that has absorbed (o_t, a_t).

    Args:
        model: the world model.
        state: (B, ...).
        actions: (B, Hz, A), actions[:, k] taken after the imagined frame k; or a policy, called with the state before
            its action, whose hidden, context, latent and map are those of the imagined frame, giving (B, A).
        horizon: Hz, frames to imagine; required with a policy.
        temperature: of the latent samples; 0 takes the most likely component's mean.
        generator: source of randomness.
        forced_latents: (B, Hz, D) to use instead of samples of the prior.
        forced_contexts: (B, Hz, Cc) to use instead of predictions.

    Returns:
        observations (B,Hz,C,H,W) in [-1,1] (expected images; [:, k] is the frame k + 1 after the state's), latents
        (B,Hz,D), hidden_states (B,Hz,Hd), context (B,Hz,Cc), attention_maps (B,Hz,R,R), rewards and continues (B,Hz)
        (continues as probabilities).

    Raises:
        ValueError: a policy without horizon, or actions that do not fit.
    """
    batch = state.hidden.shape[0]
    if isinstance(actions, Tensor):
        found = expect_shape(actions, "B T A", "actions", B=batch, A=model.config.action_size)["T"]
        if horizon is not None and horizon > found:
            raise ValueError(f"horizon: expected at most the {found} actions given, found {horizon}")
        horizon = horizon or found
    elif horizon is None:
        raise ValueError("horizon: expected a number of frames together with a policy, found None")
    steps: list[dict[str, Tensor]] = []
    for k in range(horizon):
        prior, context = model.prior_at(state.hidden, state.latent, generator=generator)
        latent = model.prior.sample(prior, temperature, generator) if forced_latents is None else forced_latents[:, k]
        context = context.float() if forced_contexts is None else forced_contexts[:, k]
        attention, carried = predict_attention(model, state)
        arrived = WorldModelState(state.hidden, state.lstm_hidden, state.lstm_cell, latent, context, attention, carried)
        action = actions[:, k] if isinstance(actions, Tensor) else actions(arrived)
        hidden, lstm = model.dynamics.step(
            model.recurrent_input(latent, context, action), LSTMState(state.lstm_hidden, state.lstm_cell)
        )
        steps.append(
            {
                "latents": latent,
                "previous": state.hidden,
                "hidden_states": hidden,
                "context": context,
                "attention_maps": attention,
            }
        )
        state = WorldModelState(hidden, lstm.hidden, lstm.cell, latent, context, attention, carried)
    rolled = {name: torch.stack([step[name] for step in steps], 1) for name in steps[0]}
    previous = rolled.pop("previous")
    # All frames are decoded in one call: nothing in the rollout depends on pixels.
    images = model.expected_images(
        rolled["latents"].flatten(0, 1), previous.flatten(0, 1), rolled["attention_maps"].flatten(0, 1)
    )
    hidden_states = rolled["hidden_states"]
    return rolled | {
        "observations": images.unflatten(0, (batch, horizon)),
        "rewards": model.reward_head(hidden_states).squeeze(-1),
        "continues": torch.sigmoid(model.continue_head(hidden_states).squeeze(-1)),
    }
