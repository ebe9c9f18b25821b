"""Learned baselines that an installed ``aime evaluate`` can train and score beside the model."""

from aime.evaluation.baselines.rssm import RSSM, RSSMConfig, RSSMState
from aime.evaluation.baselines.rssm_training import (
    BASELINES,
    RSSMTrainingConfig,
    TrainedRSSM,
    baseline_settings,
    train_rssm,
)

__all__ = [
    "BASELINES",
    "RSSM",
    "RSSMConfig",
    "RSSMState",
    "RSSMTrainingConfig",
    "TrainedRSSM",
    "baseline_settings",
    "train_rssm",
]
