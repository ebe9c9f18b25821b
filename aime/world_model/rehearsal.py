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
from aime.generative_prior import PriorParameters
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
    pieces: list[tuple[Posterior, PriorParameters]] = []
    if rolled:
        posterior = Posterior(sequences.mean[:rolled], sequences.log_scale[:rolled])
        pieces += expect_rolled(parts, posterior, sequences.actions[:rolled], seen, generator)
    if rolled < batch:
        posterior = Posterior(sequences.mean[rolled:], sequences.log_scale[rolled:])
        pieces.append((posterior, expect_seen(parts, posterior, sequences.actions[rolled:], generator)[0]))
    total = sequences.mean.new_zeros(())
    for posterior, prior in pieces:
        divergence = parts.prior.kl_divergence(
            posterior.mean, posterior.log_scale, prior, num_samples=kl_samples, generator=generator
        )
        total = total + (divergence + parts.stick_kl(prior)).sum()
    return total / (batch * length)


def expect_seen(
    parts: WorldModelParts, posterior: Posterior, actions: Tensor, generator: torch.Generator | None
) -> tuple[PriorParameters, Tensor, Tensor, LSTMState]:
    """Prior of every frame (B, T) from the frames before it as they were seen; h, z and raw state after the last."""
    noise = torch.randn(posterior.mean.shape, device=posterior.mean.device, generator=generator)
    latent = parts.draw(posterior, noise)  # (B, T, D)
    start = parts.initial_state(latent.shape[0])
    before = LSTMState(start.lstm_hidden, start.lstm_cell)
    hidden, after = parts.dynamics(parts.recurrent_input(latent, actions), before)  # (B, T, Hd)
    previous_hidden = torch.cat([start.hidden[:, None].to(hidden.dtype), hidden[:, :-1]], 1)  # (B, T, Hd)
    previous_latent = torch.cat([start.latent[:, None], latent[:, :-1]], 1)  # (B, T, D)
    prior, _ = parts.prior_at(previous_hidden, previous_latent, generator=generator)
    return prior, hidden[:, -1], latent[:, -1], after


def expect_rolled(
    parts: WorldModelParts, posterior: Posterior, actions: Tensor, seen: int, generator: torch.Generator | None
) -> list[tuple[Posterior, PriorParameters]]:
    """Posterior and prior of the first ``seen`` frames (B, s), and of the rest (B, T - s), which is rolled out."""
    before, after = posterior.split(seen)
    prior, hidden, latent, lstm = expect_seen(parts, before, actions[:, :seen], generator)
    pieces = [(before, prior)]
    batch, length = actions.shape[:2]
    if seen == length:
        return pieces
    hiddens, latents = hidden[:, None], latent[:, None]
    if seen + 1 < length:  # the last frame is expected, but nothing is expected of it
        if parts.config.latent_groups == 1:
            noise = RolloutNoise.draw(parts, length - seen - 1, batch, generator)
            rolled = roll_latents(parts, hidden, latent, lstm, actions[:, seen:-1], noise)
        else:
            rolled = roll_groups(parts, hidden, latent, lstm, actions[:, seen:-1], generator)
        hiddens, latents = torch.cat([hiddens, rolled[0]], 1), torch.cat([latents, rolled[1]], 1)
    expected, _ = parts.prior_at(hiddens, latents, generator=generator)  # (B, T - s)
    return [*pieces, (after, expected)]


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
