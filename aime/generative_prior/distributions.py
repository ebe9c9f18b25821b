"""Kumaraswamy distribution computed in log space: finite where the textbook formulas are not.

Kumaraswamy(a, b) on (0, 1) has P(x <= y) = 1 - (1 - y^a)^b, so it can be sampled by inversion and differentiated
through (Kumaraswamy 1980; Nalisnick and Smyth 2017 for sticks; Wasserman and Mateos 2024 for the log-space form).
"""

import math

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.utils import broadcast_all

Shape = Size | list[int] | tuple[int, ...]
EULER_GAMMA = 0.57721566490153286


def log1mexp(t: Tensor) -> Tensor:
    """log(1 - exp(t)) for t < 0 without cancellation (Maechler 2012); gradient -1 / expm1(-t), without NaN.

    >>> log1mexp(torch.tensor([-1e-6, -50.0]))
    tensor([-1.3816e+01, -1.9287e-22])
    """
    near_zero = t > -math.log(2.0)
    # Each branch sees only arguments it can take: torch.where alone would let 0 * inf = NaN into the gradient.
    split = torch.full_like(t, -math.log(2.0))
    small = torch.log(-torch.expm1(torch.where(near_zero, t, split)))
    large = torch.log1p(-torch.exp(torch.where(near_zero, split, t)))
    return torch.where(near_zero, small, large)


def open_uniform(shape: Shape, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform noise in the open interval (0, 1) with the dtype and device of `like`; never 0, so log is finite."""
    noise = torch.rand(Size(shape), dtype=like.dtype, device=like.device, generator=generator)
    return noise.clamp_min(torch.finfo(like.dtype).eps / 4)


class KumaraswamyStable(Distribution):
    """Kumaraswamy(a, b) given by log a and log b; every method is finite for both in [-5, 5] in float32.

    >>> sticks = KumaraswamyStable(torch.zeros(3), torch.zeros(3))  # a = b = 1 is uniform
    >>> sticks.mean
    tensor([0.5000, 0.5000, 0.5000])

    Args:
        log_a: log of the first shape parameter, any shape.
        log_b: log of the second one, broadcast against `log_a`.
    """

    arg_constraints = {"log_a": constraints.real, "log_b": constraints.real}  # noqa: RUF012 (name fixed by torch)
    has_rsample = True

    def __init__(self, log_a: Tensor, log_b: Tensor, validate_args: bool | None = None) -> None:
        self.log_a, self.log_b = broadcast_all(log_a, log_b)
        super().__init__(self.log_a.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The interval [0, 1]."""
        return constraints.unit_interval

    def expand(self, batch_shape: Shape, _instance: Distribution | None = None) -> "KumaraswamyStable":
        """The same distribution with its parameters broadcast to `batch_shape`."""
        return KumaraswamyStable(self.log_a.expand(Size(batch_shape)), self.log_b.expand(Size(batch_shape)), False)

    def _inside(self, x: Tensor) -> Tensor:
        # The lower bound keeps (a - 1) / x, the derivative of log_prob, finite for a up to e^5.
        info = torch.finfo(x.dtype)
        return x.clamp(info.tiny * 1024, 1 - info.eps / 2)

    def log_icdf_of_survival(self, log_u: Tensor) -> Tensor:
        """log x where P(X > x) = u. Keeps its precision where x itself would round to 0 or to 1."""
        return log1mexp(log_u * torch.exp(-self.log_b)) * torch.exp(-self.log_a)

    def rsample(self, sample_shape: Shape = (), generator: torch.Generator | None = None) -> Tensor:
        """Reparameterised samples (*sample_shape, *batch_shape), kept strictly inside (0, 1)."""
        u = open_uniform(self._extended_shape(Size(sample_shape)), self.log_a, generator)
        return self._inside(torch.exp(self.log_icdf_of_survival(torch.log(u))))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats; `value` in [0, 1], where 0 and 1 are read as the nearest numbers inside."""
        if self._validate_args:
            self._validate_sample(value)
        log_x = torch.log(self._inside(value))
        log_1m_xa = log1mexp(torch.exp(self.log_a) * log_x)  # log(1 - x^a)
        return self.log_a + self.log_b + torch.expm1(self.log_a) * log_x + torch.expm1(self.log_b) * log_1m_xa

    def cdf(self, value: Tensor) -> Tensor:
        """P(X <= value) = 1 - (1 - value^a)^b."""
        log_1m_xa = log1mexp(torch.exp(self.log_a) * torch.log(self._inside(value)))
        return -torch.expm1(torch.exp(self.log_b) * log_1m_xa)

    def icdf(self, value: Tensor) -> Tensor:
        """The x with P(X <= x) = value, for value in (0, 1)."""
        return self._inside(torch.exp(self.log_icdf_of_survival(torch.log1p(-self._inside(value)))))

    def log_moment(self, order: int) -> Tensor:
        """log E[x^order] = log b + log Beta(1 + order / a, b).

        In float64 inside: the log-gammas reach 600, their sum is near 0, which costs float32 four of its seven digits.
        """
        shift = order * torch.exp(-self.log_a.double())
        b = torch.exp(self.log_b.double())
        log_beta = torch.lgamma(1 + shift) + torch.lgamma(b) - torch.lgamma(1 + shift + b)
        return self.log_b + log_beta.to(self.log_b.dtype)

    @property
    def mean(self) -> Tensor:
        """E[x], with the batch shape."""
        return torch.exp(self.log_moment(1))

    @property
    def variance(self) -> Tensor:
        """E[x^2] - E[x]^2, with the batch shape."""
        first, second = torch.exp(self.log_moment(1).double()), torch.exp(self.log_moment(2).double())
        return (second - first.square()).clamp_min(0).to(self.log_a.dtype)

    def entropy(self) -> Tensor:
        """Differential entropy in nats: (1 - 1/b) + (1 - 1/a) H_b - log(a b), H_b the b-th harmonic number."""
        harmonic = torch.digamma(torch.exp(self.log_b) + 1) + EULER_GAMMA
        return -torch.expm1(-self.log_b) - torch.expm1(-self.log_a) * harmonic - self.log_a - self.log_b


def gamma_kl(concentration: Tensor, rate: Tensor, prior_concentration: float, prior_rate: float) -> Tensor:
    """KL(Gamma(concentration, rate) || Gamma(prior_concentration, prior_rate)) in nats, element-wise, closed form."""
    return (
        (concentration - prior_concentration) * torch.digamma(concentration)
        - torch.lgamma(concentration)
        + math.lgamma(prior_concentration)
        + prior_concentration * (torch.log(rate) - math.log(prior_rate))
        + concentration * (prior_rate / rate - 1)
    )
