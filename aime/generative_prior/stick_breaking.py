"""Stick-breaking weights with Kumaraswamy sticks and a Gamma posterior over their concentration."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from aime.documented_tables import accepts_documented_names
from aime.generative_prior.distributions import KumaraswamyStable, gamma_kl, log1mexp, open_uniform
from aime.generative_prior.documented import DocumentedSticks
from aime.generative_prior.networks import GammaPosterior, KumaraswamyNetwork
from aime.kernels import stick_log_weights


@dataclass(frozen=True)
class StickBreaking(DocumentedSticks):
    """Weights and everything their divergence from the prior needs; leading axes as in h.

    Attributes:
        log_pi: (..., K) log weights; their exponentials sum to 1.
        log_a, log_b: (..., K - 1) logs of the Kumaraswamy parameters.
        log_v: (..., K - 1) logs of the stick proportions that made `log_pi`.
        log_q_v: (..., K - 1) log density of these proportions.
        concentration, rate: (...) Gamma posterior over alpha.
    """

    log_pi: Tensor
    log_a: Tensor
    log_b: Tensor
    log_v: Tensor
    log_q_v: Tensor
    concentration: Tensor
    rate: Tensor

    @property
    def alpha(self) -> Tensor:
        """(...) posterior mean of the concentration."""
        return self.concentration / self.rate


@lru_cache(maxsize=8)
def unit_interval_quadrature(nodes: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes u and weights on (0, 1) for integrands with log singularities at both ends.

    Gauss-Legendre in t after u = t^3 (10 - 15 t + 6 t^2), whose derivative 30 t^2 (1 - t)^2 flattens log u and
    log(1 - u).
    """
    import numpy as np

    t, weights = np.polynomial.legendre.leggauss(nodes)
    t, weights = (t + 1) / 2, weights / 2
    u = t**3 * (10 - 15 * t + 6 * t**2)
    return tuple(u.tolist()), tuple((weights * 30 * t**2 * (1 - t) ** 2).tolist())


@accepts_documented_names()
class AdaptiveStickBreaking(nn.Module):
    """pi_k = v_k prod_{j<k} (1 - v_j) with q(v_k | h) Kumaraswamy, p(v_k | alpha) = Beta(1, alpha), alpha ~ Gamma.

    With K = 1 there is no stick: the one weight is 1, alpha keeps its prior, nothing is learned and the KL is 0.

    Args:
        max_components: K, the truncation.
        hidden_dim: size of h.
        prior_alpha, prior_beta: concentration and rate of the Gamma prior over alpha; E[alpha] is their ratio.
        initial_concentration: the sticks start at Beta(1, this), E[alpha] when None.
        width: hidden units of the stick network.

    Raises:
        ValueError: no component, or a prior parameter that is not positive.
    """

    def __init__(
        self,
        max_components: int,
        hidden_dim: int,
        prior_alpha: float = 1.0,
        prior_beta: float = 1.0,
        *,
        initial_concentration: float | None = None,
        width: int = 64,
    ) -> None:
        super().__init__()
        if max_components < 1:
            raise ValueError(f"max_components: expected at least 1, found {max_components}")
        if prior_alpha <= 0 or prior_beta <= 0:
            raise ValueError(f"prior_alpha, prior_beta: expected positive, found {prior_alpha}, {prior_beta}")
        self.max_components, self.hidden_dim = max_components, hidden_dim
        self.prior_alpha, self.prior_beta = float(prior_alpha), float(prior_beta)
        if max_components == 1:
            return
        start = prior_alpha / prior_beta if initial_concentration is None else initial_concentration
        self.kumar_net = KumaraswamyNetwork(hidden_dim, max_components, initial_concentration=start, width=width)
        self.alpha_posterior = GammaPosterior(hidden_dim, prior_alpha, prior_beta, width=max(width // 2, 8))

    def forward(
        self,
        h: Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> StickBreaking:
        """Weights given the state.

        Args:
            h: (..., hidden_dim).
            noise: (..., K - 1) uniform in (0, 1), one number a stick; drawn from `generator` when None.
            generator: source of the noise.
            deterministic: use E[pi] instead of a sample. `log_v` is then log E[v] and `log_q_v` the density there,
                which is no sample: take `kl(sticks, quadrature=32)`.
        """
        if self.max_components == 1:
            return self._one_component(h, noise)
        log_a, log_b = (x.float() for x in self.kumar_net(h))
        concentration, rate = (x.float() for x in self.alpha_posterior(h))
        if deterministic:
            log_pi, log_v, log_q_v = expected_log_weights(log_a, log_b)
        else:
            u = open_uniform(log_a.shape, log_a, generator) if noise is None else noise
            if u.shape != log_a.shape:
                raise ValueError(f"noise: expected (..., K - 1) = {tuple(log_a.shape)}, found {tuple(u.shape)}")
            log_pi, log_v, log_q_v = break_sticks(log_a, log_b, u)
        return StickBreaking(log_pi, log_a, log_b, log_v, log_q_v, concentration, rate)

    def log_weights(self, h: Tensor, noise: Tensor) -> Tensor:
        """log pi (..., K) alone, of h (..., hidden_dim) and noise (..., K - 1) as in `forward`."""
        if self.max_components == 1:
            return self._one_component(h, noise).log_pi
        log_a, log_b = (x.float() for x in self.kumar_net(h))
        return break_sticks(log_a, log_b, noise)[0]

    def _one_component(self, h: Tensor, noise: Tensor | None) -> StickBreaking:
        leading = h.shape[:-1]
        if noise is not None and noise.shape != (*leading, 0):
            raise ValueError(f"noise: expected (..., K - 1) = {(*leading, 0)}, found {tuple(noise.shape)}")
        weight = h.new_zeros(*leading, 1, dtype=torch.float32)
        none = h.new_zeros(*leading, 0, dtype=torch.float32)
        alpha = h.new_full(leading, self.prior_alpha, dtype=torch.float32)
        return StickBreaking(weight, none, none, none, none, alpha, torch.full_like(alpha, self.prior_beta))

    def kl(self, sticks: StickBreaking, *, quadrature: int | None = None) -> Tensor:
        """(...) divergence of the sticks from Beta(1, alpha), averaged over q(alpha), plus that of alpha, in nats.

        log p(v | alpha) = log alpha + (alpha - 1) log(1 - v) is linear in alpha and log alpha, so alpha is integrated
        out exactly, and sum_k log(1 - v_k) is the log weight of the last component. What is left is an estimate from
        the very v that made the weights: unbiased, and correlated with the likelihood it is traded against. (The usual
        ten-term series gives 6.23 for Kumaraswamy(5, .3) against Beta(1, 3), where the truth is 10.92.)

        Args:
            sticks: output of `forward`.
            quadrature: number of nodes to integrate over v instead, for evaluation.
        """
        if self.max_components == 1:
            return torch.zeros_like(sticks.concentration)
        if quadrature is None:
            log_q, log_rest = sticks.log_q_v.sum(-1), sticks.log_pi[..., -1]
        else:
            log_q, log_rest = integrate_sticks(sticks.log_a, sticks.log_b, quadrature)
        mean_log_alpha = torch.digamma(sticks.concentration) - torch.log(sticks.rate)
        stick_kl = log_q - (self.max_components - 1) * mean_log_alpha - (sticks.alpha - 1) * log_rest
        return stick_kl + gamma_kl(sticks.concentration, sticks.rate, self.prior_alpha, self.prior_beta)


def break_sticks(log_a: Tensor, log_b: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`aime.kernels.stick_log_weights` for any leading axes: (..., K - 1) -> (..., K), (..., K - 1), (..., K - 1)."""
    log_pi, log_v, log_q_v = stick_log_weights(log_a.flatten(0, -2), log_b.flatten(0, -2), u.flatten(0, -2))
    return log_pi.reshape(*log_a.shape[:-1], -1), log_v.reshape(log_a.shape), log_q_v.reshape(log_a.shape)


def expected_log_weights(log_a: Tensor, log_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log E[pi] (..., K); the sticks are independent, so E[pi_k] = E[v_k] prod_{j<k} (1 - E[v_j])."""
    # In float64: 1 - E[v] is far below float32 rounding of E[v] for sticks that take almost everything.
    distribution = KumaraswamyStable(log_a.double(), log_b.double(), validate_args=False)
    log_v = distribution.log_moment(1)
    log_rest = log1mexp(log_v.clamp_max(-torch.finfo(torch.float64).eps)).cumsum(-1)  # (..., K - 1)
    first = torch.zeros_like(log_rest[..., :1])
    log_pi = torch.cat((log_v, first), -1) + torch.cat((first, log_rest), -1)
    log_q_v = distribution.log_prob(torch.exp(log_v))
    return log_pi.to(log_a.dtype), log_v.to(log_a.dtype), log_q_v.to(log_a.dtype)


def integrate_sticks(log_a: Tensor, log_b: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """E[log q(v)] and E[log(1 - v)], each summed over sticks, by quadrature over u: (..., K - 1) -> (...), (...)."""
    points, weights = (log_a.new_tensor(values) for values in unit_interval_quadrature(nodes))
    shape = (*log_a.shape, nodes)
    u = points.clamp_max(1 - math.ldexp(1.0, -24)).expand(shape)
    one_stick = [x.reshape(-1, 1) for x in (log_a.unsqueeze(-1).expand(shape), log_b.unsqueeze(-1).expand(shape), u)]
    log_pi, _, log_q_v = stick_log_weights(*one_stick)  # a stick alone: log_pi[:, 1] = log(1 - v)
    log_q = (log_q_v.reshape(shape) * weights).sum((-1, -2))
    log_rest = (log_pi[:, 1].reshape(shape) * weights).sum((-1, -2))
    return log_q, log_rest
