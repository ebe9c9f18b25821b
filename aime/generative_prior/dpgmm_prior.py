"""Dirichlet-process Gaussian-mixture prior p(z_t | h_{t-1}, c^_t)."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aime.documented_tables import accepts_documented_names
from aime.generative_prior.documented import DocumentedMixture, DocumentedPrior
from aime.generative_prior.networks import ComponentNetwork
from aime.generative_prior.stick_breaking import AdaptiveStickBreaking, StickBreaking
from aime.generative_prior.usage import effective_components, log_responsibilities
from aime.kernels import mixture_kl, mixture_log_prob


@dataclass(frozen=True)
class PriorParameters(DocumentedMixture, StickBreaking):
    """A mixture for every state; leading axes (...) as in h.

    Attributes:
        means, log_scales: (..., K, D) of the components; the weights are those of `StickBreaking`.
    """

    means: Tensor
    log_scales: Tensor

    def detach(self) -> "PriorParameters":
        """The same values without gradient history."""
        return type(self)(**{name: value.detach() for name, value in vars(self).items()})

    def moved(self, offset: Tensor) -> "PriorParameters":
        """The same mixture with its means moved by (..., D)."""
        return dataclasses.replace(self, means=self.means + offset.to(self.means.dtype).unsqueeze(-2))

    @staticmethod
    def stack(parameters: Sequence["PriorParameters"]) -> "PriorParameters":
        """Mixtures of successive frames, leading axis (B), as those of a sequence, leading axes (B, T)."""
        rows = [vars(item) for item in parameters]
        return type(parameters[0])(**{name: torch.stack([row[name] for row in rows], 1) for name in rows[0]})


def gaussian_kl(mean_q: Tensor, log_scale_q: Tensor, mean_p: Tensor, log_scale_p: Tensor) -> Tensor:
    """KL(N(mean_q, scale_q^2) || N(mean_p, scale_p^2)) in nats of diagonal Gaussians, (..., D) each -> (...)."""
    ratio = log_scale_q - log_scale_p  # (..., D)
    moved = (mean_q - mean_p) * torch.exp(-log_scale_p)
    return 0.5 * (torch.exp(2 * ratio) - 1 - 2 * ratio + moved.square()).sum(-1)


@accepts_documented_names()
class DPGMMPrior(DocumentedPrior, nn.Module):
    """Truncated Dirichlet-process mixture of diagonal Gaussians whose parameters depend on the state.

    Its networks may run under autocast; sticks, samples and densities are float32 always: log densities of narrow
    components lose their meaning in bfloat16.

    >>> prior = DPGMMPrior(max_components=8, latent_dim=16, hidden_dim=256)
    >>> params = prior(torch.zeros(4, 10, 256))
    >>> prior.kl_divergence(torch.zeros(4, 10, 16), torch.zeros(4, 10, 16), params, num_samples=2).shape
    torch.Size([4, 10])

    Args:
        max_components: K; 1 is a single Gaussian, whose KL is exact.
        latent_dim: D.
        hidden_dim: size of the conditioning vector.
        prior_alpha, prior_beta: Gamma prior over the concentration alpha; E[alpha] = prior_alpha / prior_beta.
        initial_concentration: where the sticks start, E[alpha] when None. Start higher to give every component a share.
        spread: standard deviation of the initial component means.
        initial_scale: standard deviation of each component at the start.
        stick_width, component_width: hidden units of the networks.
    """

    def __init__(
        self,
        max_components: int,
        latent_dim: int,
        hidden_dim: int,
        prior_alpha: float = 1.0,
        prior_beta: float = 1.0,
        *,
        initial_concentration: float | None = None,
        spread: float = 1.0,
        initial_scale: float = 1.0,
        stick_width: int = 64,
        component_width: int = 128,
    ) -> None:
        super().__init__()
        self.max_components, self.latent_dim, self.hidden_dim = max_components, latent_dim, hidden_dim
        self.stick_breaking = AdaptiveStickBreaking(
            max_components,
            hidden_dim,
            prior_alpha,
            prior_beta,
            initial_concentration=initial_concentration,
            width=stick_width,
        )
        self.component_net = ComponentNetwork(
            hidden_dim, max_components, latent_dim, spread=spread, initial_scale=initial_scale, width=component_width
        )

    def forward(
        self,
        h: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> PriorParameters:
        """Mixture given the state.

        Args:
            h: (..., hidden_dim), [h_{t-1}; c^_t].
            noise: (..., K - 1) uniform in (0, 1) for the sticks; drawn from `generator` when None.
            generator: source of the noise.
            deterministic: expected weights instead of sampled ones (see `AdaptiveStickBreaking.forward`).

        Raises:
            ValueError: h or noise of another size.
        """
        if h.dim() < 2 or h.shape[-1] != self.hidden_dim:
            raise ValueError(f"h: expected (..., hidden_dim={self.hidden_dim}), found {tuple(h.shape)}")
        sticks = self.stick_breaking(h, noise=noise, generator=generator, deterministic=deterministic)
        means, log_scales = self.component_net(h)
        return PriorParameters(**vars(sticks), means=means.float(), log_scales=log_scales.float())

    def sample_posterior(self, mean: Tensor, log_scale: Tensor, noise: Tensor) -> Tensor:
        """z (..., D) of a posterior with these means and log scales (..., D), from standard normal noise (..., D)."""
        return mean + noise * log_scale.exp()

    def group_kl(
        self,
        mean_q: Tensor,
        log_scale_q: Tensor,
        params: PriorParameters,
        eps: Tensor | None = None,
        *,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """KL(q(z) || mixture) of each latent group in nats (..., 1): here there is one, that of `kl_divergence`."""
        kl = DPGMMPrior.kl_divergence(
            self, mean_q, log_scale_q, params, eps, num_samples=num_samples, generator=generator
        )
        return kl.unsqueeze(-1)

    def kl_divergence(
        self,
        mean_q: Tensor,
        log_scale_q: Tensor,
        params: PriorParameters,
        eps: Tensor | None = None,
        *,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """KL(q(z) || mixture) in nats, summed over D: entropy of q exact, cross entropy by Monte Carlo (K = 1: exact).

        Args:
            mean_q: (..., D) means of the Gaussian posterior.
            log_scale_q: (..., D) logs of its standard deviations.
            params: output of `forward` with the same leading axes.
            eps: (S, ..., D) standard normal noise; `num_samples` draws from `generator` when None.
            num_samples: S when `eps` is None.
            generator: source of `eps`.

        Returns:
            (...).
        """
        leading = params.log_pi.shape[:-1]
        if mean_q.shape != (*leading, self.latent_dim) or log_scale_q.shape != mean_q.shape:
            found = f"{tuple(mean_q.shape)} and {tuple(log_scale_q.shape)}"
            raise ValueError(f"mean_q, log_scale_q: expected (..., D) = {(*leading, self.latent_dim)}, found {found}")
        if eps is None:
            shape = (num_samples, *mean_q.shape)
            eps = torch.randn(shape, device=mean_q.device, dtype=torch.float32, generator=generator)
        elif eps.shape[1:] != mean_q.shape:
            raise ValueError(f"eps: expected (S, ..., D) = (S, {tuple(mean_q.shape)}), found {tuple(eps.shape)}")
        with torch.autocast(mean_q.device.type, enabled=False):
            if self.max_components == 1:  # closed form
                component = params.means.squeeze(-2), params.log_scales.squeeze(-2)  # (..., D) each
                return gaussian_kl(mean_q.float(), log_scale_q.float(), *component)
            kl: Tensor = mixture_kl(
                mean_q.float().flatten(0, -2),
                log_scale_q.float().flatten(0, -2),
                *self._rows(params),
                eps.float().flatten(1, -2),
            )
        return kl.reshape(leading)

    def log_prob(self, z: Tensor, params: PriorParameters) -> Tensor:
        """Log density in nats of z (S, ..., D) or (..., D) under the mixture: (S, ...) or (...)."""
        leading = params.log_pi.shape[:-1]
        samples = z if z.dim() == len(leading) + 2 else z.unsqueeze(0)
        with torch.autocast(z.device.type, enabled=False):
            log_prob: Tensor = mixture_log_prob(samples.float().flatten(1, -2), *self._rows(params))  # (S, N)
        return log_prob.reshape(z.shape[:-1])

    def stick_kl(self, params: PriorParameters, *, quadrature: int | None = None) -> Tensor:
        """(...) divergence of sticks and concentration from their priors, in nats (`AdaptiveStickBreaking.kl`)."""
        with torch.autocast(params.log_pi.device.type, enabled=False):
            return self.stick_breaking.kl(params, quadrature=quadrature)

    def sample(
        self, params: PriorParameters, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """(..., D) samples. Temperature scales the Gumbel noise of the choice and the noise inside the component.

        At 1 this is the mixture; at 0 the mean of the heaviest component. The choice of component is not
        differentiable, the place inside it is.
        """
        log_pi = params.log_pi
        exponential = torch.empty_like(log_pi).exponential_(generator=generator).clamp_min(1e-30)
        component = (log_pi - temperature * torch.log(exponential)).argmax(-1)  # Gumbel-max
        index = component[..., None, None].expand(*component.shape, 1, self.latent_dim)
        mean = params.means.gather(-2, index).squeeze(-2)  # (..., D)
        scale = torch.exp(params.log_scales.gather(-2, index).squeeze(-2))
        normal = torch.randn(mean.shape, device=mean.device, dtype=mean.dtype, generator=generator)
        return mean + temperature * scale * normal

    def mean(self, params: PriorParameters) -> Tensor:
        """(..., D) mean of the mixture."""
        return torch.einsum("...k,...kd->...d", torch.exp(params.log_pi), params.means)

    def log_responsibilities(self, z: Tensor, params: PriorParameters) -> Tensor:
        """(..., K) log posterior probability of each component given z (..., D)."""
        return log_responsibilities(z, params.log_pi, params.means, params.log_scales)

    @staticmethod
    def effective_components(log_pi: Tensor) -> Tensor:
        """(...) exp of the entropy of the weights (..., K)."""
        return effective_components(log_pi)

    @staticmethod
    def _rows(params: PriorParameters) -> tuple[Tensor, Tensor, Tensor]:
        return params.log_pi.flatten(0, -2), params.means.flatten(0, -3), params.log_scales.flatten(0, -3)
