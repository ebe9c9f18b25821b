"""The slow, obvious twin of forward_sequence: one frame at a time, the context from the whole prefix at each frame.

Same weights, same noise, same outputs. The Gram loss, which is about training and not about the model, is left out:
compare with ``gram_frames=0``, in evaluation mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aime.attention_schema import attention_dynamics_loss, categorical_kl
from aime.perceiver_io.quantizer import codebook_statistics
from aime.temporal_dynamics import LSTMState
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, SequenceNoise


def seen_by_the_trunk(frames: Tensor) -> Tensor:
    """[x_t; x_t - x_{t-1}] of whitened frames (B, T, C, H, W), one frame after the other; x_{-1} = x_0."""
    rows = []
    for t in range(frames.shape[1]):
        rows.append(torch.cat([frames[:, t], frames[:, t] - frames[:, max(t - 1, 0)]], 1))
    return torch.stack(rows, 1)


def perceive_frame(model: DPGMMVariationalRecurrentAutoencoder, prefix: Tensor, actions: Tensor) -> dict[str, Any]:
    """Features, context c_t and the Perceiver's losses of the last frame of a whitened prefix (B, t + 1, C, H, W)."""
    stacked = seen_by_the_trunk(prefix)
    maps = [model.encoder.features(stacked[:, t]) for t in range(prefix.shape[1])]
    features = torch.stack([levels[model.token_level] for levels in maps], 1).detach()  # (B, t + 1, F, Ht, Wt)
    output = model.perceiver(features, detach_tokens=True)
    tokens, frame = output.tokens, prefix[:, -1:]
    decoded = model.perceiver.tokenizer.decode(tokens.quantized[:, -1:], *frame.shape[-2:])
    last = tokens.encodings[:, -1]
    codes = model.perceiver.tokenizer.quantizer.codebook[tokens.ids[:, -1].long()]
    found: dict[str, Any] = {
        "maps": maps[-1],
        "context": output.context[:, -1],
        "reconstruction": F.mse_loss(decoded, frame),
        "commitment": (last - codes).square().mean(),
        "ids": tokens.ids[:, -1],
    }
    if prefix.shape[1] > 1:
        step = prefix.shape[1] - 2  # of the frame before
        now, sees = output.frames[slice(-2, -1)], None
        if model.training and model.config.readout_of_latents:
            sees = torch.tensor([step % 2 == 1])
        logits = model.perceiver.model.predict(now, actions[:, step : step + 1], sees_latents=sees)
        found["cross_entropy"] = F.cross_entropy(logits.flatten(0, 2), tokens.ids[:, -1].flatten().long())
    return found


def forward_per_frame(
    model: DPGMMVariationalRecurrentAutoencoder,
    observations: Tensor,
    actions: Tensor,
    rewards: Tensor,
    continues: Tensor,
    noise: SequenceNoise,
) -> dict[str, Any]:
    """The outputs of forward_sequence, from a Python loop over frames."""
    frames = model.whiten(observations)
    batch, length = frames.shape[:2]
    state = model.initial_state(batch)
    hidden, lstm = state.hidden, LSTMState(state.lstm_hidden, state.lstm_cell)
    latent, attention_map, attention_hidden = state.latent, state.attention_map, state.attention_hidden
    rows: dict[str, list[Tensor]] = {}

    def keep(**values: Tensor) -> None:
        for name, value in values.items():
            rows.setdefault(name, []).append(value)

    for t in range(length):
        seen = perceive_frame(model, frames[:, : t + 1], actions)
        context = seen["context"].detach()
        prior_attention = model.attention.prior_net.step(
            attention_map.detach(), hidden.detach(), latent.detach(), attention_hidden
        )
        attention_hidden = prior_attention.state
        prior, predicted = model.prior_at(hidden, latent, noise=noise.sticks[:, t])
        attended = model.attention.posterior_net(seen["maps"][model.attention_level], hidden[:, :0], context)
        conditions = torch.cat([context, attended.slots.flatten(1), attended.coords], 1)
        posterior = model.encoder.posterior(seen["maps"], conditions)
        latent = posterior.rsample(noise.latent[:, t])
        attention_map = attended.map
        decoded = model.decoder(latent, hidden)
        image = frames[:, t] / 4.0 * model.pixels.spread + model.pixels.mean
        keep(
            kl_latents=model.prior.kl_divergence(posterior.mean, posterior.log_scale, prior, noise.kl[:, :, t]),
            kumaraswamy_kl_losses=model.prior.stick_kl(prior),
            reconstruction_losses=model.likelihood.nll(decoded, model.pixels, image),
            reconstructions=model.likelihood.mean(decoded, model.pixels),
            latents=latent,
            context_sequence=context,
            predicted_contexts=predicted,
            attention_maps=attention_map,
            prior_log_maps=prior_attention.log_maps,
            prior_attention_maps=prior_attention.maps,
            predicted_movements=prior_attention.movement,
            diversity=attended.diversity_loss,
            token_ids=seen["ids"],
            tokenizer_reconstruction=seen["reconstruction"],
            commitment=seen["commitment"],
        )
        if "cross_entropy" in seen:
            keep(cross_entropy=seen["cross_entropy"])
        hidden, lstm = model.dynamics.step(model.recurrent_input(latent, actions[:, t]), lstm)
        keep(hidden_states=hidden)
    return assemble(model, rows, rewards, continues)


def assemble(
    model: DPGMMVariationalRecurrentAutoencoder, rows: dict[str, list[Tensor]], rewards: Tensor, continues: Tensor
) -> dict[str, Any]:
    """Stack the frames and reduce the losses as the aggregator expects them."""
    per_frame = ("kl_latents", "kumaraswamy_kl_losses", "reconstruction_losses")
    scalars = ("diversity", "tokenizer_reconstruction", "commitment", "cross_entropy")
    outputs: dict[str, Any] = {
        name: torch.stack(values, 1) for name, values in rows.items() if name not in (*per_frame, *scalars)
    }
    outputs |= {name: torch.stack(rows[name]).mean(1) for name in per_frame}
    maps = outputs["attention_maps"]
    outputs["attention_losses"] = categorical_kl(maps.detach(), outputs["prior_log_maps"])[:, 1:].mean(0)
    outputs["attention_dynamics_loss"] = attention_dynamics_loss(
        maps[:, :-1], maps[:, 1:], outputs["predicted_movements"][:, 1:]
    ).mean()
    outputs["attention_diversity_losses"] = torch.stack(rows["diversity"]).mean()
    outputs["context_prediction_loss"] = F.mse_loss(outputs["predicted_contexts"], outputs["context_sequence"].detach())
    reconstruction = torch.stack(rows["tokenizer_reconstruction"]).mean()
    commitment = model.perceiver.commitment_weight * torch.stack(rows["commitment"]).mean()
    outputs["perceiver_total_loss"] = torch.stack(rows["cross_entropy"]).mean() + reconstruction + commitment
    hidden = outputs["hidden_states"]
    outputs["reward_loss"] = 0.5 * (model.reward_head(hidden).squeeze(-1) - rewards).square().mean()
    logits = model.continue_head(hidden).squeeze(-1)
    outputs["continue_loss"] = F.binary_cross_entropy_with_logits(logits, continues)
    outputs["perceiver_perplexity"] = codebook_statistics(outputs["token_ids"], model.config.num_codes)[0]
    return outputs
