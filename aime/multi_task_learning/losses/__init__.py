"""The tasks of the world model. Adding one is one class in this folder and one line here."""

from aime.multi_task_learning.losses.task_loss import (
    LOSSES,
    LossWeights,
    TaskLoss,
    TaskLossValue,
    register_loss,
    time_mean,
)

# isort: split
# The order of these imports is the order of the tasks.
# ruff: isort: off
from aime.multi_task_learning.losses.elbo import ELBOLoss
from aime.multi_task_learning.losses.perceiver import PerceiverLoss
from aime.multi_task_learning.losses.predictive import PredictiveLoss
from aime.multi_task_learning.losses.adversarial import AdversarialLoss

__all__ = [
    "LOSSES",
    "AdversarialLoss",
    "ELBOLoss",
    "LossWeights",
    "PerceiverLoss",
    "PredictiveLoss",
    "TaskLoss",
    "TaskLossValue",
    "register_loss",
    "time_mean",
]
