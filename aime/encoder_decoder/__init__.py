"""Pillar 2, representation: image encoder, decoder, likelihoods and the Gram loss."""

from aime.encoder_decoder.decoder import VAEDecoder
from aime.encoder_decoder.encoder import Posterior, VAEEncoder
from aime.encoder_decoder.gram import GramLoss
from aime.encoder_decoder.likelihood import GaussianLikelihood, MixtureOfLogistics, PixelStatistics, make_likelihood
from aime.encoder_decoder.trunk import ImageTrunk

__all__ = [
    "GaussianLikelihood",
    "GramLoss",
    "ImageTrunk",
    "MixtureOfLogistics",
    "PixelStatistics",
    "Posterior",
    "VAEDecoder",
    "VAEEncoder",
    "make_likelihood",
]
