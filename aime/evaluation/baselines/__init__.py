"""Learned baselines that an installed ``aime evaluate`` can train and score beside the model."""

from aime.evaluation.baselines.rssm import RSSM, RSSMConfig, RSSMState
from aime.evaluation.baselines.rssm_training import RSSMTrainingConfig, TrainedRSSM, train_rssm

__all__ = ["RSSM", "RSSMConfig", "RSSMState", "RSSMTrainingConfig", "TrainedRSSM", "train_rssm"]
