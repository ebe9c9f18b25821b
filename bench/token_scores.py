"""Scores of predicted tokens, and the plain perceptron that is their yardstick; for `bench.tokens`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime.nn import images_to_float
from aime.perceiver_io import CausalPerceiverIO, TokenFrames, VectorQuantizer
from aime.perceiver_io.generation import Choice, continue_tokens
from aime.perceiver_io.predictor import INITIAL_STAY_LOGIT

Figures = dict[str, float]


def precision(like: Tensor) -> AbstractContextManager[object]:
    """bfloat16 where the GPU computes, float32 elsewhere."""
    return torch.autocast("cuda", torch.bfloat16) if like.is_cuda else nullcontext()


def windows(count: int, length: int, *sequences: Tensor) -> Iterator[list[Tensor]]:
    """Random windows (count, length, ...) of sequences (E, T, ...) that belong together, drawn where these lie."""
    (episodes, steps), device = sequences[0].shape[:2], sequences[0].device
    while True:
        rows = torch.randint(episodes, (count, 1), device=device)
        times = torch.randint(steps - length + 1, (count, 1), device=device) + torch.arange(length, device=device)
        yield [sequence[rows, times] for sequence in sequences]


def descend(
    parameters: list[nn.Parameter], rate: float, steps: int, seconds: float = math.inf
) -> Iterator[Callable[[Tensor], None]]:
    """Adam with a cosine schedule after a short warm-up: what takes a step on a loss, so many times.

    The schedule ends with the steps or with the seconds after the first of them, whichever is sooner. Nothing waits for
    the device.
    """
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-5, fused=parameters[0].is_cuda)
    begin: float | None = None
    for step in range(steps):
        done = step / steps if begin is None else max(step / steps, (time.monotonic() - begin) / seconds)
        if done >= 1:
            return
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * 0.5 * (1 + math.cos(math.pi * done))

        def take(loss: Tensor) -> None:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

        yield take
        begin = begin or time.monotonic()


def codes_of(quantizer: VectorQuantizer, ids: Tensor) -> Tensor:
    """Codes (..., D) of valid ids (...), or (..., Q), without the check of their range, which waits for the GPU."""
    if quantizer.heads == 1:
        return quantizer.codebook[ids.long()]
    heads = torch.arange(quantizer.heads, device=ids.device)
    return quantizer.codebook[heads, ids.long()].flatten(-2)


def next_tokens(
    perceiver: CausalPerceiverIO, ids: Tensor, actions: Tensor | None, *, hides: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, T - 1, P[, Q], V) of the next tokens, those tokens and the present ones, (B, T - 1, P[, Q]).

    Every other frame is predicted from the context alone where ``hides``, as in training the world model.
    """
    model = perceiver.model
    latents, embedded, _ = model(codes_of(perceiver.tokenizer.quantizer, ids[:, :-1]))
    now = TokenFrames(model.context(latents), latents, embedded, ids[:, :-1])
    sees = torch.arange(ids.shape[1] - 1, device=ids.device) % 2 == 1 if hides else None
    logits = model.predict(now, None if actions is None else actions[:, :-1], sees_latents=sees)
    return logits.float(), ids[:, 1:].flatten(2, 3).long(), ids[:, :-1].flatten(2, 3).long()


class Perceptron(nn.Module):
    """What a plain network knows: the codes of all positions of 3 frames and the action, densely mixed.

    Its size grows with the positions: a yardstick for small grids, not a model.
    """

    FRAMES = 3

    def __init__(self, codes: Tensor, positions: int, action_dim: int, hidden: int = 128, width: int = 64) -> None:
        super().__init__()
        self.codes, self.positions = codes, positions
        inputs = self.FRAMES * positions * codes.shape[1] + action_dim
        self.mix = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        self.spread, self.present = nn.Linear(hidden, positions * width), nn.Linear(codes.shape[1], width)
        self.logits, self.stay = nn.Linear(width, len(codes)), nn.Linear(width, 1)
        nn.init.zeros_(self.stay.weight)
        nn.init.constant_(self.stay.bias, INITIAL_STAY_LOGIT)

    def forward(self, past: Tensor, actions: Tensor) -> Tensor:
        """Logits (N, P, V) after ids (N, 3, P), the present ones last, and actions (N, A)."""
        codes = self.codes[past]  # (N, 3, P, D)
        mixed = self.spread(self.mix(torch.cat([codes.flatten(1), actions], 1))).unflatten(1, (self.positions, -1))
        queries = F.gelu(mixed + self.present(codes[:, -1]))  # (N, P, C)
        logits: Tensor = self.logits(queries)
        return logits.scatter_add(-1, past[:, -1, :, None], self.stay(queries))


def perceptron_figures(
    codes: Tensor, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], steps: int, seconds: float = math.inf
) -> Figures:
    """Accuracies one ahead of the yardstick, trained on (ids, actions) of single-book tokens, 512 frames a step."""

    def rows(ids: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat, n = ids.flatten(2).long(), Perceptron.FRAMES  # (E, T, P)
        past = torch.stack([flat[:, k : flat.shape[1] - n + k] for k in range(n)], 2)  # (E, T - 3, 3, P)
        return past.flatten(0, 1), actions[:, n - 1 : -1].flatten(0, 1), flat[:, n:].flatten(0, 1)

    past, acted, after = rows(*train)
    model = Perceptron(codes, past.shape[-1], acted.shape[-1]).to(codes.device)
    for take in descend(list(model.parameters()), 3e-3, steps, seconds):
        chosen = torch.randint(len(past), (512,), device=past.device)
        logits = model(past[chosen], acted[chosen])
        take(F.cross_entropy(logits.flatten(0, 1), after[chosen].flatten()))
    with torch.no_grad():
        past, acted, after = rows(*test)
        logits = model(past, acted)
    hit, move = (logits.argmax(-1) == after).float(), after != past[:, -1]
    figures = {"accuracy": hit.mean(), "accuracy_changed": hit[move].mean(), "accuracy_unchanged": hit[~move].mean()}
    figures["nats"] = F.cross_entropy(logits.flatten(0, 1), after.flatten())
    return {f"perceptron_{name}": float(value) for name, value in figures.items()}


@torch.no_grad()
def psnr(perceiver: CausalPerceiverIO, frames: Tensor) -> float:
    """Of reconstructions, in dB, pooled over every 10th frame with the one before it."""
    errors = []
    for start in range(0, frames.shape[1] - 1, 10):
        videos = images_to_float(frames[:, start : start + 2])
        errors.append(float((perceiver.reconstruct(videos).clamp(-1, 1) - videos)[:, 1].square().mean()))
    return 10 * math.log10(4 * len(errors) / sum(errors))


@torch.no_grad()
def score(perceiver: CausalPerceiverIO, ids: Tensor, actions: Tensor | None, context: int = 10) -> Figures:
    """Accuracies on held-out token episodes: one ahead from the true tokens, and 5 ahead from the model's own."""
    hits, moved, nats = [], [], []
    for some, acted in zip(ids.split(2), [None] * len(ids) if actions is None else actions.split(2), strict=False):
        with precision(ids):
            logits, targets, present = next_tokens(perceiver, some, acted)
        later = slice(context - 1, None)
        hits.append((logits.argmax(-1) == targets)[:, later].flatten())
        moved.append((targets != present)[:, later].flatten())
        nats.append(F.cross_entropy(logits[:, later].flatten(0, -2), targets[:, later].flatten(), reduction="none"))
    hit, move = torch.cat(hits).float(), torch.cat(moved)
    figures = {
        "accuracy": float(hit.mean()),
        "copy_accuracy": float((~move).float().mean()),
        "accuracy_changed": float(hit[move].mean()),
        "accuracy_unchanged": float(hit[~move].mean()),
        "nats": float(torch.cat(nats).mean()),
    }
    return figures | score_five_ahead(perceiver, ids, actions, context)


@torch.no_grad()
def score_five_ahead(perceiver: CausalPerceiverIO, ids: Tensor, actions: Tensor | None, context: int) -> Figures:
    """Accuracies of the fifth frame after every 30th, generated from the true tokens before: likeliest and drawn."""
    five, drawn, copied, changed = [], [], [], []
    for start in range(0, ids.shape[1] - context - 5, 30):
        seen = ids[:, start : start + context]
        acted = None if actions is None else actions[:, start : start + context + 4]
        with precision(ids):
            made, sample = (
                continue_tokens(perceiver, seen, 5, Choice(temperature=heat), acted)[:, -1] for heat in (0.0, 1.0)
            )
        truth, last = ids[:, start + context + 4], seen[:, -1]
        five.append((made == truth).float().flatten())
        drawn.append((sample == truth).float().flatten())
        copied.append((last == truth).float().flatten())
        changed.append((made == truth)[last != truth].float())
    names = ("accuracy_5", "accuracy_5_sampled", "copy_accuracy_5", "accuracy_changed_5")
    return {
        name: float(torch.cat(hits).mean()) for name, hits in zip(names, (five, drawn, copied, changed), strict=True)
    }
