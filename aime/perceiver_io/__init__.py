"""Pillar 1, perception: a causal VQ video tokenizer and a Perceiver over its tokens."""

from aime.perceiver_io.causal_perceiver_io import CausalPerceiverIO, PerceiverMemory, PerceiverOutput
from aime.perceiver_io.predictor import PerceiverTokenPredictor
from aime.perceiver_io.quantizer import VectorQuantizer
from aime.perceiver_io.tokenizer import Tokens, VQPTTokenizer

__all__ = [
    "CausalPerceiverIO",
    "PerceiverMemory",
    "PerceiverOutput",
    "PerceiverTokenPredictor",
    "Tokens",
    "VQPTTokenizer",
    "VectorQuantizer",
]
