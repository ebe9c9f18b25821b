"""Attention: a map of what matters in a frame, and a prediction of where it goes."""

from aime.attention_schema.maps import (
    attention_dynamics_loss,
    categorical_kl,
    center_of_mass,
    precision_weights,
    slot_diversity_loss,
)
from aime.attention_schema.posterior import AttentionPosterior, AttentionPosteriorOutput
from aime.attention_schema.prior import AttentionPrior, AttentionPriorOutput, ConvGRUCell
from aime.attention_schema.schema import AttentionForecast, AttentionSchema, AttentionSchemaOutput
from aime.attention_schema.slot_attention import SlotAttention

__all__ = [
    "AttentionForecast",
    "AttentionPosterior",
    "AttentionPosteriorOutput",
    "AttentionPrior",
    "AttentionPriorOutput",
    "AttentionSchema",
    "AttentionSchemaOutput",
    "ConvGRUCell",
    "SlotAttention",
    "attention_dynamics_loss",
    "categorical_kl",
    "center_of_mass",
    "precision_weights",
    "slot_diversity_loss",
]
