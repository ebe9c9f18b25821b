"""How many components of a mixture are in use, and who explains what."""

import math

import torch
from torch import Tensor

from aime.ranks import Ranks


def effective_components(log_pi: Tensor) -> Tensor:
    """exp of the entropy of the weights: K for equal weights, 1 when one takes all. (..., K) -> (...)."""
    return torch.exp(-(torch.exp(log_pi) * log_pi).sum(-1))


def components_in_use(log_pi: Tensor, mass: float = 0.99) -> Tensor:
    """Smallest number of components that together hold more than `mass` of the weight. (..., K) -> (...), int64."""
    ordered = torch.exp(log_pi).sort(-1, descending=True).values.cumsum(-1)
    return 1 + (ordered[..., :-1] <= mass).sum(-1)


def log_responsibilities(z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """log p(k | z) with p(k | z) = pi_k N(z; mean_k, scale_k^2) / sum_j pi_j N(z; mean_j, scale_j^2).

    Args:
        z: (..., D); leading axes of all arguments broadcast.
        log_pi: (..., K) log weights.
        means: (..., K, D).
        log_scales: (..., K, D) logs of standard deviations.

    Returns:
        (..., K), finite; exponentials sum to 1.
    """
    normalised = (z.unsqueeze(-2) - means) * torch.exp(-log_scales)  # (..., K, D)
    return torch.log_softmax(log_pi - (0.5 * normalised.square() + log_scales).sum(-1), -1)


def ambiguity(log_responsibilities: Tensor) -> Tensor:
    """Entropy in nats of p(k | z), (..., K) -> (...): 0 when one component explains z, log 2 when two do so equally.

    -log p(z) + ambiguity is the completed likelihood, a bound from above, that selects clusters rather than as many
    components as fit (Biernacki, Celeux and Govaert 2000). The likelihood alone is blind to copies: two components in
    one place with half the weight each cost nothing.
    """
    return -(torch.exp(log_responsibilities) * log_responsibilities).sum(-1)


def usage_entropy(log_responsibilities: Tensor, ranks: Ranks | None = None) -> Tensor:
    """Entropy in nats of p(k | z) averaged over all leading axes: (..., K) -> ().

    A bonus on it asks that the data set as a whole use its components; unlike the entropy of the weights of one sample
    it does not ask every single sample to be ambiguous. usage_entropy - mean ambiguity is the mutual information of
    component and z. With ``ranks`` the average is over all of them.
    """
    rows = log_responsibilities.flatten(0, -2)
    log_mean = torch.logsumexp(rows, 0) - math.log(len(rows))
    if ranks is not None:
        log_mean = ranks.mean_through(log_mean.exp()).clamp_min(torch.finfo(rows.dtype).tiny).log()
    return ambiguity(log_mean)
