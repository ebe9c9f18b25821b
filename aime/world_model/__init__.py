"""The world model: five pillars in one class."""

from aime.world_model.config import PRESETS, WorldModelConfig
from aime.world_model.model import DPGMMVariationalRecurrentAutoencoder
from aime.world_model.noise import SequenceNoise
from aime.world_model.state import WorldModelState

__all__ = [
    "PRESETS",
    "DPGMMVariationalRecurrentAutoencoder",
    "SequenceNoise",
    "WorldModelConfig",
    "WorldModelState",
]
