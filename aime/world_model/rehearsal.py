"""Latent rehearsal: recurrence and prior trained alone, on posteriors that are remembered, without touching an image.

An image step spends nearly all of its time on pixels and sees the dynamics of a few hundred frames; sequences of
remembered posteriors cost a hundredth of that a frame, so the dynamics can be shown many more, and longer ones. Some of
the sequences are fed to the recurrence as they were seen, and the prior learns to foresee one frame. Of the others the
first frames are, all later ones are the model's own samples, and the prior is asked for the posterior that was seen:

    z_t ~ q(z_t) for t < s,    z_t ~ p(z_t | h_{t-1}) for t >= s,    loss = mean_t KL(q(z_t) || p(z_t | h_{t-1}))

with gradients through the samples. So rollouts of the length that imagination asks for are trained for, which windows
of 16 frames do not do, and what cannot be foreseen has to show as width of the prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aime.encoder_decoder import Posterior
from aime.temporal_dynamics import LSTMState
from aime.world_model.latent_rollout import RolloutNoise, roll_latents
from aime.world_model.parts import WorldModelParts


@dataclass(frozen=True)
class RememberedSequences:
    """Posteriors of B sequences of T consecutive frames, and the actions between them.

    Attributes:
        mean, log_scale: (B, T, D) of q(z_t).
        actions: (B, T, A), each taken after the frame of its index.
    """

    mean: Tensor
    log_scale: Tensor
    actions: Tensor


def rehearsal_loss(
    parts: WorldModelParts,
    sequences: RememberedSequences,
    seen: int,
    rolled: int | None = None,
    *,
    kl_samples: int = 2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean KL () in nats between what was seen and what was expected, sticks included.

    Args:
        parts: the pillars; recurrence, prior and persistence receive gradients.
        sequences: remembered posteriors.
        seen: s in 1 .. T, frames of a rolled sequence that are fed to the recurrence as they were.
        rolled: how many of the B sequences, the first ones, are rolled out from frame s; all when absent.
        kl_samples: S of the Monte-Carlo KL.
        generator: source of randomness.
    """
    batch, length = sequences.actions.shape[:2]
    rolled = batch if rolled is None else rolled
    posterior = Posterior(sequences.mean, sequences.log_scale)
    pieces: list[tuple[Tensor, Tensor]] = []
    if rolled:
        first = Posterior(posterior.mean[:rolled], posterior.log_scale[:rolled])
        pieces.append(before_rolled(parts, first, sequences.actions[:rolled], seen, generator))
    if rolled < batch:
        rest = Posterior(posterior.mean[rolled:], posterior.log_scale[rolled:])
        followed = follow(parts, rest, sequences.actions[rolled:], generator)
        pieces.append((followed.hidden[:, :-1], followed.latent[:, :-1]))
    # the prior of all frames at once: three calls on parts of them took a tenth of a rehearsal more
    hidden, latent = (torch.cat(part) for part in zip(*pieces, strict=True))  # (B, T, Hd), (B, T, D)
    prior, _ = parts.prior_at(hidden, latent, generator=generator)  # (B, T)
    divergence = parts.prior.kl_divergence(
        posterior.mean, posterior.log_scale, prior, num_samples=kl_samples, generator=generator
    )
    return (divergence + parts.stick_kl(prior)).sum() / (batch * length)


@dataclass(frozen=True)
class Followed:
    """States along B sequences of T frames that are given.

    Attributes:
        hidden: (B, T + 1, Hd), h before the first frame and after every frame.
        latent: (B, T + 1, D), z likewise.
        lstm: raw state after the last frame.
    """

    hidden: Tensor
    latent: Tensor
    lstm: LSTMState


def follow(
    parts: WorldModelParts, posterior: Posterior, actions: Tensor, generator: torch.Generator | None
) -> Followed:
    """States along frames as they were seen, latents drawn from their posterior (B, T, D)."""
    noise = torch.randn(posterior.mean.shape, device=posterior.mean.device, generator=generator)
    latent = parts.draw(posterior, noise)  # (B, T, D)
    start = parts.initial_state(latent.shape[0])
    before = LSTMState(start.lstm_hidden, start.lstm_cell)
    hidden, after = parts.dynamics(parts.recurrent_input(latent, actions), before)  # (B, T, Hd)
    hidden = torch.cat([start.hidden[:, None].to(hidden.dtype), hidden], 1)  # (B, T + 1, Hd)
    return Followed(hidden, torch.cat([start.latent[:, None], latent], 1), after)


def before_rolled(
    parts: WorldModelParts, posterior: Posterior, actions: Tensor, seen: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """h (B, T, Hd) and z (B, T, D) before every frame; the first ``seen`` frames are given, the rest rolled out."""
    batch, length = actions.shape[:2]
    followed = follow(parts, posterior.split(seen)[0], actions[:, :seen], generator)
    hidden, latent = followed.hidden[:, :length], followed.latent[:, :length]
    if seen + 1 >= length:  # the last frame is expected, but nothing is expected of it
        return hidden, latent
    ahead = (hidden[:, -1], latent[:, -1], followed.lstm, actions[:, seen:-1])
    if parts.config.latent_groups == 1:
        noise = RolloutNoise.draw(parts, length - seen - 1, batch, generator)
        rolled = roll_latents(parts, *ahead, noise)
    else:
        rolled = roll_groups(parts, *ahead, generator)
    return torch.cat([hidden, rolled[0]], 1), torch.cat([latent, rolled[1]], 1)


def roll_groups(
    parts: WorldModelParts,
    hidden: Tensor,
    latent: Tensor,
    lstm: LSTMState,
    actions: Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """`roll_latents` for a prior over latent groups, which the fused operation does not know: under autograd."""
    hiddens, latents = [], []
    for action in actions.unbind(1):
        prior, _ = parts.prior_at(hidden, latent, generator=generator)
        latent = parts.prior.sample(prior, generator=generator)  # (B, D)
        hidden, lstm = parts.dynamics.step(parts.recurrent_input(latent, action), lstm)  # (B, Hd)
        hiddens.append(hidden)
        latents.append(latent)
    return torch.stack(hiddens, 1), torch.stack(latents, 1)
