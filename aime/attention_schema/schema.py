"""The attention schema: an attention map, and a model of how it moves."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aime.attention_schema.maps import attention_dynamics_loss, categorical_kl
from aime.attention_schema.posterior import AttentionPosterior, AttentionPosteriorOutput
from aime.attention_schema.prior import AttentionPrior, AttentionPriorOutput
from aime.documented_tables import accepts_documented_names
from aime.nn import expect_shape


@dataclass(frozen=True)
class AttentionForecast:
    """How well a sequence of maps was foreseen.

    Attributes:
        prior: predictions (B, T, ...), entry t made before frame t.
        kl: (B, T) nats, KL(A_t || predicted A_t).
        dynamics_loss: (B, T) smooth-L1 error in cells of the predicted motion of the centre.
    """

    prior: AttentionPriorOutput
    kl: Tensor
    dynamics_loss: Tensor


@dataclass(frozen=True)
class AttentionSchemaOutput:
    """Attention over a sequence.

    Attributes:
        posterior: of all frames, N = B * T in its first axis, frames of one sequence adjacent.
        prior: predictions (B, T, ...), entry t made before frame t.
        maps: (B, T, R, R) of the posterior.
        kl: (B, T) nats, KL(A_t || predicted A_t).
        dynamics_loss: (B, T) smooth-L1 error in cells of the predicted motion of the centre.
    """

    posterior: AttentionPosteriorOutput
    prior: AttentionPriorOutput
    maps: Tensor
    kl: Tensor
    dynamics_loss: Tensor


@accepts_documented_names()
class AttentionSchema(nn.Module):
    """Posterior and prior of the attention map.

    Args:
        image_size: side of the images.
        attention_resolution: R.
        hidden_dim: Hd.
        latent_dim: D.
        context_dim: Cc.
        input_channels: C.
        feature_channels: channels of features and slots of the posterior.
        num_semantic_slots: S.
        pyramid_channels: channels of each level of the posterior's pyramid.
        iters: rounds of slot attention.
        state_channels, kernel_size, motion_radius, condition_width: see `AttentionPrior`.
        trunk_channels: see `AttentionPosterior`.
        posterior_hidden_dim: size of the state that the posterior sees, Hd when None; 0 lets it run before the state is
            known.
    """

    def __init__(
        self,
        image_size: int = 84,
        attention_resolution: int = 21,
        hidden_dim: int = 256,
        latent_dim: int = 32,
        context_dim: int = 128,
        input_channels: int = 3,
        *,
        feature_channels: int = 64,
        num_semantic_slots: int = 4,
        pyramid_channels: Sequence[int] = (32, 48, 64),
        iters: int = 3,
        state_channels: int = 32,
        kernel_size: int = 3,
        motion_radius: int = 2,
        condition_width: int = 64,
        trunk_channels: int | None = None,
        posterior_hidden_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.posterior_net = AttentionPosterior(
            image_size,
            attention_resolution,
            hidden_dim if posterior_hidden_dim is None else posterior_hidden_dim,
            context_dim,
            input_channels,
            feature_channels,
            num_semantic_slots,
            pyramid_channels=pyramid_channels,
            iters=iters,
            trunk_channels=trunk_channels,
        )
        self.prior_net = AttentionPrior(
            attention_resolution,
            hidden_dim,
            latent_dim,
            state_channels=state_channels,
            kernel_size=kernel_size,
            motion_radius=motion_radius,
            condition_width=condition_width,
        )

    def forward(
        self,
        observations: Tensor,
        hidden: Tensor,
        context: Tensor,
        previous_latents: Tensor,
        previous_map: Tensor | None = None,
        state: Tensor | None = None,
        *,
        detach_maps: bool = False,
        balance: float = 0.0,
    ) -> AttentionSchemaOutput:
        """Attend to a sequence and predict it.

        Args:
            observations: (B, T, C, H, W).
            hidden: (B, T, Hd), entry t is h_{t-1}.
            context: (B, T, Cc), entry t is c_t.
            previous_latents: (B, T, D), entry t is z_{t-1}.
            previous_map: (B, R, R), the map before the first frame, even when None.
            state: (B, G, R, R), recurrent state of the prior before the first frame, zeros when None.
            detach_maps: let no gradient of the forecast reach the posterior's maps,
            balance: but for this share of that of the KL, which draws each map towards its prediction; the rest draws
                the prediction towards the map (KL balancing, Hafner et al. 2021, arXiv:2010.02193). In [0, 1].
        """
        sizes = expect_shape(observations, "B T C H W", "observations")
        batch, steps = sizes["B"], sizes["T"]
        posterior = self.posterior_net(observations.flatten(0, 1), hidden.flatten(0, 1), context.flatten(0, 1))
        maps = posterior.map.reshape(batch, steps, *posterior.map.shape[1:])  # (B, T, R, R)
        found = self.forecast(
            maps, hidden, previous_latents, previous_map, state, detach_maps=detach_maps, balance=balance
        )
        return AttentionSchemaOutput(
            posterior=posterior, prior=found.prior, maps=maps, kl=found.kl, dynamics_loss=found.dynamics_loss
        )

    def forecast(
        self,
        maps: Tensor,
        hidden: Tensor,
        previous_latents: Tensor,
        previous_map: Tensor | None = None,
        state: Tensor | None = None,
        *,
        detach_maps: bool = False,
        balance: float = 0.0,
    ) -> AttentionForecast:
        """Predict each map (B, T, R, R) of a sequence from those before it; arguments as in :meth:`forward`."""
        first = self.uniform_map(maps.shape[0]) if previous_map is None else previous_map
        previous_maps = torch.cat((first.unsqueeze(1), maps[:, :-1]), 1)  # (B, T, R, R)
        moving = maps
        if detach_maps:
            previous_maps, maps = previous_maps.detach(), maps.detach()
        prior = self.prior_net(previous_maps, hidden, previous_latents, state)
        kl = categorical_kl(maps, prior.log_maps)  # (B, T)
        if detach_maps and balance:
            kl = torch.lerp(kl, categorical_kl(moving, prior.log_maps.detach()), balance)
        return AttentionForecast(prior, kl, attention_dynamics_loss(previous_maps, maps, prior.movement))

    def uniform_map(self, batch_size: int) -> Tensor:
        """(B, R, R): the map before anything was seen."""
        return self.prior_net.uniform_map(batch_size)
