"""One pass of the world model over whole sequences: every stage is one call on B*T items, except two scans over time.

Scan 1 is the recurrent network, scan 2 the ConvGRU of the attention prior. Nothing else looks at one frame at a time.

In imagination the recurrence is fed samples of the prior and predicted contexts, in training samples of the posterior
and contexts that saw the frames. Training on a share of sequences whose later part runs on the model's own predictions
closes that gap. A rollout would be a third loop over time; instead, parallel scheduled sampling (Duckworth et al. 2019)
repeats scan 1 a few times, feeding each pass the predictions of the pass before.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aime.attention_schema import AttentionSchemaOutput, categorical_kl, precision_weights
from aime.encoder_decoder import Posterior
from aime.generative_prior import PriorParameters
from aime.generative_prior.usage import usage_entropy
from aime.nn import expect_shape
from aime.world_model.noise import SequenceNoise

if TYPE_CHECKING:
    from aime.world_model.model import DPGMMVariationalRecurrentAutoencoder


@dataclass(frozen=True)
class Recurrence:
    """Result of scan 1.

    Attributes:
        hidden: (B, T, Hd) h_t.
        previous: (B, T, Hd) h_{t-1}, the learned initial state first.
        previous_latent: (B, T, D) the z_{t-1} that the recurrence was fed, zeros first.
        imagined: (B, T) bool, frames at which the recurrence was fed predictions; None when there are none.
    """

    hidden: Tensor
    previous: Tensor
    previous_latent: Tensor
    imagined: Tensor | None


def scan(model: DPGMMVariationalRecurrentAutoencoder, latent: Tensor, context: Tensor, actions: Tensor) -> Recurrence:
    """Scan 1 on z (B, T, D), c (B, T, Cc), a (B, T, A): one fused call."""
    state = model.dynamics.initial_state(latent.shape[0])
    hidden, _ = model.dynamics(model.recurrent_input(latent, context, actions), state)
    first = model.dynamics.output(state)[:, None]
    return Recurrence(hidden, torch.cat([first, hidden[:, :-1]], 1), F.pad(latent[:, :-1], (0, 0, 1, 0)), None)


def scan_on_predictions(
    model: DPGMMVariationalRecurrentAutoencoder,
    latent: Tensor,
    context: Tensor,
    actions: Tensor,
    generator: torch.Generator | None,
) -> Recurrence:
    """Scan 1 with the later part of a share of the sequences fed by the model's own predictions."""
    batch, frames = latent.shape[:2]
    device = latent.device
    chosen = torch.rand(batch, device=device, generator=generator) < model.config.imagined_share
    start = torch.randint(1, max(frames, 2), (batch,), device=device, generator=generator)
    imagined = chosen[:, None] & (torch.arange(frames, device=device) >= start[:, None])
    fed_latent, fed_context = latent, context
    with torch.no_grad():
        for _ in range(model.config.imagined_passes):
            pass_ = scan(model, fed_latent, fed_context, actions)
            prior, predicted = model.prior_at(pass_.previous, pass_.previous_latent, generator=generator)
            sampled = model.prior.sample(prior, generator=generator)
            fed_latent = torch.where(imagined[..., None], sampled, latent)
            fed_context = torch.where(imagined[..., None], predicted, context)
    # The predictions are inputs here, not a path for gradients; the frames fed by the posterior keep theirs.
    fed_latent = torch.where(imagined[..., None], fed_latent.detach(), latent)
    fed_context = torch.where(imagined[..., None], fed_context.detach(), context)
    return dataclasses.replace(scan(model, fed_latent, fed_context, actions), imagined=imagined)


def latent_kl(
    model: DPGMMVariationalRecurrentAutoencoder,
    posterior: Posterior,
    prior: PriorParameters,
    noise: Tensor,
    imagined: Tensor | None,
) -> Tensor:
    """KL(q || p) (B, T) in nats, its gradient shared between prior and posterior by ``kl_balance``.

    The value is the KL whatever the balance b; the prior receives 2 b of its gradient and the posterior 2 (1 - b), so
    that b = .5 is the plain ELBO. On imagined histories the prior alone is moved: the posterior should not be pulled
    towards what cannot be predicted many frames ahead (Hafner et al. 2019, PlaNet, section 5).
    """
    balance = model.config.kl_balance
    to_prior = model.prior.kl_divergence(posterior.mean.detach(), posterior.log_scale.detach(), prior, noise)
    fixed = PriorParameters(**{name: value.detach() for name, value in vars(prior).items()})
    to_posterior = model.prior.kl_divergence(posterior.mean, posterior.log_scale, fixed, noise)
    if imagined is not None:
        history = F.pad(imagined[:, :-1], (1, 0))
        to_posterior = torch.where(history, to_posterior.detach(), to_posterior)
    weighted = 2.0 * balance * to_prior + 2.0 * (1.0 - balance) * to_posterior
    return weighted - to_prior.detach()


def attend(
    model: DPGMMVariationalRecurrentAutoencoder, frames: Tensor, recurrence: Recurrence, context: Tensor
) -> AttentionSchemaOutput:
    """Posterior maps of all frames in one call, then scan 2 over the maps, states and latents of the frames before."""
    previous, latent = recurrence.previous, recurrence.previous_latent
    if not model.config.predictive_gradient:
        previous, latent, context = previous.detach(), latent.detach(), context.detach()
    attention: AttentionSchemaOutput = model.attention(
        frames,
        previous,
        context,
        latent,
        detach_maps=model.config.attention_kl_balance >= 1.0,
    )
    return attention


def attention_kl(model: DPGMMVariationalRecurrentAutoencoder, maps: Tensor, log_prior: Tensor) -> Tensor:
    """KL(A_t || predicted A_t) (B, T) in nats, its gradient shared by ``attention_kl_balance``.

    Balanced task gradients have equal length, and the predictive task reaches little else than the attention. Were it
    to move the posterior map as well, directly or through the maps the prior starts from, it would outweigh the
    likelihood there and flatten the map: body PSNR of reconstructions after 400 steps of the laptop preset was 13.1 dB
    with it, against 18.7 dB for the plain sum of the losses.
    """
    balance = model.config.attention_kl_balance
    to_prior = categorical_kl(maps.detach(), log_prior)
    if balance >= 1.0:
        return to_prior
    return balance * to_prior + (1.0 - balance) * categorical_kl(maps, log_prior.detach())


def gram_loss(model: DPGMMVariationalRecurrentAutoencoder, frames: Tensor, posterior: Posterior) -> Tensor:
    """Gram loss () between encoder and teacher on a few frames of each sequence, over the two coarsest levels."""
    batch, length = frames.shape[:2]
    count = min(model.config.gram_frames, length)
    if count == 0 or not model.training:
        return frames.new_zeros(())
    times = torch.linspace(0, length - 1, count, device=frames.device).round().long()
    with torch.no_grad():
        taught = model.teacher_encoder.features(frames[:, times].flatten(0, 1))

    def gram(student: Tensor, teacher: Tensor) -> Tensor:
        loss: Tensor = model.gram_loss(student.flatten(2).mT, teacher.flatten(2).mT)
        return loss

    total = frames.new_zeros(())
    for student, teacher in zip(posterior.features[-2:], taught[-2:], strict=True):
        picked = student.unflatten(0, (batch, length))[:, times].flatten(0, 1)
        if picked.shape[-1] > 16:
            total = total + gram(F.avg_pool2d(picked, 2), F.avg_pool2d(teacher, 2))
        else:
            total = total + gram(picked, teacher)
    return total


def head_losses(
    model: DPGMMVariationalRecurrentAutoencoder, hidden: Tensor, rewards: Tensor | None, continues: Tensor | None
) -> dict[str, Tensor]:
    """Reward (unit Gaussian) and continue (Bernoulli) negative log-likelihoods in nats, means over B and T."""
    losses = {"reward_predictions": model.reward_head(hidden).squeeze(-1).float()}
    logits = model.continue_head(hidden).squeeze(-1).float()
    losses["continue_logits"] = logits
    if rewards is not None:
        losses["reward_loss"] = 0.5 * (losses["reward_predictions"] - rewards).square().mean()
    if continues is not None:
        losses["continue_loss"] = F.binary_cross_entropy_with_logits(logits, continues.to(logits.dtype))
    return losses


def checked_actions(
    model: DPGMMVariationalRecurrentAutoencoder,
    frames: Tensor,
    actions: Tensor | None,
    rewards: Tensor | None,
    continues: Tensor | None,
) -> Tensor:
    """The actions, zeros when absent; ValueError where one of the inputs does not fit the frames (B, T, C, H, W)."""
    batch, length = frames.shape[:2]
    if actions is None:
        actions = frames.new_zeros(batch, length, model.config.action_size)
    expect_shape(actions, "B T A", "actions", B=batch, T=length, A=model.config.action_size)
    for name, values in (("rewards", rewards), ("continues", continues)):
        if values is not None:
            expect_shape(values, "B T", name, B=batch, T=length)
    return actions


def forward_sequence(
    model: DPGMMVariationalRecurrentAutoencoder,
    observations: Tensor,
    actions: Tensor | None = None,
    rewards: Tensor | None = None,
    continues: Tensor | None = None,
    *,
    noise: SequenceNoise | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Any]:
    """Run the model over sequences.

    Args:
        model: the world model.
        observations: (B, T, C, H, W) uint8, or float in [-1, 1]; T >= 1.
        actions: (B, T, A), each taken after the frame of its index; zeros when absent.
        rewards: (B, T) of those actions.
        continues: (B, T), 0 where the episode ended.
        noise: all random numbers; drawn from ``generator`` when absent.
        generator: source of randomness.

    Returns:
        a dictionary; (T,) entries are batch means per frame.

        observations (B,T,C,H,W) in [-1,1], reconstructions likewise (in training the frames decoded_times alone),
        latents, z_means, z_log_scales (B,T,D),
        hidden_states, previous_hidden_states (B,T,Hd), context_sequence, predicted_contexts (B,T,Cc),
        attention_maps, prior_attention_maps (B,T,R,R), slot_attention_maps (B,T,S,R,R), slot_centers (B,T,S,2),
        slot_features (B,T,S,d), predicted_movements (B,T,2) in cells, prior_params (leading axes B, T),
        token_ids (B,T,Ht,Wt), reward_predictions, continue_logits (B,T), and the losses that
        :class:`~aime.multi_task_learning.LossAggregator` reads.
    """
    frames = model.centre(observations)
    batch, length = frames.shape[:2]
    actions = checked_actions(model, frames, actions, rewards, continues)
    noise = noise or SequenceNoise.draw(model.config, batch, length, frames.device, generator)

    perceived = model.perceiver(frames, detach_tokens=True)
    perceiver_losses = model.perceiver.compute_loss(perceived, frames, share=model.config.perceiver_share)
    context = perceived.context.float()  # (B, T, Cc)
    stacked, _ = model.stack(frames)
    posterior = model.encoder(stacked.flatten(0, 1), context.flatten(0, 1))
    latent = posterior.rsample(noise.latent.flatten(0, 1)).unflatten(0, (batch, length))  # (B, T, D)
    sequence_posterior = Posterior(
        posterior.mean.unflatten(0, (batch, length)), posterior.log_scale.unflatten(0, (batch, length)), ()
    )

    if model.training and model.config.imagined_share > 0 and length > 1:
        recurrence = scan_on_predictions(model, latent, context, actions, generator)
    else:
        recurrence = scan(model, latent, context, actions)
    prior, predicted = model.prior_at(recurrence.previous, recurrence.previous_latent, noise=noise.sticks)
    kl = latent_kl(model, sequence_posterior, prior, noise.kl, recurrence.imagined)

    attention = attend(model, frames, recurrence, context)
    maps = maps_to_decode_with(model, attention, recurrence, generator)
    images = model.images(frames)
    times = decoded_times(model, length, frames.device, generator)
    nll, reconstructions = decode_and_score(
        model, images[:, times], latent[:, times], recurrence.previous[:, times], maps[:, times]
    )
    outputs: dict[str, Any] = {
        "device": frames.device,
        "observations": images,
        "reconstructions": reconstructions,
        "decoded_times": times,
        "latents": latent,
        "z_means": sequence_posterior.mean,
        "z_log_scales": sequence_posterior.log_scale,
        "hidden_states": recurrence.hidden,
        "previous_hidden_states": recurrence.previous,
        "context_sequence": context,
        "predicted_contexts": predicted,
        "prior_params": prior,
        "reconstruction_losses": nll.mean(0),
        "kl_latents": kl.mean(0),
        "kumaraswamy_kl_losses": model.prior.stick_kl(prior).mean(0),
        "cluster_entropies": usage_entropy(model.prior.log_responsibilities(latent.detach(), prior)),
        "gram_enc": gram_loss(model, stacked, posterior),
        "context_prediction_loss": F.mse_loss(predicted.float(), context.detach()),
        "K_eff": model.prior.effective_components(prior.log_pi).mean(),
        "tokens": perceived.tokens,
        "token_ids": perceived.tokens.ids,
    }
    outputs |= {f"perceiver_{name}": value for name, value in perceiver_losses.items()}
    outputs |= attention_outputs(model, attention, batch, length)
    outputs |= head_losses(model, recurrence.hidden, rewards, continues)
    return outputs


def maps_to_decode_with(
    model: DPGMMVariationalRecurrentAutoencoder,
    attention: AttentionSchemaOutput,
    recurrence: Recurrence,
    generator: torch.Generator | None,
) -> Tensor:
    """Maps (B, T, R, R): the posterior's, the prior's where history is imagined, and in training a share of even ones.

    The map is inferred from the frame and costs the likelihood nothing, so it is the easiest place to keep what is
    seen. Without dropout the laptop model drew the pole of cartpole from its map: sine and cosine of the pole's angle
    could not be read from [h, z] (R^2 .23 and .16). With it, and on episodes that keep the cart in the picture, they
    can (.85 and .70); how much each of the two changes did was not measured apart.
    """
    maps = attention.maps
    if recurrence.imagined is not None:
        maps = torch.where(recurrence.imagined[..., None, None], attention.prior.maps, maps)
    share = model.config.attention_dropout
    if not model.training or share == 0.0:
        return maps
    dropped = torch.rand(maps.shape[:2], device=maps.device, generator=generator) < share
    return torch.where(dropped[..., None, None], torch.full_like(maps, 1.0 / maps.shape[-1] ** 2), maps)


def decoded_times(
    model: DPGMMVariationalRecurrentAutoencoder, length: int, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Frames to decode, in order: all of them, or in training a random share."""
    count = max(round(model.config.decoded_share * length), 1)
    if not model.training or count == length:
        return torch.arange(length, device=device)
    return torch.randperm(length, device=device, generator=generator)[:count].sort().values


def decode_and_score(
    model: DPGMMVariationalRecurrentAutoencoder, images: Tensor, latent: Tensor, previous: Tensor, maps: Tensor
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood (B, T) in nats and expected images (B, T, C, H, W)."""
    batch, length, _, height, width = images.shape
    parameters = model.decode(latent.flatten(0, 1), previous.flatten(0, 1), maps.flatten(0, 1))
    weights = precision_weights(maps.flatten(0, 1), (height, width)) if model.config.precision_weighting else None
    nll, mean = model.likelihood.nll_and_mean(parameters, model.channels_last_mean, images.flatten(0, 1), weights)
    return nll.unflatten(0, (batch, length)), mean.unflatten(0, (batch, length))


def attention_outputs(
    model: DPGMMVariationalRecurrentAutoencoder, attention: AttentionSchemaOutput, batch: int, length: int
) -> dict[str, Tensor]:
    """Maps, slots and attention losses by their names in the outputs."""
    posterior, prior = attention.posterior, attention.prior
    return {
        "attention_maps": attention.maps,
        "prior_attention_maps": prior.maps,
        "predicted_movements": prior.movement,
        "slot_attention_maps": posterior.slot_maps.unflatten(0, (batch, length)),
        "slot_features": posterior.slots.unflatten(0, (batch, length)),
        "slot_centers": posterior.slot_centers.unflatten(0, (batch, length)),
        "slot_fusion_weights": posterior.fusion_weights.unflatten(0, (batch, length)),
        # The first frame has no map before it to be predicted from.
        "attention_losses": attention_kl(model, attention.maps, prior.log_maps)[:, 1:].mean(0),
        "attention_dynamics_loss": attention.dynamics_loss[:, 1:].mean() if length > 1 else attention.kl.new_zeros(()),
        "attention_diversity_losses": posterior.diversity_loss,
    }
