"""The world model: five pillars in one class."""

from aime.world_model.config import PRESETS, WorldModelConfig
from aime.world_model.model import DPGMMVariationalRecurrentAutoencoder
from aime.world_model.noise import SequenceNoise
from aime.world_model.outputs import SequenceOutputs
from aime.world_model.rehearsal import RememberedSequences
from aime.world_model.state import WorldModelState

__all__ = [
    "PRESETS",
    "DPGMMVariationalRecurrentAutoencoder",
    "RememberedSequences",
    "SequenceNoise",
    "SequenceOutputs",
    "WorldModelConfig",
    "WorldModelState",
]
