"""Tokenizer, predictor and Perceiver with the calls of the original's documents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aime import perceiver_io
from aime.perceiver_io import TokenFrames
from aime.perceiver_io.generation import Choice, continue_tokens
from aime.perceiver_io.quantizer import codebook_statistics


class VQPTTokenizer(perceiver_io.VQPTTokenizer):
    """`tokens, vq_loss, perplexity = tokenizer.encode(video)` and `video = tokenizer.decode(tokens)`."""

    @property
    def vq(self) -> perceiver_io.VectorQuantizer:
        """The quantizer; `tokenizer.vq.codebook` are its codes."""
        return self.quantizer

    def encode(self, videos: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Ids (B, T, Ht, Wt) of videos (B, T, C, H, W), the commitment loss (), and the perplexity of code use ()."""
        found, _ = super().encode(videos)
        perplexity, _ = codebook_statistics(found.ids, self.quantizer.num_codes, self.quantizer.heads)
        return found.ids, found.commitment, perplexity

    def decode(
        self, quantized: Tensor, height: int | None = None, width: int | None = None, frames: int | None = None
    ) -> Tensor:
        """Videos (B, T, C, H, W) of ids (B, T, Ht, Wt), or of codes (B, T, Ht, Wt, D)."""
        ids = not quantized.is_floating_point()
        return super().decode(self.get_codes_from_indices(quantized) if ids else quantized, height, width, frames)


class PerceiverTokenPredictor(nn.Module):
    """`predictor(videos, num_context_frames=10)["reconstructed"]`, and `generate_autoregressive`.

    Args:
        tokenizer: of frames of 64 x 64 pixels.
        **names: of `aime.perceiver_io.PerceiverTokenPredictor`, or the documents' for them.
    """

    def __init__(self, tokenizer: perceiver_io.VQPTTokenizer, **names: Any) -> None:
        super().__init__()
        self.tokenizer, self.image_size, self.masked_share = tokenizer, (64, 64), 0.0
        names |= {"tokenizer": tokenizer, "num_codebooks": tokenizer.quantizer.heads}
        self.model = perceiver_io.PerceiverTokenPredictor(**names)

    def forward(self, videos: Tensor, num_context_frames: int, return_dict: bool = True) -> dict[str, Tensor]:  # noqa: ARG002
        """Predict the frames after the first ones.

        Args:
            videos: (B, T, C, 64, 64).
            num_context_frames: Tc < T, frames that are seen.
            return_dict: a dictionary is returned in any case.

        Returns:
            predicted_tokens (B, T - Tc, Ht, Wt), each frame from the context and the predicted ones before it;
            reconstructed (B, T, C, 64, 64), context and prediction decoded; logits (B, T - Tc, Ht * Wt, V) given the
            true frames before each, differentiable, of token_ids (B, T - Tc, Ht, Wt); context_tokens; vq_loss ().

        Raises:
            ValueError: no frame to see, or none to predict.
        """
        length = videos.shape[1]
        if not 0 < num_context_frames < length:
            raise ValueError(f"num_context_frames: expected 1..{length - 1}, found {num_context_frames}")
        tokens, _ = perceiver_io.VQPTTokenizer.encode(self.tokenizer, videos)
        seen, future = tokens.ids[:, :num_context_frames], tokens.ids[:, num_context_frames:]
        latents, embedded, _ = self.model(tokens.quantized.detach()[:, :-1])
        now = TokenFrames(self.model.context(latents), latents, embedded, tokens.ids[:, :-1])
        logits = self.model.predict(now[slice(num_context_frames - 1, None)])
        whole = continue_tokens(self, seen, length - num_context_frames, Choice(temperature=0.0))
        return {
            "logits": logits,
            "context_tokens": seen,
            "token_ids": future,
            "predicted_tokens": whole[:, num_context_frames:],
            "reconstructed": self._decoded(whole),
            "vq_loss": tokens.commitment,
        }

    @torch.no_grad()
    def generate_autoregressive(
        self,
        context_videos: Tensor,
        num_frames_to_generate: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """Videos (B, Tc, C, 64, 64) and n frames more, (B, Tc + n, C, 64, 64); no length is the last."""
        choice = Choice(temperature, top_k, top_p)
        tokens, _ = perceiver_io.VQPTTokenizer.encode(self.tokenizer, context_videos)
        return self._decoded(continue_tokens(self, tokens.ids, num_frames_to_generate, choice))

    def _decoded(self, ids: Tensor) -> Tensor:
        """Videos (B, T, C, 64, 64) of ids (B, T, Ht, Wt)."""
        codes = self.tokenizer.get_codes_from_indices(ids)
        return perceiver_io.VQPTTokenizer.decode(self.tokenizer, codes, *self.image_size, ids.shape[1])


class CausalPerceiverIO(perceiver_io.CausalPerceiverIO):
    """`future_tokens = perceiver.predict_future(observations, num_steps=10)`."""

    @torch.no_grad()
    def predict_future(self, videos: Tensor, num_steps: int, *, actions: Tensor | None = None) -> Tensor:
        """The most probable next n token frames (B, n, Ht, Wt) after videos (B, T, C, H, W)."""
        tokens, _ = self.tokenizer.encode(videos)
        ids = continue_tokens(self, tokens.ids, num_steps, Choice(temperature=0.0), actions)
        return ids[:, tokens.ids.shape[1] :]
