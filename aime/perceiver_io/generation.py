"""Generation by the Perceiver alone: token frames drawn one after the other, whole or the surest tokens first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aime.nn import source_device
from aime.perceiver_io.predictor import PredictorMemory, TokenFrames
from aime.perceiver_io.protocol import TokenVideoModel
from aime.perceiver_io.sampling import filter_logits, sample_tokens


@dataclass(frozen=True)
class Choice:
    """How tokens are drawn from logits; see :func:`sample_tokens`."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    generator: torch.Generator | None = None

    def draw(self, logits: Tensor) -> Tensor:
        """Ids (...) of logits (..., V)."""
        return sample_tokens(logits, self.temperature, self.top_k, self.top_p, generator=self.generator)


def check_iterations(masked_share: float, iterations: int) -> None:
    """Raise ValueError unless a Perceiver of this share of masks in training can draw a frame in so many steps."""
    if masked_share == 0.0:
        raise ValueError("generate_maskgit: expected a Perceiver trained with masks, found masked_share = 0")
    if iterations < 1:
        raise ValueError(f"num_iterations: expected at least 1, found {iterations}")


@torch.no_grad()
def generate(
    perceiver: TokenVideoModel,
    videos: Tensor,
    count: int,
    choice: Choice,
    actions: Tensor | None = None,
    *,
    cached: bool = True,
    iterations: int | None = None,
) -> Tensor:
    """Videos (B, T, ...) and n frames more: (B, T + n, C, H, W), decoded from tokens. In evaluation mode.

    Raises:
        ValueError: a negative number of frames.
    """
    if count < 0:
        raise ValueError(f"num_frames_to_generate: expected at least 0, found {count}")
    tokenizer, length = perceiver.tokenizer, videos.shape[1] + count
    wanted = tokenizer.token_frames(length)
    was_training = perceiver.training
    perceiver.eval()
    try:
        tokens, _ = tokenizer.encode(videos)
        ids = continue_tokens(
            perceiver, tokens.ids, wanted - tokens.ids.shape[1], choice, actions, cached=cached, iterations=iterations
        )
        return tokenizer.decode(tokenizer.get_codes_from_indices(ids), *perceiver.image_size, length)
    finally:
        perceiver.train(was_training)


@torch.no_grad()
def continue_tokens(
    perceiver: TokenVideoModel,
    ids: Tensor,
    count: int,
    choice: Choice,
    actions: Tensor | None = None,
    *,
    cached: bool = True,
    iterations: int | None = None,
) -> Tensor:
    """Token ids (B, T', Ht, Wt[, Q]) and n token frames more, (B, T' + n, Ht, Wt[, Q]).

    Only distances in time enter the Perceiver, and it keeps the last ``window`` - 1 frames of each layer: a frame costs
    the same wherever it stands, and no length is the last.

    Args:
        perceiver: in evaluation mode.
        ids: of the context.
        count: n.
        choice: how tokens are drawn.
        actions: (B, T' + n - 1, A) or longer.
        cached: continue from kept keys and values; False reads all frames again for each new one.
        iterations: steps in which the tokens of a frame are drawn; None for all at once.

    Raises:
        ValueError: too few actions, or actions for a Perceiver that takes none.
    """
    model, lookup = perceiver.model, perceiver.tokenizer.get_codes_from_indices
    if actions is not None and (model.action_embedding is None or actions.shape[1] < ids.shape[1] + count - 1):
        expected = "none" if model.action_embedding is None else f"at least {ids.shape[1] + count - 1} frames"
        raise ValueError(f"actions: expected {expected}, found {tuple(actions.shape)}")
    memory: PredictorMemory | None = None
    unread = ids
    for _ in range(count):
        latents, embedded, kept = model(lookup(unread), memory)
        now = TokenFrames(model.context(latents[:, -1:]), latents[:, -1:], embedded[:, -1:], ids[:, -1:])
        action = None if actions is None else actions[:, ids.shape[1] - 1 : ids.shape[1]]
        chosen = _draw_frame(perceiver, now, action, choice, iterations)
        ids = torch.cat([ids, chosen.to(ids.dtype)], 1)
        memory, unread = (kept, ids[:, -1:]) if cached else (None, ids)
    return ids


def _draw_frame(
    perceiver: TokenVideoModel, now: TokenFrames, action: Tensor | None, choice: Choice, iterations: int | None
) -> Tensor:
    """Ids (B, 1, Ht, Wt[, Q]) of the frame after ``now``.

    In several steps, the share of tokens still hidden after step i of N is cos(pi i / 2 N). All Q ids of a position are
    drawn together; how sure a position is, is the log probability of its ids, with Gumbel noise that dies down.
    """
    model = perceiver.model
    if iterations is None:
        return choice.draw(model.predict(now, action)).reshape(now.ids.shape)
    ids = torch.zeros_like(now.ids)
    known = torch.zeros(now.ids.shape[0], 1, model.positions, dtype=torch.bool, device=ids.device)
    for step in range(1, iterations + 1):
        embedded = model.embed(perceiver.tokenizer.get_codes_from_indices(ids))
        logits = model.predict(now, action, known=embedded, is_known=known)  # (B, 1, P[, Q], V)
        drawn = choice.draw(logits)  # (B, 1, P[, Q])
        sure = filter_logits(logits.float(), choice.top_k, choice.top_p).log_softmax(-1)
        sure = sure.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        sure = sure.flatten(3).sum(-1) if sure.dim() > 3 else sure  # (B, 1, P)
        home = source_device(choice.generator)
        uniform = torch.rand(sure.shape, device=home, generator=choice.generator).to(sure.device)
        uniform = uniform.clamp(1e-9, 1 - 1e-7)
        noise = -torch.log(-torch.log(uniform)) * choice.temperature * (1 - step / iterations)
        sure = (sure + noise).masked_fill(known, float("inf"))  # what is given stays given
        hidden = math.floor(model.positions * math.cos(0.5 * math.pi * step / iterations) + 1e-9)
        count = model.positions - hidden
        now_known = torch.zeros_like(known).scatter(-1, sure.topk(count, -1).indices, value=True) | known
        fresh = now_known & ~known
        spread = fresh.reshape(*fresh.shape, *[1] * (drawn.dim() - 3))
        ids = torch.where(spread, drawn.to(ids.dtype), ids.reshape(drawn.shape)).reshape(ids.shape)
        known = now_known
    return ids
