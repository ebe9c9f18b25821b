"""Training: the functional core `train`, its configuration, checkpoints, and the trainer and dataset faces."""

from aime.training.checkpoint import Checkpoint, CheckpointDirectory
from aime.training.config import TrainConfig
from aime.training.dataset import DMCVBDataset
from aime.training.gradient_monitor import GradientMonitor
from aime.training.guard import NonFiniteError
from aime.training.loop import train
from aime.training.outcome import TrainResult
from aime.training.protocol import SequenceModel, parameter_count
from aime.training.trainer import DMCVBTrainer

__all__ = [
    "Checkpoint",
    "CheckpointDirectory",
    "DMCVBDataset",
    "DMCVBTrainer",
    "GradientMonitor",
    "NonFiniteError",
    "SequenceModel",
    "TrainConfig",
    "TrainResult",
    "parameter_count",
    "train",
]
