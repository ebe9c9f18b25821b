"""Latent rehearsal: recurrence and prior trained alone, on posteriors that are remembered, without touching an image.

An image step spends nearly all of its time on pixels and sees the dynamics of a few hundred frames; sequences of
remembered posteriors cost a hundredth of that a frame, so the dynamics can be shown many more, and longer ones. The
first frames of a sequence are fed to the recurrence as they were seen, all later ones are the model's own samples, and
the prior is asked for the posterior that was seen there:

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
from aime.world_model.inference import infer
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
    *,
    kl_samples: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean KL () in nats between what was seen and what a rollout from the first ``seen`` frames expects.

    Args:
        parts: the pillars; recurrence, prior and persistence receive gradients.
        sequences: remembered posteriors, T > seen.
        seen: s >= 1, frames fed to the recurrence as they were.
        kl_samples: S of the Monte-Carlo KL.
        generator: source of randomness.
    """
    posterior = Posterior(sequences.mean, sequences.log_scale)
    batch, length, size = posterior.mean.shape
    noise = torch.randn(batch, seen, size, device=posterior.mean.device, generator=generator)
    latent = posterior.mean[:, :seen] + posterior.log_scale[:, :seen].exp() * noise  # (B, s, D)
    known = infer(parts, latent, sequences.actions[:, :seen], every_state=True)
    assert known.lstm is not None
    hidden, last = known.hidden[:, -1], latent[:, -1]  # (B, Hd), (B, D)
    lstm = LSTMState(known.lstm.hidden[:, -1], known.lstm.cell[:, -1])
    rolled: list[PriorParameters] = []
    for t in range(seen, length):
        prior, _ = parts.prior_at(hidden, last, generator=generator)
        rolled.append(prior)
        last = parts.prior.sample(prior, generator=generator)  # (B, D)
        if t + 1 < length:
            hidden, lstm = parts.dynamics.step(parts.recurrent_input(last, sequences.actions[:, t]), lstm)
    priors = [parts.prior_at(known.previous_hidden, known.previous_latent, generator=generator)[0]]
    if rolled:
        priors.append(PriorParameters.stack(rolled))
    total, start = latent.new_zeros(()), 0
    for prior in priors:
        mean, log_scale = (x[:, start : start + prior.log_pi.shape[1]] for x in (posterior.mean, posterior.log_scale))
        divergence = parts.prior.kl_divergence(mean, log_scale, prior, num_samples=kl_samples, generator=generator)
        total = total + (divergence + parts.prior.stick_kl(prior)).sum()
        start += prior.log_pi.shape[1]
    return total / (batch * length)
