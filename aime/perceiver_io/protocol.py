"""What generation and token scores ask of a Perceiver."""

from __future__ import annotations

from typing import Any, Protocol

from aime.perceiver_io.predictor import PerceiverTokenPredictor
from aime.perceiver_io.tokenizer import VQPTTokenizer


class TokenVideoModel(Protocol):
    """A tokenizer and a predictor of its tokens; :class:`aime.perceiver_io.CausalPerceiverIO` is one.

    Attributes:
        tokenizer, model: the two.
        image_size: (H, W) of decoded frames.
        masked_share: share of the frames that are trained with part of the next tokens given.
        training: as of every module.
    """

    tokenizer: VQPTTokenizer
    model: PerceiverTokenPredictor
    image_size: tuple[int, int]
    masked_share: float
    training: bool

    def train(self, mode: bool = True) -> Any:
        """Set training or evaluation mode."""
        ...

    def eval(self) -> Any:
        """Set evaluation mode."""
        ...
