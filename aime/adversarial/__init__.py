"""The second player: critics of images and videos, what they are taught and what they teach."""

from aime.adversarial.critics import Contest, Critics, GeneratorLosses
from aime.adversarial.image_discriminator import ImageDiscriminator
from aime.adversarial.penalty import gradient_penalty
from aime.adversarial.player import CriticPlayer
from aime.adversarial.temporal_discriminator import TemporalDiscriminator, VideoScores

__all__ = [
    "Contest",
    "CriticPlayer",
    "Critics",
    "GeneratorLosses",
    "ImageDiscriminator",
    "TemporalDiscriminator",
    "VideoScores",
    "gradient_penalty",
]
