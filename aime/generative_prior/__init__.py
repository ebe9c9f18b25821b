"""Representation, the prior: a Dirichlet-process Gaussian mixture whose weights and components follow the state."""

from aime.generative_prior.distributions import KumaraswamyStable
from aime.generative_prior.dpgmm_prior import DPGMMPrior, PriorParameters
from aime.generative_prior.hierarchical_prior import HierarchicalPrior, HierarchicalPriorParameters, group_sizes
from aime.generative_prior.networks import GammaPosterior, KumaraswamyNetwork
from aime.generative_prior.stick_breaking import AdaptiveStickBreaking, StickBreaking
from aime.generative_prior.usage import (
    ambiguity,
    components_in_use,
    effective_components,
    log_responsibilities,
    usage_entropy,
)

__all__ = [
    "AdaptiveStickBreaking",
    "DPGMMPrior",
    "GammaPosterior",
    "HierarchicalPrior",
    "HierarchicalPriorParameters",
    "KumaraswamyNetwork",
    "KumaraswamyStable",
    "PriorParameters",
    "StickBreaking",
    "ambiguity",
    "components_in_use",
    "effective_components",
    "group_sizes",
    "log_responsibilities",
    "usage_entropy",
]
