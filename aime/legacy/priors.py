"""Prior and concentration with the calls of the original's documents."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor
from torch.distributions import Gamma, kl_divergence

from aime import generative_prior
from aime.generative_prior import PriorParameters


class DPGMMPrior(generative_prior.DPGMMPrior):
    """`z, pi = prior.sample(batch_size=8, seq_len=16)`: from the priors of standard normal states."""

    def __init__(self, *args: Any, **names: Any) -> None:
        super().__init__(*args, **names)
        self.hidden_dim = int(args[2] if len(args) > 2 else names["hidden_dim"])

    @overload  # type: ignore[override]
    def sample(
        self, params: PriorParameters, temperature: float = ..., generator: torch.Generator | None = ...
    ) -> Tensor: ...

    @overload
    def sample(
        self, *, batch_size: int, seq_len: int = ..., generator: torch.Generator | None = ...
    ) -> tuple[Tensor, Tensor]: ...

    def sample(
        self,
        params: PriorParameters | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        *,
        batch_size: int | None = None,
        seq_len: int = 1,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Samples z (B, T, D) and weights (B, T, K) of B times T states; of given parameters, samples alone."""
        if params is not None:
            return super().sample(params, temperature, generator)
        if batch_size is None:
            raise TypeError("sample: expected prior parameters or batch_size, found neither")
        like = next(self.parameters())
        h = torch.randn(batch_size, seq_len, self.hidden_dim, generator=generator, device=like.device, dtype=like.dtype)
        found: PriorParameters = self(h)
        return super().sample(found, temperature, generator), torch.exp(found.log_pi)


class GammaPosterior(generative_prior.GammaPosterior):
    """`alpha = posterior.sample(h_t, n_samples=10)` and `posterior.kl_divergence(h_t, ...)`."""

    def sample(self, h: Tensor, n_samples: int = 1, generator: torch.Generator | None = None) -> Tensor:  # type: ignore[override]
        """Concentrations (B, n) of states (B, hidden_dim)."""
        return super().sample(h, n_samples, generator)

    def kl_divergence(self, h: Tensor, prior_concentration: float = 1.0, prior_rate: float = 1.0) -> Tensor:
        """() batch mean of KL(q(alpha | h) || Gamma(prior_concentration, prior_rate)) in nats."""
        concentration, rate = self(h)
        prior = Gamma(torch.full_like(rate, prior_concentration), torch.full_like(rate, prior_rate))
        return kl_divergence(Gamma(concentration, rate), prior).mean()
