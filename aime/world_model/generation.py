"""From states to frames: the prior, rollouts on its own samples, and what is decoded of them.

    c^_t = context_predictor(h_{t-1})
    z_t ~ p(z_t | h_{t-1}, c^_t, z_{t-1})
    A_t = attention prior(A_{t-1}, h_{t-1}, z_{t-1})
    h_t = LSTM(h_{t-1}, [z_t; a_t])
    x_t ~ p(x_t | z_t, h_{t-1}),  r_t, continue_t ~ heads(h_t)

Nothing here sees a frame: what plans or acts in imagination needs this file alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aime.encoder_decoder import Posterior
from aime.generative_prior import PriorParameters
from aime.nn import expect_shape
from aime.temporal_dynamics import LSTMState
from aime.world_model.parts import WorldModelParts
from aime.world_model.state import WorldModelState

Policy = Callable[[WorldModelState], Tensor]


@dataclass(frozen=True)
class Foreseen:
    """What the model expected of each frame of a sequence before it saw it.

    Attributes:
        prior: parameters of p(z_t | ...), leading axes (B, T).
        context: (B, T, Cc) c^_t.
        group_kl: (B, T, G) nats, KL(q(z_t) || p(z_t)) of each latent group given the coarser ones.
    """

    prior: PriorParameters
    context: Tensor
    group_kl: Tensor

    @property
    def kl(self) -> Tensor:
        """(B, T) nats, of all groups."""
        return self.group_kl.sum(-1)


@dataclass(frozen=True)
class Rolled:
    """Frames that were imagined.

    Attributes:
        states: trajectory (B, Hz, ...), entry k after the imagined frame k and its action.
        previous_hidden: (B, Hz, Hd) h before each imagined frame, which the decoder reads.
    """

    states: WorldModelState
    previous_hidden: Tensor


def foresee(
    parts: WorldModelParts,
    posterior: Posterior,
    previous_hidden: Tensor,
    previous_latent: Tensor,
    *,
    kl_noise: Tensor,
    stick_noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Foreseen:
    """Prior of every frame at once, and its divergence from the posterior.

    Args:
        parts: the pillars.
        posterior: q(z_t | ...), (B, T, D).
        previous_hidden: (B, T, Hd) h_{t-1}.
        previous_latent: (B, T, D) z_{t-1}.
        kl_noise: (S, B, T, D) standard normal, of the Monte-Carlo cross entropy.
        stick_noise: (B, T, K - 1) uniform, of the sticks; drawn from ``generator`` when absent.
        generator: source of randomness.
    """
    prior, context = parts.prior_at(previous_hidden, previous_latent, noise=stick_noise, generator=generator)
    group_kl = parts.prior.group_kl(posterior.mean, posterior.log_scale, prior, kl_noise)  # (B, T, G)
    return Foreseen(prior, context, group_kl)


def advance(
    parts: WorldModelParts,
    state: WorldModelState,
    action: Tensor | Policy,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    latent: Tensor | None = None,
) -> WorldModelState:
    """One imagined frame: from the state (B, ...) after (o_{t-1}, a_{t-1}) to the one after (imagined o_t, a_t).

    Args:
        parts: the pillars.
        state: (B, ...).
        action: (B, A), or a policy that is given the state at the imagined frame, before its action: latent, context
            and map are those of the imagined frame, hidden is still h_{t-1}.
        temperature: of the latent sample; 0 takes the most likely component's mean.
        generator: source of randomness.
        latent: (B, D) to use instead of a sample of the prior.
    """
    prior, context = parts.prior_at(state.hidden, state.latent, generator=generator)
    if latent is None:
        latent = parts.prior.sample(prior, temperature, generator)  # (B, D)
    maps, attention_hidden = state.attention_map, state.attention_hidden
    if parts.config.attention_in_posterior:
        attention = parts.attention.prior_net.step(maps, state.hidden, state.latent, attention_hidden)
        maps, attention_hidden = attention.maps, attention.state
    arrived = WorldModelState(
        hidden=state.hidden,
        lstm_hidden=state.lstm_hidden,
        lstm_cell=state.lstm_cell,
        latent=latent,
        context=context.to(latent.dtype),
        attention_map=maps,
        attention_hidden=attention_hidden,
    )
    taken = action if isinstance(action, Tensor) else action(arrived)  # (B, A)
    hidden, lstm = parts.dynamics.step(
        parts.recurrent_input(latent, taken), LSTMState(state.lstm_hidden, state.lstm_cell)
    )
    return arrived.after(hidden, lstm.hidden, lstm.cell)


def roll(
    parts: WorldModelParts,
    state: WorldModelState,
    actions: Tensor | Policy,
    horizon: int,
    temperature: float = 1.0,
    *,
    generator: torch.Generator | None = None,
    forced_latents: Tensor | None = None,
) -> Rolled:
    """Imagine ``horizon`` >= 1 frames from a state (B, ...); arguments as in :func:`imagine`."""
    states: list[WorldModelState] = []
    previous: list[Tensor] = []
    for k in range(horizon):
        previous.append(state.hidden)
        state = advance(
            parts,
            state,
            actions[:, k] if isinstance(actions, Tensor) else actions,
            temperature=temperature,
            generator=generator,
            latent=None if forced_latents is None else forced_latents[:, k],
        )
        states.append(state)
    return Rolled(WorldModelState.stack(states), torch.stack(previous, 1))


def imagine(
    parts: WorldModelParts,
    state: WorldModelState,
    actions: Tensor | Policy,
    horizon: int | None = None,
    temperature: float = 1.0,
    *,
    generator: torch.Generator | None = None,
    forced_latents: Tensor | None = None,
) -> dict[str, Tensor]:
    """Roll forward from a state that has absorbed (o_t, a_t), and decode.

    Args:
        parts: the pillars.
        state: (B, ...).
        actions: (B, Hz, A), actions[:, k] taken after the imagined frame k; or a policy, called with the state before
            its action, whose context, latent and map are those of the imagined frame, giving (B, A).
        horizon: Hz, frames to imagine; required with a policy; 0 gives empty results.
        temperature: of the latent samples; 0 takes the most likely component's mean.
        generator: source of randomness.
        forced_latents: (B, Hz, D) to use instead of samples of the prior.

    Returns:
        observations (B,Hz,C,H,W) in [-1,1] (expected images; [:, k] is the frame k + 1 after the state's), latents
        (B,Hz,D), hidden_states (B,Hz,Hd), context (B,Hz,Cc), attention_maps (B,Hz,R,R), rewards and continues (B,Hz)
        (continues as probabilities).

    Raises:
        ValueError: a policy without horizon, a negative horizon, or actions that do not fit.
    """
    batch = state.hidden.shape[0]
    expect_shape(state.hidden, "B Hd", "state.hidden", Hd=parts.config.hidden_dim)
    horizon = checked_horizon(parts, batch, actions, horizon)
    if horizon == 0:
        return nothing_imagined(parts, batch)
    rolled = roll(parts, state, actions, horizon, temperature, generator=generator, forced_latents=forced_latents)
    states = rolled.states
    # All frames are decoded in one call: nothing in the rollout depends on pixels.
    images = parts.expected_images(states.latent.flatten(0, 1), rolled.previous_hidden.flatten(0, 1))
    return {
        "latents": states.latent,
        "hidden_states": states.hidden,
        "context": states.context,
        "attention_maps": states.attention_map,
        "observations": images.unflatten(0, (batch, horizon)),
        "rewards": parts.reward_head(states.hidden).squeeze(-1),
        "continues": torch.sigmoid(parts.continue_head(states.hidden).squeeze(-1)),
    }


def checked_horizon(parts: WorldModelParts, batch: int, actions: Tensor | Policy, horizon: int | None) -> int:
    """The number of frames to imagine; ValueError where it is negative, missing or more than the actions given."""
    if horizon is not None and horizon < 0:
        raise ValueError(f"horizon: expected a number of frames of at least 0, found {horizon}")
    if not isinstance(actions, Tensor):
        if horizon is None:
            raise ValueError("horizon: expected a number of frames together with a policy, found None")
        return horizon
    given = expect_shape(actions, "B T A", "actions", B=batch, A=parts.config.action_size)["T"]
    if horizon is not None and horizon > given:
        raise ValueError(f"horizon: expected at most the {given} actions given, found {horizon}")
    return given if horizon is None else horizon


def nothing_imagined(parts: WorldModelParts, batch: int) -> dict[str, Tensor]:
    """The results of zero imagined frames."""
    config = parts.config
    side = config.map_side
    shapes: dict[str, tuple[int, ...]] = {
        "latents": (config.latent_dim,),
        "hidden_states": (config.hidden_dim,),
        "context": (config.context_size,),
        "attention_maps": (side, side),
        "observations": config.image_shape,
        "rewards": (),
        "continues": (),
    }
    return {name: parts.mean_image.new_zeros(batch, 0, *shape) for name, shape in shapes.items()}
