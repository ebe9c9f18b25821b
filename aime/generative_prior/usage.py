"""How many components of a mixture are in use, and who explains what."""

import torch
from torch import Tensor


def effective_components(log_pi: Tensor) -> Tensor:
    """exp of the entropy of the weights: K for equal weights, 1 when one takes all. (..., K) -> (...)."""
    return torch.exp(-(torch.exp(log_pi) * log_pi).sum(-1))


def components_in_use(log_pi: Tensor, mass: float = 0.99) -> Tensor:
    """Smallest number of components that together hold more than `mass` of the weight. (..., K) -> (...), int64."""
    ordered = torch.exp(log_pi).sort(-1, descending=True).values.cumsum(-1)
    return 1 + (ordered[..., :-1] <= mass).sum(-1)


def responsibilities(z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor) -> Tensor:
    """p(k | z) = pi_k N(z; mean_k, scale_k^2) / sum_j ..., for reports.

    Args:
        z: (..., D); log_pi: (..., K); means, log_scales: (..., K, D); leading axes broadcast.

    Returns:
        (..., K), sums to 1.
    """
    normalised = (z.unsqueeze(-2) - means) * torch.exp(-log_scales)  # (..., K, D)
    return torch.softmax(log_pi - (0.5 * normalised.square() + log_scales).sum(-1), -1)


def usage_entropy(responsibilities: Tensor) -> Tensor:
    """Entropy in nats of the responsibilities averaged over all leading axes: (..., K) -> ().

    A bonus on it asks that the data set as a whole use its components; unlike the entropy of the weights of one sample
    it does not ask every single sample to be ambiguous.
    """
    mean = responsibilities.flatten(0, -2).mean(0)
    entropy: Tensor = torch.special.entr(mean).sum()
    return entropy
