"""What the original AIME's documents read of a prior: its parameters by key, frame or pair, and its methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributions import MixtureSameFamily

ENTRIES: dict[str, Callable[[Any], Tensor]] = {
    "pi": lambda params: torch.exp(params.log_pi),  # (..., K)
    "means": lambda params: params.means,  # (..., K, D)
    "log_vars": lambda params: 2 * params.log_scales,  # (..., K, D)
    "variances": lambda params: torch.exp(2 * params.log_scales),  # (..., K, D)
    "kumar_a": lambda params: torch.exp(params.log_a),  # (..., K - 1)
    "kumar_b": lambda params: torch.exp(params.log_b),  # (..., K - 1)
    "v": lambda params: torch.exp(params.log_v),  # (..., K - 1)
    "alpha": lambda params: params.alpha,  # (...) posterior mean of the concentration
    "active_components": lambda params: components_above(torch.exp(params.log_pi)),  # (...)
}
"""The documents' keys, computed from the log-space fields. `perm` is gone: sticks keep their order."""
_OF_COMPONENTS = ("means", "log_vars", "variances")


def components_above(pi: Tensor, threshold: float = 1e-3) -> Tensor:
    """(...) how many of the heaviest weights (..., K) it takes to reach 1 - threshold."""
    below: Tensor = (pi.sort(-1, descending=True).values.cumsum(-1) < 1 - threshold).sum(-1)
    return (below + 1).clamp_max(pi.shape[-1])


class DocumentedSticks:
    """`weights, info = stick_breaking(h)` and `info["active_components"]`."""

    log_pi: Tensor

    def __getitem__(self, key: str | int) -> Any:
        """A documented quantity by its key, or the parameters of one frame of a sequence (B, T, ...) by its number.

        Raises:
            KeyError: no such key; those there are get listed.
        """
        if isinstance(key, int):
            if not -len(self) <= key < len(self):
                raise IndexError(f"frame: expected one of {len(self)}, found {key}")
            return type(self)(**{name: value[:, key] for name, value in vars(self).items()})
        own = {name: read for name, read in ENTRIES.items() if name not in _OF_COMPONENTS or hasattr(self, "means")}
        if key not in own:
            gone = ": sticks keep their order" if key == "perm" else ""
            raise KeyError(f"prior parameters: expected one of {', '.join(own)}, found {key!r}{gone}")
        return own[key](self)

    def __len__(self) -> int:
        """T, for the parameters of a sequence (B, T, ...)."""
        if self.log_pi.dim() != 3:
            raise TypeError(
                f"expected the parameters of a sequence, log_pi (B, T, K), found {tuple(self.log_pi.shape)}"
            )
        return int(self.log_pi.shape[1])

    def __bool__(self) -> bool:
        """Parameters are something, of however many frames."""
        return True

    def __iter__(self) -> Iterator[Any]:
        """The frames of a sequence; of single states the documented pair, the distribution and its parameters."""
        if self.log_pi.dim() == 3:
            return iter([self[frame] for frame in range(len(self))])
        return iter((self._distribution(), self))

    def _distribution(self) -> Any:
        return self["pi"]


class DocumentedMixture(DocumentedSticks):
    """`distribution, params = prior(h)`, `params["pi"]`, and `outputs["prior_params"][t]["means"]`."""

    means: Tensor
    log_scales: Tensor

    def _distribution(self) -> MixtureSameFamily:
        from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

        components = Independent(Normal(self.means, self.log_scales.exp()), 1)
        return MixtureSameFamily(Categorical(logits=self.log_pi), components)


class DocumentedPrior:
    """Methods of the prior that the documents call."""

    kl_divergence: Callable[..., Tensor]
    stick_kl: Callable[..., Tensor]

    def compute_kl_divergence_mc(
        self, mu_q: Tensor, logvar_q: Tensor, params: Any, n_samples: int = 10, generator: torch.Generator | None = None
    ) -> Tensor:
        """() batch mean of `kl_divergence`, from the posterior's log variance (..., D)."""
        kl = self.kl_divergence(mu_q, 0.5 * logvar_q, params, num_samples=n_samples, generator=generator)
        return kl.mean()

    def compute_kl_loss(self, params: Any, alpha: Tensor | None = None, h: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """() batch mean of `stick_kl`. Concentration and its posterior are in the parameters: no `alpha`, no `h`."""
        return self.stick_kl(params).mean()

    @staticmethod
    def get_effective_components(pi: Tensor, threshold: float = 1e-3) -> Tensor:
        """(...) how many of the heaviest weights (..., K) it takes to reach 1 - threshold."""
        return components_above(pi, threshold)
