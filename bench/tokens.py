"""Can the tokens of the next frame be predicted better than by repeating the last ones? The Perceiver by itself.

    python -m bench.tokens data/cartpole.h5 --held-out data/cartpole_fresh.h5 [--scale tier1] [--arms rotation ...]

In two stages, as a VQ-GAN is trained: the tokenizer on frames, then the predictor on the tokens of it as it is. Most
tokens of a still camera stay as they are, so a model that copies is right most of the time; the share of those that do
change and are predicted, which copying gets 0 of, says what is known of the motion. With ``--run RUN`` the tokens are
those of a trained world model, and the predictor is trained on them from scratch.

Results are written arm by arm, and an arm that is there already is not run again. One core is enough.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.nn import functional as F

from aime.data import EpisodeSource, open_source
from aime.evaluation.record import write_json
from aime.nn import images_to_float
from aime.perceiver_io import CausalPerceiverIO, TokenFrames
from aime.perceiver_io.generation import Choice, continue_tokens
from aime.perceiver_io.quantizer import codebook_statistics
from aime.training.step_weights import load_model

RESULTS = Path(__file__).parent / "results"
SCALES: dict[str, dict[str, Any]] = {
    "laptop": {
        "num_latents": 8,
        "num_latent_channels": 64,
        "context_dim": 64,
        "num_attention_heads": 1,
        "num_encoder_layers": 1,
        "window": 4,
        "num_codes": 256,
        "code_dim": 32,
        "downsample": 16,
        "base_channels": 16,
    },
    "tier1": {
        "num_latents": 32,
        "num_latent_channels": 128,
        "context_dim": 128,
        "num_attention_heads": 8,
        "num_encoder_layers": 2,
        "window": 10,
        "num_codes": 1024,
        "code_dim": 64,
        "downsample": 4,
        "base_channels": 32,
    },
}
"""Sizes of Perceiver and tokenizer as in the presets of the world model."""
BATCH: dict[str, tuple[int, int]] = {"laptop": (16, 16), "tier1": (4, 8)}
"""Windows and frames of a step of the predictor."""


@dataclass(frozen=True)
class Arm:
    """Changes of the default.

    Attributes:
        model: arguments of `CausalPerceiverIO`.
        actions: whether the predictor is given a_t.
        changed_weight: of tokens that change, in the cross-entropy; those that stay have 1.
        rate: peak learning rate of the predictor.
        stay: initial amount on the logit of the present token.
    """

    model: dict[str, Any]
    actions: bool = True
    changed_weight: float = 1.0
    rate: float = 3e-3
    stay: float | None = None


ARMS: dict[str, Arm] = {
    "default": Arm({}),
    "rotation": Arm({"gradient": "rotation"}),
    "two-books": Arm({"num_quantizers": 2}),
    "four-books": Arm({"num_quantizers": 4}),
    "no-action": Arm({}, actions=False),
    "context-alone": Arm({"reads_latents": False}),
    "changed-4": Arm({}, changed_weight=4.0),
    "no-stay": Arm({}, stay=0.0),
    "slow": Arm({}, rate=1e-3),
}
"""Changes by name."""


@dataclass(frozen=True)
class Video:
    """Episodes of one length: frames (E, T, C, H, W) uint8 and the actions (E, T, A) taken after them."""

    frames: Tensor
    actions: Tensor

    @classmethod
    def read(cls, source: EpisodeSource) -> Video:
        """All of a source, cut to the shortest episode."""
        length = int(source.lengths.min())
        windows = [source.window(episode, 0, length) for episode in range(len(source.lengths))]
        return cls(
            torch.from_numpy(np.stack([window.observations for window in windows])),
            torch.from_numpy(np.stack([window.actions for window in windows])),
        )


@dataclass
class Tokens:
    """Measure how well video tokens are predicted."""

    data: Annotated[Path, tyro.conf.Positional]
    """Episode file (HDF5) to train on."""
    held_out: Path
    """Episode file of other episodes, to score on."""
    scale: str = "laptop"
    """Sizes: laptop or tier1."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Which arms."""
    seeds: tuple[int, ...] = (1,)
    """Seeds of weights and windows."""
    tokenizer_steps: int = 600
    """Optimizer steps of the tokenizer, 64 frames each."""
    steps: int = 1500
    """Optimizer steps of the predictor."""
    run: Path | None = None
    """A trained run whose tokens to predict instead; tokenizer and rotation arms make no sense then."""
    out: Path | None = None
    """Result file. Default: bench/results/tokens-SCALE.json."""

    def measure(self) -> int:
        """Train and score what is not in the result file yet."""
        unknown = [name for name in self.arms if name not in ARMS]
        if unknown or self.scale not in SCALES:
            known = f"--arms: expected names among {', '.join(ARMS)}, and --scale {' or '.join(SCALES)}"
            raise SystemExit(f"{known}; found {', '.join([*unknown, self.scale])}")
        out = self.out or RESULTS / f"tokens-{self.scale}.json"
        record = json.loads(out.read_text()) if out.is_file() else self.header()
        train, test = (Video.read(open_source(path)) for path in (self.data, self.held_out))
        for seed in self.seeds:
            for name in self.arms:
                key = f"{name}/{self.tokenizer_steps}/{self.steps}/{seed}"
                if key in record["arms"]:
                    continue
                record["arms"][key] = row = self.arm(ARMS[name], train, test, seed)
                write_json(out, record)
                print(f"{key}: " + "  ".join(f"{figure} {value:.4g}" for figure, value in row.items()), flush=True)
        return 0

    def header(self) -> dict[str, Any]:
        """What the figures are of."""
        device = platform.processor() or platform.machine()
        facts = {"threads": torch.get_num_threads(), "torch": torch.__version__, "data": self.data.name}
        tokens = None if self.run is None else self.run.name
        return {"benchmark": "tokens", "scale": self.scale, "device": device, **facts, "run": tokens, "arms": {}}

    def arm(self, arm: Arm, train: Video, test: Video, seed: int) -> dict[str, float]:
        """Figures of one arm."""
        torch.manual_seed(seed)
        begin = time.process_time()
        row: dict[str, float] = {}
        if self.run is None:
            perceiver = make(self.scale, arm, train)
            train_tokenizer(perceiver, train.frames, self.tokenizer_steps)
            row["psnr"] = psnr(perceiver, test.frames)
            seen, unseen = (read(lambda x: perceiver.tokenizer.encode(x)[0].ids, video) for video in (train, test))
        else:
            world = load_model(self.run).eval()
            perceiver = make(self.scale, arm, train, world.perceiver)
            seen, unseen = (read(lambda x: world.perceive(x).perceiver.tokens.ids, video) for video in (train, test))
        quantizer = perceiver.tokenizer.quantizer
        row["perplexity"], row["usage"] = map(float, codebook_statistics(unseen, quantizer.num_codes, quantizer.heads))
        if arm.stay is not None:
            torch.nn.init.constant_(perceiver.model.stay.bias, arm.stay)
        train_predictor(perceiver, arm, seen, train.actions, self.steps, BATCH[self.scale])
        row |= score(perceiver, arm, unseen, test.actions)
        return row | {"cpu_seconds": time.process_time() - begin}


def make(scale: str, arm: Arm, video: Video, like: CausalPerceiverIO | None = None) -> CausalPerceiverIO:
    """A Perceiver of this scale; with the tokens of another where that is given."""
    shape = tuple(video.frames.shape[-4:])
    taken: dict[str, Any] = {} if like is None else {"grid": like.grid}
    if like is not None:
        books = like.tokenizer.quantizer
        taken |= {"num_codes": books.num_codes, "code_dim": books.code_dim, "num_quantizers": books.heads}
    options = {**SCALES[scale], "masked_share": 0.0, "action_dim": video.actions.shape[-1], **arm.model, **taken}
    perceiver = CausalPerceiverIO(shape, **options)
    if like is not None:
        perceiver.tokenizer.quantizer.load_state_dict(like.tokenizer.quantizer.state_dict())
    return perceiver


def windows(count: int, length: int, *sequences: Tensor) -> Iterator[list[Tensor]]:
    """Random windows (count, length, ...) of sequences (E, T, ...) that belong together."""
    episodes, steps = sequences[0].shape[:2]
    while True:
        rows = torch.randint(episodes, (count, 1))
        times = torch.randint(steps - length + 1, (count, 1)) + torch.arange(length)
        yield [sequence[rows, times] for sequence in sequences]


def descend(parameters: list[torch.nn.Parameter], rate: float, steps: int) -> Iterator[Callable[[Tensor], None]]:
    """Adam with a cosine schedule after a short warm-up: what takes a step on a loss, so many times."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-5)
    for step in range(steps):
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * 0.5 * (1 + np.cos(np.pi * step / steps))

        def take(loss: Tensor) -> None:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

        yield take


def train_tokenizer(perceiver: CausalPerceiverIO, frames: Tensor, steps: int, rate: float = 2e-3) -> None:
    """Reconstruction and commitment on windows of 4 frames (E, T, C, H, W); the codebook follows each step."""
    drawn, tokenizer = windows(16, 4, frames), perceiver.tokenizer.train()
    perceiver.initialise_codebook(images_to_float(next(drawn)[0]))
    for take in descend(list(tokenizer.parameters()), rate, steps):
        videos = images_to_float(next(drawn)[0])
        tokens, _ = tokenizer.encode(videos)
        take(tokenizer.reconstruction_loss(tokens, videos) + perceiver.commitment_weight * tokens.commitment)
        perceiver.update_codebook(tokens)
    tokenizer.eval()


def train_predictor(
    perceiver: CausalPerceiverIO, arm: Arm, ids: Tensor, actions: Tensor, steps: int, batch: tuple[int, int]
) -> None:
    """Cross-entropy of the next tokens of ids (E, T, Ht, Wt[, Q]); tokenizer and codebook stay."""
    model, drawn = perceiver.model.train(), windows(*batch, ids, actions)
    for take in descend(list(model.parameters()), arm.rate, steps):
        some, acted = next(drawn)
        logits, targets, present = next_tokens(perceiver, arm, some, acted)
        weights = 1.0 + (arm.changed_weight - 1.0) * (targets != present).float()
        entropies = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
        take((entropies * weights.flatten()).sum() / weights.sum())
    model.eval()


def next_tokens(perceiver: CausalPerceiverIO, arm: Arm, ids: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, T - 1, P[, Q], V) of the next tokens, those tokens and the present ones, (B, T - 1, P[, Q])."""
    model = perceiver.model
    latents, embedded, _ = model(perceiver.tokenizer.get_codes_from_indices(ids[:, :-1]))
    now = TokenFrames(model.context(latents), latents, embedded, ids[:, :-1])
    sees = torch.arange(ids.shape[1] - 1) % 2 == 1 if model.training and model.reads_latents else None
    logits = model.predict(now, actions[:, :-1] if arm.actions else None, sees_latents=sees)
    return logits, ids[:, 1:].flatten(2, 3).long(), ids[:, :-1].flatten(2, 3).long()


@torch.no_grad()
def read(encode: Callable[[Tensor], Tensor], video: Video) -> Tensor:
    """Token ids (E, T, Ht, Wt[, Q]) of whole episodes."""
    return torch.cat([encode(images_to_float(episode)) for episode in video.frames.split(1)])


@torch.no_grad()
def psnr(perceiver: CausalPerceiverIO, frames: Tensor) -> float:
    """Of reconstructions, in dB, pooled over every 10th frame with the one before it."""
    errors = []
    for start in range(0, frames.shape[1] - 1, 10):
        videos = images_to_float(frames[:, start : start + 2])
        errors.append(float((perceiver.reconstruct(videos).clamp(-1, 1) - videos)[:, 1].square().mean()))
    return float(10 * np.log10(4 / np.mean(errors)))


@torch.no_grad()
def score(perceiver: CausalPerceiverIO, arm: Arm, ids: Tensor, actions: Tensor, context: int = 10) -> dict[str, float]:
    """Accuracies on held-out token episodes: one ahead from the true tokens, and 5 ahead from the model's own."""
    hits, moved, nats = [], [], []
    for some, acted in zip(ids.split(2), actions.split(2), strict=True):
        logits, targets, present = next_tokens(perceiver, arm, some, acted)
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
    five, copied, changed = [], [], []
    for start in range(0, ids.shape[1] - context - 5, 30):
        seen = ids[:, start : start + context]
        acted = actions[:, start : start + context + 4] if arm.actions else None
        made = continue_tokens(perceiver, seen, 5, Choice(temperature=0.0), acted)[:, -1]
        truth, last = ids[:, start + context + 4], seen[:, -1]
        five.append((made == truth).float().flatten())
        copied.append((last == truth).float().flatten())
        changed.append((made == truth)[last != truth].float())
    figures |= {"accuracy_5": float(torch.cat(five).mean()), "copy_accuracy_5": float(torch.cat(copied).mean())}
    return figures | {"accuracy_changed_5": float(torch.cat(changed).mean())}


if __name__ == "__main__":
    raise SystemExit(tyro.cli(Tokens).measure())
