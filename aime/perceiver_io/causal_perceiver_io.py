"""Pillar 1: the causal VQ tokenizer and the Perceiver over its tokens as one module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aime.documented_tables import accepts_documented_names
from aime.nn import expect_shape
from aime.perceiver_io import generation
from aime.perceiver_io.attention import AttentionMemory
from aime.perceiver_io.predictor import PerceiverTokenPredictor, PredictorMemory, TokenFrames
from aime.perceiver_io.quantizer import Gradient, codebook_statistics
from aime.perceiver_io.token_loss import TokenScores, score_next_tokens
from aime.perceiver_io.tokenizer import Tokens, VQPTTokenizer
from aime.ranks import Ranks


@dataclass(frozen=True)
class PerceiverMemory:
    """What is kept of earlier frames to continue a video frame by frame.

    Attributes:
        features: of each of the tokenizer's convolutions over time, (B, k - 1, F, h, w).
        predictor: the Perceiver's keys and values.
    """

    features: tuple[Tensor, ...]
    predictor: PredictorMemory


@dataclass(frozen=True)
class PerceiverOutput:
    """Everything one pass over a video gives.

    Attributes:
        context: (B, T', Cc), c_t depends on frames <= t alone. T' = T without temporal down-sampling.
        tokens: ids, codes and encodings of the video.
        latents: (B, T', N_l, C).
        embedded: (B, T', Ht * Wt, 2 C) embedded tokens and their neighbourhood, see :class:`TokenFrames`.
        memory: to continue with the frames after.
    """

    context: Tensor
    tokens: Tokens
    latents: Tensor
    embedded: Tensor
    memory: PerceiverMemory

    @property
    def frames(self) -> TokenFrames:
        """What the readout of the next tokens sees."""
        return TokenFrames(self.context, self.latents, self.embedded, self.tokens.ids)


@accepts_documented_names()
class CausalPerceiverIO(nn.Module):
    """Video to causal context vectors, with a next-frame token model as its own training signal.

    Args:
        video_shape: (T, C, H, W); T is not a limit, any T >= 1 is accepted.
        context_dim: Cc; ``num_latent_channels`` when absent.
        num_latents, num_latent_channels, num_attention_heads, num_encoder_layers: of the Perceiver.
        code_dim, num_codes, downsample, base_channels, use_3d_conv, patch_size: of the tokenizer.
        window: frames each temporal layer sees.
        commitment_weight: weight of the commitment loss (van den Oord et al. 2017, beta).
        entropy_weight: weight of the bonus on the entropy of code use over all positions.
        feature_channels: F where the tokenizer reads a trunk's feature maps (B, T, F, Ht, Wt) in place of videos.
        grid: (Ht, Wt) of those maps.
        temporal_downsample: s, frames to a token frame; True for 2, False or 1 for none.
        num_quantizers: Q, codebooks: Q ids a position.
        gradient: how it passes the quantizer, ``straight_through`` or ``rotation``.
        action_dim: A, actions a_t that the tokens of frame t + 1 may depend on; 0 for none.
        reads_latents: let the output queries attend to the latents beside the context.
        neighbourhood_frames: frames whose 3 x 3 tokens around a position its output query is made of; 0 for none.
        masked_share: of the frames in training, those of which part of the next tokens is given, which
            :meth:`generate_maskgit` needs; 0 for none.

    Example:
        >>> perceiver = CausalPerceiverIO((8, 3, 32, 32), num_latents=4, num_latent_channels=16, num_codes=16,
        ...                               code_dim=8, base_channels=8, num_encoder_layers=1)
        >>> perceiver(torch.zeros(2, 5, 3, 32, 32)).context.shape
        torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        video_shape: tuple[int, int, int, int],
        context_dim: int | None = None,
        num_latents: int = 128,
        num_latent_channels: int = 128,
        num_attention_heads: int = 4,
        num_encoder_layers: int = 4,
        code_dim: int = 64,
        num_codes: int = 1024,
        downsample: int = 4,
        base_channels: int = 64,
        *,
        use_3d_conv: bool = True,
        patch_size: int = 4,
        window: int = 10,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.0,
        feature_channels: int | None = None,
        grid: tuple[int, int] | None = None,
        temporal_downsample: int = 1,
        num_quantizers: int = 1,
        gradient: Gradient = "straight_through",
        action_dim: int = 0,
        reads_latents: bool = True,
        neighbourhood_frames: int = 3,
        masked_share: float = 0.25,
    ) -> None:
        super().__init__()
        _, channels, height, width = video_shape
        self.image_size, self.masked_share = (height, width), masked_share
        self.commitment_weight, self.entropy_weight = commitment_weight, entropy_weight
        self.context_dim = context_dim or num_latent_channels
        self.tokenizer = VQPTTokenizer(
            channels,
            code_dim,
            num_codes,
            downsample,
            base_channels,
            use_3d_conv=use_3d_conv,
            patch_size=patch_size,
            feature_channels=feature_channels,
            temporal_downsample=temporal_downsample,
            num_quantizers=num_quantizers,
            gradient=gradient,
        )
        self.grid = grid or self.tokenizer.grid(height, width)
        self.model = PerceiverTokenPredictor(
            code_dim=code_dim,
            num_codes=num_codes,
            grid=self.grid,
            context_dim=self.context_dim,
            num_latents=num_latents,
            num_latent_channels=num_latent_channels,
            num_self_attention_layers=num_encoder_layers,
            num_heads=num_attention_heads,
            window=window,
            num_codebooks=num_quantizers,
            action_dim=action_dim,
            reads_latents=reads_latents,
            neighbourhood_frames=neighbourhood_frames,
        )

    def forward(
        self,
        videos: Tensor,
        memory: PerceiverMemory | None = None,
        *,
        detach_tokens: bool = False,
        share: float = 1.0,
    ) -> PerceiverOutput:
        """Tokenise and read a video.

        Args:
            videos: (B, T, C, H, W), or the feature maps (B, T, F, Ht, Wt) that the tokenizer was made for.
            memory: of the frames before, to continue them.
            detach_tokens: let no gradient of what is read of the tokens reach the tokenizer.
            share: of the videos, the first ones of the batch (at least one), that carry gradients; the others are
                computed without, which is all that is needed of them where nothing but :meth:`compute_loss` trains
                this module.

        Raises:
            ValueError: a share of videos together with a memory.
        """
        count = max(round(share * videos.shape[0]), 1)
        if not torch.is_grad_enabled() or count == videos.shape[0]:
            return self._read(videos, memory, detach_tokens)
        if memory is not None:
            raise ValueError("share: expected 1 where frames are continued from a memory, found less")
        trained = self._read(videos[:count], None, detach_tokens)
        with torch.no_grad():
            rest = self._read(videos[count:], None, detach_tokens)
        return _joined(trained, rest)

    def _read(self, videos: Tensor, memory: PerceiverMemory | None, detach_tokens: bool) -> PerceiverOutput:
        tokens, features = self.tokenizer.encode(videos, None if memory is None else memory.features)
        codes = tokens.quantized.detach() if detach_tokens else tokens.quantized  # (B, T, Ht, Wt, D)
        latents, embedded, predictor = self.model(codes, None if memory is None else memory.predictor)
        context = self.model.context(latents)  # (B, T, Cc)
        return PerceiverOutput(context, tokens, latents, embedded, PerceiverMemory(features, predictor))

    def empty_memory(self, batch: int) -> PerceiverMemory:
        """Memory of B videos of which nothing was seen yet."""
        model, tokenizer = self.model, self.tokenizer
        like = model.latents
        sizes = tokenizer.memory_sizes(*self.image_size, self.grid)
        features = tuple(like.new_zeros(batch, *size) for size in sizes)
        return PerceiverMemory(features, model.empty_memory(batch))

    def extract_context(self, videos: Tensor, *, detach: bool = False) -> Tensor:
        """Context vectors (B, T, Cc) of a video (B, T, C, H, W), differentiable unless ``detach``."""
        context: Tensor = self(videos).context
        return context.detach() if detach else context

    def compute_loss(
        self,
        output: PerceiverOutput,
        videos: Tensor,
        *,
        actions: Tensor | None = None,
        ce_weight: float = 1.0,
        share: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one pass.

        The tokenizer learns from reconstruction and commitment, the Perceiver from the next tokens: two stages with
        one loss, as in VQ-GAN (Esser et al. 2021), so that predictability is not bought with poor tokens.

        Args:
            output: of :meth:`forward` on ``videos``.
            videos: (B, T, C, H, W).
            actions: (B, T, A), each taken after the frame of its index.
            ce_weight: weight of the next-token cross-entropy.
            share: of the videos, the first ones of the batch, that the losses are computed on (at least one video).
            generator: of the masks.

        Returns:
            scalars: total_loss, ce_loss (nats a token; 0 when T' = 1), reconstruction_loss (mean squared error),
            commitment_loss, entropy_loss, vq_loss, accuracy (share of next tokens predicted), copy_accuracy (share that
            stays as it is), perplexity, usage.

        Raises:
            ValueError: actions for a Perceiver without, or with temporal down-sampling.
        """
        count = max(round(share * videos.shape[0]), 1)
        videos, tokens = videos[:count], output.tokens.first(count)
        reconstruction = self.tokenizer.reconstruction_loss(tokens, videos)
        entropy = self._usage_entropy(tokens.encodings)
        vq_loss = self.commitment_weight * tokens.commitment - self.entropy_weight * entropy
        scores = TokenScores.none(reconstruction)
        if tokens.ids.shape[1] > 1:
            now = TokenFrames(output.context[:count], output.latents[:count], output.embedded[:count], tokens.ids)
            scores = score_next_tokens(self, now, self.checked_actions(actions, videos, count), generator)
        quantizer = self.tokenizer.quantizer
        perplexity, usage = codebook_statistics(output.tokens.ids, quantizer.num_codes, quantizer.heads)
        return {
            "total_loss": ce_weight * scores.cross_entropy + reconstruction + vq_loss,
            "ce_loss": scores.cross_entropy,
            "reconstruction_loss": reconstruction,
            "commitment_loss": tokens.commitment,
            "entropy_loss": -entropy,
            "vq_loss": vq_loss,
            "accuracy": scores.accuracy,
            "copy_accuracy": scores.copied,
            "perplexity": perplexity,
            "usage": usage,
        }

    def checked_actions(self, actions: Tensor | None, videos: Tensor, count: int) -> Tensor | None:
        """Actions (B, T, A) of the first videos.

        Raises:
            ValueError: actions for a Perceiver that takes none, or with temporal down-sampling; another shape.
        """
        if actions is None:
            return None
        embedding = self.model.action_embedding
        if embedding is None or self.tokenizer.temporal_downsample > 1:
            raise ValueError("actions: expected none (action_dim = 0, or several frames a token), found some")
        expect_shape(actions[:count], "B T A", "actions", B=count, T=videos.shape[1], A=embedding.in_features)
        return actions[:count]

    def generate_autoregressive(
        self,
        context_videos: Tensor,
        num_frames_to_generate: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        *,
        actions: Tensor | None = None,
        cached: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue a video, token frame by token frame; see :func:`aime.perceiver_io.generation.continue_tokens`.

        Args:
            context_videos: (B, Tc, C, H, W), or the maps that the tokenizer was made for.
            num_frames_to_generate: n >= 0; nothing limits Tc + n.
            temperature: 0 for the most probable tokens.
            top_k: draw from the k most probable tokens alone.
            top_p: draw from the smallest set of tokens of this mass alone.
            actions: (B, Tc + n - 1, A) or longer, taken after each frame.
            cached: keep keys and values, so that a frame costs the same wherever it stands; False computes everything
                again for each frame, to the same end.
            generator: source of randomness.

        Returns:
            (B, Tc + n, C, H, W), the decoded tokens of the context included.
        """
        choice = generation.Choice(temperature, top_k, top_p, generator)
        return generation.generate(self, context_videos, num_frames_to_generate, choice, actions, cached=cached)

    def generate_maskgit(
        self,
        context_videos: Tensor,
        num_frames_to_generate: int,
        num_iterations: int = 12,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        *,
        actions: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue a video, the tokens of each frame in a few steps, the surest first (Chang et al. 2022, MaskGIT).

        As :meth:`generate_autoregressive`, where all tokens of a frame are drawn at once, each for itself.

        Raises:
            ValueError: the Perceiver is not trained with masks (``masked_share`` = 0), or fewer than one iteration.
        """
        choice = generation.Choice(temperature, top_k, top_p, generator)
        generation.check_iterations(self.masked_share, num_iterations)
        return generation.generate(
            self, context_videos, num_frames_to_generate, choice, actions, iterations=num_iterations
        )

    def predict_future(self, videos: Tensor, num_frames: int, *, actions: Tensor | None = None) -> Tensor:
        """The most probable n frames (B, n, C, H, W) after videos (B, T, C, H, W)."""
        whole = self.generate_autoregressive(videos, num_frames, 0.0, actions=actions)
        return whole[:, videos.shape[1] :]

    @torch.no_grad()
    def reconstruct(self, videos: Tensor) -> Tensor:
        """Videos (B, T, C, H, W) as their tokens show them."""
        tokens, _ = self.tokenizer.encode(videos)
        return self.tokenizer.decode(tokens.quantized, *self.image_size, videos.shape[1])

    def _usage_entropy(self, encodings: Tensor, rows: int = 2048) -> Tensor:
        """Entropy (nats) of the batch-averaged soft assignment, over every n-th position so that it stays cheap."""
        if self.entropy_weight == 0.0:
            return encodings.new_zeros(())
        flat = encodings.reshape(-1, encodings.shape[-1])
        flat = flat[:: max(flat.shape[0] // rows, 1)].float()
        quantizer = self.tokenizer.quantizer
        books = quantizer.codebook.view(quantizer.heads, quantizer.num_codes, -1)
        parts = flat.unflatten(-1, (quantizer.heads, -1)).transpose(0, 1)  # (Q, N, D / Q)
        shares = torch.softmax(-torch.cdist(parts, books).square(), -1).mean(1)  # (Q, V)
        return -(shares * shares.clamp_min(1e-12).log()).sum(-1).mean()

    def update_codebook(
        self, tokens: Tokens, generator: torch.Generator | None = None, ranks: Ranks | None = None
    ) -> None:
        """Move the codebook after an optimizer step, by the tokens of all ranks where there are several."""
        self.tokenizer.quantizer.update(tokens.encodings, tokens.ids, generator, ranks)

    @torch.no_grad()
    def initialise_codebook(self, videos: Tensor, generator: torch.Generator | None = None) -> None:
        """k-means codebook from the encodings of a few videos (B, T, C, H, W)."""
        tokens, _ = self.tokenizer.encode(videos)
        self.tokenizer.quantizer.initialise(tokens.encodings, generator=generator)


def _joined(first: PerceiverOutput, second: PerceiverOutput) -> PerceiverOutput:
    """Two outputs as that of one batch."""

    def cat(*pair: Tensor) -> Tensor:
        return torch.cat(pair)

    a, b = first.tokens, second.tokens
    tokens = Tokens(cat(a.ids, b.ids), cat(a.quantized, b.quantized), cat(a.encodings, b.encodings), a.commitment)
    left, right = first.memory, second.memory
    layers = tuple(
        AttentionMemory(cat(m.keys, n.keys), cat(m.values, n.values))
        for m, n in zip(left.predictor.layers, right.predictor.layers, strict=True)
    )
    memory = PerceiverMemory(
        tuple(cat(m, n) for m, n in zip(left.features, right.features, strict=True)),
        PredictorMemory(
            layers,
            cat(left.predictor.valid, right.predictor.valid),
            cat(left.predictor.codes, right.predictor.codes),
        ),
    )
    return PerceiverOutput(
        cat(first.context, second.context),
        tokens,
        cat(first.latents, second.latents),
        cat(first.embedded, second.embedded),
        memory,
    )
