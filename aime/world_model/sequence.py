"""One pass of the world model over whole sequences, as the story of docs/model.md tells it: five calls.

    perceive    frames to features, tokens, context, slots and posterior
    infer       posterior samples to recurrent states
    foresee     states to the prior of the frame after, and its KL from the posterior
    watch       maps to the prediction of where they go
    decode      latents and states to the likelihood of the frames

Every stage is one call on B * T frames but for two scans over time, the recurrent network and the ConvGRU of the
attention prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from aime.adversarial import Contest
from aime.attention_schema import AttentionForecast, precision_weights
from aime.encoder_decoder import GaussianLikelihood
from aime.nn import expect_shape
from aime.ranks import Ranks
from aime.world_model.generation import Foreseen, foresee
from aime.world_model.inference import Inferred, Perceived, infer, perceive, teach
from aime.world_model.noise import SequenceNoise
from aime.world_model.parts import CONTRAST, WorldModelParts


@dataclass(frozen=True)
class Decoded:
    """Frames decoded of a sequence.

    Attributes:
        times: (n,) which frames, in order; in training a random share of them.
        parameters: (B * n, ...) the decoder's output.
        nll: (B, n) negative log-likelihood in nats.
    """

    times: Tensor
    parameters: Tensor
    nll: Tensor


@dataclass(frozen=True)
class Heads:
    """What the states say of rewards and ends.

    Attributes:
        rewards: (B, T) predicted rewards.
        continue_logits: (B, T).
        reward_loss, continue_loss: () nats; None where there was nothing to compare with.
    """

    rewards: Tensor
    continue_logits: Tensor
    reward_loss: Tensor | None
    continue_loss: Tensor | None


@dataclass(frozen=True)
class SequencePass:
    """Everything one pass gives."""

    perceived: Perceived
    inferred: Inferred
    foreseen: Foreseen
    stick_kl: Tensor
    """(B, T) nats, times ``stick_kl_weight``."""
    watched: AttentionForecast | None
    """None without attention. Of the first sequences of the batch (``attention_share`` of them in training)."""
    decoded: Decoded
    heads: Heads
    context_loss: Tensor
    """() mean squared error of c^; 0 without context."""
    gram_loss: Tensor
    """()."""
    perceiver_losses: dict[str, Tensor]
    """Empty without context."""
    contest: Contest | None
    """Frames and their reconstructions for the critics; None without critics, and in evaluation."""


def forward_sequence(
    parts: WorldModelParts,
    observations: Tensor,
    actions: Tensor | None = None,
    rewards: Tensor | None = None,
    continues: Tensor | None = None,
    *,
    noise: SequenceNoise | None = None,
    generator: torch.Generator | None = None,
    ranks: Ranks | None = None,
) -> SequencePass:
    """Run the model over sequences.

    Args:
        parts: the pillars.
        observations: (B, T, C, H, W) uint8, or float in [-1, 1]; T >= 1.
        actions: (B, T, A), each taken after the frame of its index; zeros when absent.
        rewards: (B, T) of those actions.
        continues: (B, T), 0 where the episode ended.
        noise: all random numbers; drawn from ``generator`` when absent.
        generator: source of randomness.
        ranks: of a distributed step, whose global batch these are rows of.
    """
    actions = checked_actions(parts, observations, actions, rewards, continues)
    batch, length = actions.shape[:2]
    noise = noise or SequenceNoise.draw(parts.config, batch, length, parts.mean_image, generator, ranks)

    seen = perceive(parts, observations)
    inferred = infer(parts, parts.draw(seen.posterior, noise.latent), actions)
    foreseen = foresee(
        parts,
        seen.posterior,
        inferred.previous_hidden,
        inferred.previous_latent,
        kl_noise=noise.kl,
        stick_noise=noise.sticks,
    )
    watched = watch(parts, seen, inferred)
    decoded = decode(parts, seen, inferred, generator)
    return SequencePass(
        perceived=seen,
        inferred=inferred,
        foreseen=foreseen,
        stick_kl=parts.stick_kl(foreseen.prior),
        watched=watched,
        decoded=decoded,
        heads=judge(parts, inferred.hidden, rewards, continues),
        context_loss=seen.context.new_zeros(())
        if seen.perceiver is None
        else F.mse_loss(foreseen.context.float(), seen.context.float()),
        gram_loss=teach(parts, seen),
        perceiver_losses={}
        if seen.perceiver is None
        else parts.perceiver.compute_loss(
            seen.perceiver,
            seen.frames,
            actions=actions,
            share=parts.config.perceiver_share if parts.training else 1.0,
        ),
        contest=oppose(parts, seen, inferred, decoded),
    )


def watch(parts: WorldModelParts, seen: Perceived, inferred: Inferred) -> AttentionForecast | None:
    """Predict the maps of a sequence from those before; None without attention.

    The prediction alone learns from it. Balanced task gradients have equal length, and the predictive task reaches
    little else than the attention: were it to move the maps as well, it would outweigh the likelihood there and flatten
    them (body PSNR of reconstructions after 400 steps: 13.1 dB with it, 18.7 dB for the plain sum of the losses).
    ``attention_balance`` gives the maps a share of it.
    """
    if not parts.config.attention_in_posterior:
        return None
    batch = seen.maps.shape[0]
    count = max(round(parts.config.attention_share * batch), 1) if parts.training else batch
    return parts.attention.forecast(
        seen.maps[:count],
        inferred.previous_hidden[:count].detach(),
        inferred.previous_latent[:count].detach(),
        detach_maps=True,
        balance=parts.config.attention_balance,
    )


def decode(parts: WorldModelParts, seen: Perceived, inferred: Inferred, generator: torch.Generator | None) -> Decoded:
    """Decode all frames, or in training a random share of them, and score them."""
    length = inferred.latent.shape[1]
    count = max(round(parts.config.decoded_share * length), 1)
    times = torch.arange(length, device=inferred.latent.device)
    if parts.training and count < length and parts.critics is not None:  # a critic of motion wants neighbours
        first = torch.randint(length - count + 1, (1,), device=times.device, generator=generator)
        times = first + times[:count]
    elif parts.training and count < length:
        times = torch.randperm(length, device=times.device, generator=generator)[:count].sort().values
    latent, hidden = inferred.latent[:, times].flatten(0, 1), inferred.previous_hidden[:, times].flatten(0, 1)
    parameters = parts.decoder(latent, hidden)  # (B n, channels, H, W)
    weights = None
    if parts.config.precision_weighting:
        weights = precision_weights(seen.maps[:, times].flatten(0, 1), parts.config.image_shape[1:])
    pixels = parts.pixels
    likelihood = parts.likelihood
    if isinstance(likelihood, GaussianLikelihood) and seen.observed.read_as_stored:
        nll = likelihood.frame_nll(parameters, pixels, seen.observed.at(times), weights)  # (B n)
    else:
        target = seen.frames[:, times].flatten(0, 1) / CONTRAST  # (B n, C, H, W) whitened
        if isinstance(likelihood, GaussianLikelihood):
            nll = likelihood.whitened_nll(parameters, pixels, target, weights)  # (B n)
        else:
            nll = likelihood.nll(parameters, pixels, target * pixels.spread + pixels.mean, weights)  # (B n)
    return Decoded(times, parameters, nll.unflatten(0, (-1, len(times))))


def oppose(parts: WorldModelParts, seen: Perceived, inferred: Inferred, decoded: Decoded) -> Contest | None:
    """What the critics are shown: frames and mean reconstructions of ``critic_share`` of the sequences, whitened.

    Whitened, since a pole of two pixels is little of an image otherwise. The mean of the likelihood is differentiable,
    where samples of it are not. In training alone: a critic's score has no scale that held-out losses could be compared
    on.
    """
    if parts.critics is None or not parts.training:
        return None
    batch, frames = seen.frames.shape[0], len(decoded.times)
    count = max(round(parts.config.critic_share * batch), 1)
    pixels = parts.pixels
    images = parts.likelihood.mean(decoded.parameters[: count * frames], pixels).float()  # (b n, C, H, W)
    fake = ((images - pixels.mean) * (CONTRAST / pixels.spread)).unflatten(0, (count, frames))  # (b, n, C, H, W)
    real = seen.frames[:count, decoded.times]  # (b, n, C, H, W)
    return Contest(real.float(), fake, inferred.latent[:count, decoded.times].detach().float())


def judge(parts: WorldModelParts, hidden: Tensor, rewards: Tensor | None, continues: Tensor | None) -> Heads:
    """Reward (unit Gaussian) and continue (Bernoulli) heads on h (B, T, Hd), and their losses, means over B and T."""
    predicted = parts.reward_head(hidden).squeeze(-1).float()  # (B, T)
    logits = parts.continue_head(hidden).squeeze(-1).float()  # (B, T)
    return Heads(
        predicted,
        logits,
        None if rewards is None else 0.5 * (predicted - rewards).square().mean(),
        None if continues is None else F.binary_cross_entropy_with_logits(logits, continues.to(logits.dtype)),
    )


def checked_actions(
    parts: WorldModelParts,
    observations: Tensor,
    actions: Tensor | None,
    rewards: Tensor | None,
    continues: Tensor | None,
) -> Tensor:
    """The actions, zeros when absent; ValueError where an input does not fit the frames (B, T, C, H, W)."""
    channels, height, width = parts.config.image_shape
    sizes = expect_shape(observations, "B T C H W", "observations", C=channels, H=height, W=width)
    batch, length = sizes["B"], sizes["T"]
    if actions is None:
        actions = parts.mean_image.new_zeros(batch, length, parts.config.action_size)
    expect_shape(actions, "B T A", "actions", B=batch, T=length, A=parts.config.action_size)
    for name, values in (("rewards", rewards), ("continues", continues)):
        if values is not None:
            expect_shape(values, "B T", name, B=batch, T=length)
    return actions
