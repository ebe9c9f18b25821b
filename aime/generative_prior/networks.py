"""Networks from the recurrent state to the parameters of the prior.

Outputs are bounded by a scaled tanh instead of a clamp (a clamp has no gradient outside) and never normalised by
LayerNorm (it would tie the outputs of one sample to each other: with two outputs only their order would be left).
"""

import math

import torch
from torch import Tensor, nn

from aime.documented_tables import accepts_documented_names
from aime.nn import mlp

LOG_LIMIT = 5.0
INITIAL_WEIGHT_STD = 0.01  # small: at the start the outputs are the biases, that is the intended initial distribution
SMALLEST_GAMMA_PARAMETER = 1e-3  # keeps digamma and 1 / rate bounded


def smooth_bound(x: Tensor, limit: float = LOG_LIMIT) -> Tensor:
    """limit * tanh(x / limit): the identity near 0, inside (-limit, limit) everywhere."""
    return limit * torch.tanh(x / limit)


def inverse_smooth_bound(y: float, limit: float = LOG_LIMIT) -> float:
    """The x with smooth_bound(x) = y.

    Raises:
        ValueError: y is not inside (-limit, limit).
    """
    if not abs(y) < limit:
        raise ValueError(f"initial log value: expected inside (-{limit}, {limit}), found {y:.4g}")
    return limit * math.atanh(y / limit)


def inverse_softplus(y: float) -> float:
    """The x with log(1 + e^x) = y > 0."""
    return y + math.log(-math.expm1(-y))


def network_with_initial_output(sizes: tuple[int, ...], initial: Tensor) -> nn.Sequential:
    """A perceptron that starts with output close to `initial` for any input. sizes[-1] = len(initial)."""
    network = mlp(sizes)
    last = network[-1]
    assert isinstance(last, nn.Linear)
    nn.init.normal_(last.weight, std=INITIAL_WEIGHT_STD)
    with torch.no_grad():
        last.bias.copy_(initial)
    return network


@accepts_documented_names()
class KumaraswamyNetwork(nn.Module):
    """h (..., hidden_dim) -> log a, log b, each (..., K - 1), inside (-5, 5).

    Args:
        hidden_dim: size of h.
        max_components: K.
        initial_concentration: the sticks start at Kumaraswamy(1, c), which is exactly Beta(1, c).
        width: hidden units.
    """

    def __init__(
        self, hidden_dim: int, max_components: int, *, initial_concentration: float = 1.0, width: int = 64
    ) -> None:
        super().__init__()
        sticks = max_components - 1
        log_b = inverse_smooth_bound(math.log(initial_concentration))
        initial = torch.cat((torch.zeros(sticks), torch.full((sticks,), log_b)))
        self.network = network_with_initial_output((hidden_dim, width, 2 * sticks), initial)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Log a and log b, each (..., K - 1)."""
        log_a, log_b = smooth_bound(self.network(h)).chunk(2, dim=-1)
        return log_a, log_b


@accepts_documented_names()
class GammaPosterior(nn.Module):
    """h (..., hidden_dim) -> q(alpha | h) = Gamma(concentration, rate), each (...). Starts at the prior.

    Args:
        hidden_dim: size of h.
        prior_concentration: first parameter of the Gamma prior over alpha.
        prior_rate: second one; the prior mean is prior_concentration / prior_rate.
        width: hidden units.
    """

    def __init__(
        self, hidden_dim: int, prior_concentration: float = 1.0, prior_rate: float = 1.0, *, width: int = 32
    ) -> None:
        super().__init__()
        initial = torch.tensor([inverse_softplus(prior_concentration), inverse_softplus(prior_rate)])
        self.network = network_with_initial_output((hidden_dim, width, 2), initial)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Concentration and rate, each (...)."""
        outputs = nn.functional.softplus(self.network(h)) + SMALLEST_GAMMA_PARAMETER
        concentration, rate = outputs.unbind(-1)
        return concentration, rate

    def sample(self, h: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n reparameterised samples of alpha: (..., n)."""
        concentration, rate = self.forward(h)
        expanded = concentration.unsqueeze(-1).expand(*concentration.shape, n)
        unscaled: Tensor = torch._standard_gamma(expanded, generator=generator)
        return unscaled / rate.unsqueeze(-1)


def spread_normal(count: int, dim: int) -> Tensor:
    """(count, dim) points that are spread like a standard normal but never fall together.

    A scrambled Sobol sequence through the normal quantile function: in few dimensions independent draws leave some
    components on top of each other, which gradient descent then moves as one.
    """
    seed = int(torch.randint(2**31, ()))
    engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed)
    half_cell = 0.5 / count
    points: Tensor = torch.special.ndtri(engine.draw(count).clamp(half_cell, 1 - half_cell))
    return points


class ComponentNetwork(nn.Module):
    """h (..., hidden_dim) -> means and log scales of the components, each (..., K, D).

    Args:
        hidden_dim: size of h.
        max_components: K.
        latent_dim: D.
        spread: standard deviation of the initial component means around 0.
        initial_scale: standard deviation of each component at the start.
        width: hidden units.
    """

    def __init__(
        self,
        hidden_dim: int,
        max_components: int,
        latent_dim: int,
        *,
        spread: float = 1.0,
        initial_scale: float = 1.0,
        width: int = 128,
    ) -> None:
        super().__init__()
        self.components, self.latent_dim = max_components, latent_dim
        log_scale = inverse_smooth_bound(math.log(initial_scale))
        means = spread * spread_normal(max_components, latent_dim)
        initial = torch.cat((means.flatten(), torch.full((max_components * latent_dim,), log_scale)))
        self.network = network_with_initial_output((hidden_dim, width, len(initial)), initial)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log scales, each (..., K, D)."""
        outputs = self.network(h).reshape(*h.shape[:-1], 2, self.components, self.latent_dim)
        means, log_scales = outputs.unbind(-3)
        return means, smooth_bound(log_scales)  # (..., K, D) each
