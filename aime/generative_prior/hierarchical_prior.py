"""Latent groups: the mixture over the coarsest, and Gaussians over the finer ones, top-down (Vahdat and Kautz 2020).

    z = [z_1; ..; z_G]
    p(z_1 | h)          = sum_k pi_k N(mu_k, sigma_k^2)
    p(z_g | z_<g, h)    = N(m_g(z_<g) + d_g(z_<g, h) + offset,  (s_g(z_<g) e_g(z_<g, h))^2)
    q(z_g | z_<g, x)    = N(m_g(z_<g) + D_g(x),  (s_g(z_<g) E_g(x))^2)

The posterior of a finer group is relative to what the coarser ones say of it in the same frame, m and s: it states the
correction D, E alone, and where it has none the KL is that of the prior's own expectation d, e. That part of the prior
which reads h is not in the posterior, as it is in NVAE: h_{t-1} follows from z_{t-1}, so frames could no longer be
inferred all at once; and D and E read the frame alone, so that a posterior can be remembered and drawn from again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aime.generative_prior.dpgmm_prior import DPGMMPrior, PriorParameters, gaussian_kl
from aime.generative_prior.networks import network_with_initial_output, smooth_bound


def group_sizes(latent_dim: int, groups: int) -> tuple[int, ...]:
    """D split into G groups as equal as can be, the coarsest ones larger.

    >>> group_sizes(16, 3)
    (6, 5, 5)
    """
    return tuple(latent_dim // groups + (g < latent_dim % groups) for g in range(groups))


@dataclass(frozen=True)
class HierarchicalPriorParameters(PriorParameters):
    """The mixture over z_1 (means and log scales (..., K, D_1)), and what the finer groups' prior reads.

    Attributes:
        conditions: (..., H) h.
        offset: (..., D - D_1) added to the means of the finer groups.
    """

    conditions: Tensor
    offset: Tensor

    def moved(self, offset: Tensor) -> "HierarchicalPriorParameters":
        """The same prior with its means moved by (..., D)."""
        coarse = self.means.shape[-1]
        values = vars(self) | {
            "means": self.means + offset[..., :coarse].unsqueeze(-2).to(self.means.dtype),
            "offset": self.offset + offset[..., coarse:].to(self.offset.dtype),
        }
        return HierarchicalPriorParameters(**values)


class FinerGroup(nn.Module):
    """p(z_g | z_<g, h) in its two parts, that of the frame and that of the past; both start at N(0, 1).

    Args:
        coarser: size of z_<g.
        hidden_dim: size of h.
        size: of z_g.
        width: hidden units.
    """

    def __init__(self, coarser: int, hidden_dim: int, size: int, width: int) -> None:
        super().__init__()
        self.frame = network_with_initial_output((coarser, width, 2 * size), torch.zeros(2 * size))
        self.past = network_with_initial_output((coarser + hidden_dim, width, 2 * size), torch.zeros(2 * size))

    def base(self, coarser: Tensor) -> tuple[Tensor, Tensor]:
        """m and log s (..., D_g) given z_<g."""
        mean, log_scale = self.frame(coarser).float().chunk(2, -1)
        return mean, smooth_bound(log_scale)

    def expectation(self, coarser: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """d and log e (..., D_g) given z_<g and h."""
        inputs = torch.cat([coarser, conditions.to(coarser.dtype).expand(*coarser.shape[:-1], -1)], -1)
        mean, log_scale = self.past(inputs).float().chunk(2, -1)
        return mean, smooth_bound(log_scale)


class HierarchicalPrior(DPGMMPrior):
    """`DPGMMPrior` over the coarsest of G >= 2 groups, top-down Gaussians over the others; its methods take all of z.

    Args:
        max_components: K of the coarsest group.
        latent_dim: D of all groups together, at least G.
        hidden_dim: size of the conditioning vector.
        prior_alpha, prior_beta: Gamma prior over the concentration.
        groups: G.
        options: of `DPGMMPrior`; ``component_width`` is that of the finer groups' networks, too.

    Raises:
        ValueError: fewer than two groups, or fewer latents than groups.
    """

    def __init__(
        self,
        max_components: int,
        latent_dim: int,
        hidden_dim: int,
        prior_alpha: float = 1.0,
        prior_beta: float = 1.0,
        *,
        groups: int = 2,
        **options: Any,
    ) -> None:
        if groups < 2 or latent_dim < groups:
            raise ValueError(
                f"groups, latent_dim: expected at least 2 groups and as many latents, found {groups}, {latent_dim}"
            )
        sizes = group_sizes(latent_dim, groups)
        super().__init__(max_components, sizes[0], hidden_dim, prior_alpha, prior_beta, **options)
        self.sizes, self.size = sizes, latent_dim
        width = options.get("component_width", 128)
        self.finer = nn.ModuleList(FinerGroup(sum(sizes[:g]), hidden_dim, sizes[g], width) for g in range(1, groups))

    def forward(
        self,
        h: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> HierarchicalPriorParameters:
        """Prior given the state; arguments as in `DPGMMPrior.forward`."""
        coarsest = super().forward(h, noise=noise, generator=generator, deterministic=deterministic)
        offset = h.new_zeros(*h.shape[:-1], self.size - self.sizes[0], dtype=torch.float32)
        return HierarchicalPriorParameters(**vars(coarsest), conditions=h, offset=offset)

    def sample_posterior(self, mean: Tensor, log_scale: Tensor, noise: Tensor) -> Tensor:
        """z (..., D), group by group, each finer one relative to what the coarser ones say of it."""
        drawn = mean + noise * log_scale.exp()  # (..., D): z_1, and the corrections of the finer groups
        found = drawn[..., : self.sizes[0]]
        for group, part in self._finer_groups():
            base, base_scale = group.base(found)
            found = torch.cat([found, base + drawn_relative(mean, log_scale, noise, part, base_scale)], -1)
        return found

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
        """KL of each group in nats (..., G), the finer ones' exact given the coarser, averaged over S draws of those.

        Arguments as in `DPGMMPrior.kl_divergence`, with the posterior's means and log scales (..., D) as corrections
        from the second group on.
        """
        hierarchical = expect_hierarchical(params)
        first = self.sizes[0]
        if eps is None:
            shape = (num_samples, *mean_q.shape)
            eps = torch.randn(shape, device=mean_q.device, dtype=torch.float32, generator=generator)
        rows = [super().kl_divergence(mean_q[..., :first], log_scale_q[..., :first], params, eps[..., :first])]
        mean, log_scale = mean_q.float(), log_scale_q.float()
        coarser = mean[..., :first] + eps[..., :first] * log_scale[..., :first].exp()  # (S, ..., D_1)
        for group, part in self._finer_groups():
            base, base_scale = group.base(coarser)  # (S, ..., D_g) each
            expected, expected_scale = group.expectation(coarser, hierarchical.conditions)
            expected = expected + hierarchical.offset[..., part.start - first : part.stop - first]
            # base is in both means
            kl = gaussian_kl(mean[..., part], base_scale + log_scale[..., part], expected, base_scale + expected_scale)
            rows.append(kl.mean(0))
            drawn = base + drawn_relative(mean, log_scale, eps, part, base_scale)
            coarser = torch.cat([coarser, drawn], -1)
        return torch.stack(rows, -1)

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
        """KL of all groups together in nats (...); see `group_kl`."""
        kl = self.group_kl(mean_q, log_scale_q, params, eps, num_samples=num_samples, generator=generator)
        return kl.sum(-1)

    def log_prob(self, z: Tensor, params: PriorParameters) -> Tensor:
        """Log density in nats of z (S, ..., D) or (..., D): (S, ...) or (...)."""
        first = self.sizes[0]
        total = super().log_prob(z[..., :first], params)
        for group, part in self._finer_groups():
            mean, log_scale = self._moments(group, part, z[..., : part.start], expect_hierarchical(params))
            total = total + torch.distributions.Normal(mean, log_scale.exp()).log_prob(z[..., part]).sum(-1)
        return total

    def sample(
        self, params: PriorParameters, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """(..., D) samples, group by group; temperature as in `DPGMMPrior.sample`."""
        found = super().sample(params, temperature, generator)
        for group, part in self._finer_groups():
            mean, log_scale = self._moments(group, part, found, expect_hierarchical(params))
            normal = torch.randn(mean.shape, device=mean.device, dtype=mean.dtype, generator=generator)
            found = torch.cat([found, mean + temperature * log_scale.exp() * normal], -1)
        return found

    def mean(self, params: PriorParameters) -> Tensor:
        """(..., D): the mean of the mixture, and of each finer group given those before it at theirs."""
        found = super().mean(params)
        for group, part in self._finer_groups():
            found = torch.cat([found, self._moments(group, part, found, expect_hierarchical(params))[0]], -1)
        return found

    def log_responsibilities(self, z: Tensor, params: PriorParameters) -> Tensor:
        """(..., K) log posterior probability of each component given z (..., D), of which it reads z_1."""
        return super().log_responsibilities(z[..., : self.sizes[0]], params)

    def _finer_groups(self) -> Iterator[tuple[FinerGroup, slice]]:
        start = self.sizes[0]
        for group, size in zip(self.finer, self.sizes[1:], strict=True):
            assert isinstance(group, FinerGroup)
            yield group, slice(start, start + size)
            start += size

    def _moments(
        self, group: FinerGroup, part: slice, coarser: Tensor, params: HierarchicalPriorParameters
    ) -> tuple[Tensor, Tensor]:
        """Mean and log scale (..., D_g) of p(z_g | z_<g, h)."""
        base, base_scale = group.base(coarser)
        expected, expected_scale = group.expectation(coarser, params.conditions)
        offset = params.offset[..., part.start - self.sizes[0] : part.stop - self.sizes[0]]
        return base + expected + offset, base_scale + expected_scale


def drawn_relative(mean: Tensor, log_scale: Tensor, noise: Tensor, part: slice, base_scale: Tensor) -> Tensor:
    """D + s E eps (..., D_g): how far a draw of the posterior is from the base."""
    return mean[..., part] + noise[..., part] * (log_scale[..., part] + base_scale).exp()


def expect_hierarchical(params: PriorParameters) -> HierarchicalPriorParameters:
    """The parameters as those of a hierarchical prior; TypeError where they are not."""
    if not isinstance(params, HierarchicalPriorParameters):
        raise TypeError(f"params: expected those of a hierarchical prior, found {type(params).__name__}")
    return params
