"""From frames to states: what is perceived of each frame by itself, and what is inferred along time.

    features, tokens, context    c_t = Perceiver(tokens of x_{<= t})
    slots and map                A_t = slots(x_t, c_t)
    posterior                    z_t ~ q(z_t | x_t, c_t, slots of x_t)
    recurrence                   h_t = LSTM(h_{t-1}, [z_t; a_t])

Everything but the recurrence is one call on B * T frames. The recurrence is given no context: c_t comes free of any
KL, so what h took from it would be missing in imagination, where it is a function of h.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from aime.attention_schema import AttentionPosteriorOutput
from aime.encoder_decoder import Posterior
from aime.perceiver_io import PerceiverOutput
from aime.temporal_dynamics import LSTMState
from aime.world_model.observed import ObservedFrames
from aime.world_model.parts import WorldModelParts
from aime.world_model.state import ObservationMemory, WorldModelState


@dataclass(frozen=True)
class Perceived:
    """What is known of B * T frames before any recurrence.

    Attributes:
        observed: the frames as they were given, and what was made of them.
        features: maps (B * T, F_i, H_i, W_i) of the trunk, finest first.
        perceiver: tokens and context of the frames; in training the first sequences alone carry gradients. None
            without context.
        context: (B, T, Cc) c_t, constant.
        attention: slots and maps, N = B * T; None without attention.
        posterior: q(z_t | ...), (B, T, D).
    """

    observed: ObservedFrames
    features: tuple[Tensor, ...]
    perceiver: PerceiverOutput | None
    context: Tensor
    attention: AttentionPosteriorOutput | None
    posterior: Posterior

    @property
    def frames(self) -> Tensor:
        """(B, T, C, H, W) whitened."""
        return self.observed.whitened

    @property
    def stacked(self) -> Tensor:
        """(B, T, S C, H, W), what the trunk saw: the frames and their differences to those before."""
        return self.observed.stacked

    @property
    def last_frames(self) -> Tensor:
        """(B, frame_stack - 1, C, H, W) whitened, to continue with."""
        return self.observed.last

    @property
    def maps(self) -> Tensor:
        """(B, T, R, R) A_t; R = 0 without attention."""
        shape = self.context.shape[:2]
        if self.attention is None:
            return self.context.new_zeros(*shape, 0, 0)
        return self.attention.map.unflatten(0, shape)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Inferred:
    """States along a sequence.

    Attributes:
        latent: (B, T, D) z_t.
        hidden: (B, T, Hd) h_t.
        previous_latent: (B, T, D) z_{t-1}, zeros before the first frame of an episode.
        previous_hidden: (B, T, Hd) h_{t-1}, the learned initial state before the first.
        lstm: raw recurrent states (B, T, L, Hd) after each frame; None where only their end was asked for.
    """

    latent: Tensor
    hidden: Tensor
    previous_latent: Tensor
    previous_hidden: Tensor
    lstm: LSTMState | None


def perceive(parts: WorldModelParts, observations: Tensor, memory: ObservationMemory | None = None) -> Perceived:
    """Features, tokens, context, slots and posterior of frames (B, T, C, H, W), uint8 or float in [-1, 1]."""
    observed = ObservedFrames(parts, observations, None if memory is None else memory.frames)  # (B, T, C, H, W)
    features = observed.features(parts.encoder.features)  # (B T, F_i, H_i, W_i), finest first
    batch, length = observations.shape[:2]
    read = read_context(parts, features, (batch, length), memory)
    context = parts.mean_image.new_zeros(batch, length, 0)
    if read is not None:
        context = read.context.detach().to(context.dtype)  # (B, T, Cc); the Perceiver has its own task to learn from
    flat_context = context.flatten(0, 1)  # (B T, Cc)
    attention, conditions = None, flat_context
    if parts.config.attention_in_posterior:
        level = features[parts.attention_level]
        attention = parts.attention.posterior_net(level, flat_context.new_zeros(batch * length, 0), flat_context)
        conditions = torch.cat([flat_context, read_attention(attention, parts.config.attention_reading)], 1)
    posterior = parts.encoder.posterior(features, conditions)  # (B T, D)
    posterior = posterior.unflatten(batch, length)  # (B, T, D)
    return Perceived(observed, features, read, context, attention, posterior)


def read_attention(attention: AttentionPosteriorOutput, reading: str) -> Tensor:
    """What the posterior is given of the attention of N frames: slots (N, S d), cells (N, R R) or both, and the centre.

    Cells as the attention prior reads them: log(1 + density), where 1 is the density of an even map.
    """
    read = [attention.slots.flatten(1)] if "slots" in reading else []  # (N, S d)
    if "map" in reading:
        cells = attention.map.flatten(1)  # (N, R R)
        read.append(torch.log1p(cells.shape[1] * cells))
    return torch.cat([*read, attention.coords], 1)


def read_context(
    parts: WorldModelParts, features: tuple[Tensor, ...], shape: tuple[int, int], memory: ObservationMemory | None
) -> PerceiverOutput | None:
    """Tokens and context of B * T frames from the trunk's maps; None where the configuration has no context."""
    config = parts.config
    if not config.context_in_posterior:
        return None
    tokens = features[parts.token_level].detach().unflatten(0, shape)  # (B, T, F, Ht, Wt)
    share = config.perceiver_share if parts.training else 1.0
    kept = None if memory is None else memory.perceiver
    output: PerceiverOutput = parts.perceiver(tokens, kept, detach_tokens=True, share=share if kept is None else 1.0)
    return output


def infer(
    parts: WorldModelParts,
    latent: Tensor,
    actions: Tensor,
    state: WorldModelState | None = None,
    *,
    every_state: bool = False,
) -> Inferred:
    """Run the recurrence over z (B, T, D) and a (B, T, A): one fused call.

    Args:
        parts: the pillars.
        latent: (B, T, D) samples of the posterior.
        actions: (B, T, A), each taken after the frame of its index.
        state: (B, ...) before the first of these frames; the initial one when absent.
        every_state: give the raw recurrent state after every frame, so that imagination may start at any of them.
    """
    state = state or parts.initial_state(latent.shape[0])
    before = LSTMState(state.lstm_hidden, state.lstm_cell)
    inputs = parts.recurrent_input(latent, actions)  # (B, T, D + A)
    lstm = None
    if every_state:
        hidden, lstm = parts.dynamics.unroll(inputs, before)  # (B, T, Hd)
    else:
        hidden, _ = parts.dynamics(inputs, before)  # (B, T, Hd)
    previous_latent = torch.cat([state.latent[:, None].to(latent.dtype), latent[:, :-1]], 1)  # (B, T, D)
    previous_hidden = torch.cat([state.hidden[:, None].to(hidden.dtype), hidden[:, :-1]], 1)  # (B, T, Hd)
    return Inferred(latent, hidden, previous_latent, previous_hidden, lstm)


def observe(
    parts: WorldModelParts,
    observations: Tensor,
    actions: Tensor,
    state: WorldModelState,
    noise: Tensor,
) -> WorldModelState:
    """Posterior states (B, T, ...) of frames (B, T, C, H, W) and actions (B, T, A), from the state before them.

    Args:
        parts: the pillars.
        observations: uint8, or float in [-1, 1].
        actions: each taken after the frame of its index.
        state: (B, ...), one that remembers the frames before these.
        noise: (B, T, D) standard normal, of the posterior samples.
    """
    assert state.memory is not None
    seen = perceive(parts, observations, state.memory)
    latent = parts.draw(seen.posterior, noise)  # (B, T, D)
    inferred = infer(parts, latent, actions, state, every_state=True)
    assert inferred.lstm is not None
    attention_hidden = state.attention_hidden[:, None].expand(-1, latent.shape[1], -1, -1, -1)
    if parts.config.attention_in_posterior:
        forecast = parts.attention.forecast(
            seen.maps, inferred.previous_hidden, inferred.previous_latent, state.attention_map, state.attention_hidden
        )
        attention_hidden = forecast.prior.states
    return WorldModelState(
        hidden=inferred.hidden,
        lstm_hidden=inferred.lstm.hidden,
        lstm_cell=inferred.lstm.cell,
        latent=latent,
        context=seen.context,
        attention_map=seen.maps,
        attention_hidden=attention_hidden,
        memory=ObservationMemory(None if seen.perceiver is None else seen.perceiver.memory, seen.last_frames),
    )


def teach(parts: WorldModelParts, seen: Perceived) -> Tensor:
    """Gram loss () between trunk and teacher on a few frames of each sequence, over the two coarsest levels.

    0 without a teacher, and in evaluation.
    """
    batch, length = seen.context.shape[:2]
    count = min(parts.config.gram_frames, length)
    if parts.teacher_trunk is None or count == 0 or not parts.training:
        return seen.context.new_zeros(())
    times = torch.linspace(0, length - 1, count, device=seen.context.device).round().long()
    with torch.no_grad():
        taught = seen.observed.features(parts.teacher_trunk, times)
    total = seen.context.new_zeros(())
    for student, teacher in zip(seen.features[-2:], taught[-2:], strict=True):
        picked = student.unflatten(0, (batch, length))[:, times].flatten(0, 1)  # (B n, F, h, w)
        if picked.shape[-1] > 16:
            picked, teacher = F.avg_pool2d(picked, 2), F.avg_pool2d(teacher, 2)  # noqa: PLW2901
        total = total + parts.gram_loss(picked.flatten(2).mT, teacher.flatten(2).mT)
    return total
