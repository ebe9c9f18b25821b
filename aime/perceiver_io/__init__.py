"""Pillar 1, perception: a causal VQ video tokenizer and a Perceiver over its tokens."""

from aime.perceiver_io.causal_perceiver_io import CausalPerceiverIO, PerceiverMemory, PerceiverOutput
from aime.perceiver_io.predictor import PerceiverTokenPredictor, TokenFrames
from aime.perceiver_io.quantizer import VectorQuantizer
from aime.perceiver_io.sampling import filter_logits, sample_tokens
from aime.perceiver_io.tokenizer import Tokens, VQPTTokenizer

__all__ = [
    "CausalPerceiverIO",
    "PerceiverMemory",
    "PerceiverOutput",
    "PerceiverTokenPredictor",
    "TokenFrames",
    "Tokens",
    "VQPTTokenizer",
    "VectorQuantizer",
    "filter_logits",
    "sample_tokens",
]
