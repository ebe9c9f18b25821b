"""Can the tokens of the next frame be predicted better than by repeating the last ones? The Perceiver by itself.

    python -m bench.tokens data/cartpole.h5 [--held-out data/cartpole_fresh.h5] [--scale tier1] [--arms rotation ...]

In two stages, as a VQ-GAN is trained: the tokenizer on frames, then the predictor on the tokens of it as it is. Most
tokens of a still camera stay as they are, so a model that copies is right most of the time; the share of those that do
change and are predicted, which copying gets 0 of, says what is known of the motion. With ``--run RUN`` the tokens are
those of a trained world model, and the predictor is trained on them from scratch.

Results are written arm by arm, and an arm that is there already is not run again. One core is enough; on a GPU
data and both trainings stay there, in bfloat16, and nothing waits for it but the scores. `scripts/gpu.sh tokens` runs
the arms that matter side by side.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime.data import EpisodeSource, open_source, read_splits
from aime.evaluation.record import write_json
from aime.nn import images_to_float
from aime.perceiver_io import CausalPerceiverIO
from aime.perceiver_io.quantizer import codebook_statistics
from aime.training.step_weights import load_model
from bench.token_scores import Figures, descend, next_tokens, perceptron_figures, precision, psnr, score, windows

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
GPU_BATCH: dict[str, tuple[int, int]] = {"laptop": (64, 16), "tier1": (24, 16)}
"""The same where a GPU wants more to do."""


@dataclass(frozen=True)
class Arm:
    """Changes of the default.

    Attributes:
        model: arguments of `CausalPerceiverIO`.
        actions: whether the predictor is given a_t.
        changed_weight: of tokens that change, in the cross-entropy; those that stay have 1.
        rate: peak learning rate of the predictor.
        stay: initial amount on the logit of the present token.
        hides: whether every other frame is predicted from the context alone in training, as in the world model.
    """

    model: dict[str, Any]
    actions: bool = True
    changed_weight: float = 1.0
    rate: float = 3e-3
    stay: float | None = None
    hides: bool = True


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
    "fast": Arm({}, rate=1e-2),
    "open": Arm({}, hides=False),
    "no-neighbourhood": Arm({"neighbourhood_frames": 0}),
}
"""Changes by name."""


@dataclass(frozen=True)
class Video:
    """Episodes of one length: frames (E, T, C, H, W) uint8 and the actions (E, T, A) taken after them."""

    frames: Tensor
    actions: Tensor

    @classmethod
    def read(cls, source: EpisodeSource, episodes: list[int] | None = None) -> Video:
        """Episodes of a source, all when not named, cut to the shortest of them."""
        chosen = list(range(len(source.lengths))) if episodes is None else episodes
        length = int(source.lengths[chosen].min())
        taken = [source.window(episode, 0, length) for episode in chosen]
        return cls(
            torch.from_numpy(np.stack([window.observations for window in taken])),
            torch.from_numpy(np.stack([window.actions for window in taken])),
        )

    def to(self, device: torch.device) -> Video:
        """The same there."""
        return Video(self.frames.to(device), self.actions.to(device))


def videos(data: Path, held_out: Path | None) -> tuple[Video, Video]:
    """Episodes to train on and to score on: of another file, or those that the file's own splits keep apart."""
    source = open_source(data)
    if held_out is not None:
        return Video.read(source), Video.read(open_source(held_out))
    parts = {name: [int(episode) for episode in chosen] for name, chosen in read_splits(source).items()}
    return Video.read(source, parts["train"]), Video.read(source, parts["validation"] + parts["test"])


@dataclass
class Tokens:
    """Measure how well video tokens are predicted.

    Attributes:
        data: episode file to train on.
        held_out: episode file of other episodes, to score on; those of the data's own splits when absent.
        scale: sizes, laptop or tier1.
        arms: which arms.
        seeds: of weights and windows.
        tokenizer_steps: optimizer steps of the tokenizer, 64 frames each.
        steps: optimizer steps of the predictor.
        perceptron_steps: optimizer steps of a plain network on the same tokens, the yardstick; 0 for none. It grows
            with the grid.
        tokenizer_seconds, seconds: longest time of either training; the schedule ends with it.
        run: a trained run whose tokens to predict instead; tokenizer and rotation arms make no sense then.
        out: result file; bench/results/tokens-SCALE.json when absent.
        device: auto (a GPU where there is one), cpu or cuda.
    """

    data: Path
    held_out: Path | None = None
    scale: str = "laptop"
    arms: tuple[str, ...] = tuple(ARMS)
    seeds: tuple[int, ...] = (1,)
    tokenizer_steps: int = 600
    steps: int = 1500
    perceptron_steps: int = 600
    tokenizer_seconds: float = math.inf
    seconds: float = math.inf
    run: Path | None = None
    out: Path | None = None
    device: str = "auto"

    @property
    def place(self) -> torch.device:
        """Where it is computed."""
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(chosen if self.device == "auto" else self.device)

    def measure(self) -> int:
        """Train and score what is not in the result file yet."""
        unknown = [name for name in self.arms if name not in ARMS]
        if unknown or self.scale not in SCALES:
            known = f"--arms: expected names among {', '.join(ARMS)}, and --scale {' or '.join(SCALES)}"
            raise SystemExit(f"{known}; found {', '.join([*unknown, self.scale])}")
        out = self.out or RESULTS / f"tokens-{self.scale}.json"
        record = json.loads(out.read_text()) if out.is_file() else self.header()
        if self.place.type == "cuda":
            torch.set_num_threads(1)  # processes stand side by side, and the processor launches alone
        train, test = (video.to(self.place) for video in videos(self.data, self.held_out))
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
        cuda = self.place.type == "cuda"
        device = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
        facts = {"threads": torch.get_num_threads(), "torch": torch.__version__, "data": self.data.name}
        tokens = None if self.run is None else self.run.name
        return {"benchmark": "tokens", "scale": self.scale, "device": device, **facts, "run": tokens, "arms": {}}

    def arm(self, arm: Arm, train: Video, test: Video, seed: int) -> Figures:
        """Figures of one arm."""
        torch.manual_seed(seed)
        begin, watch = time.process_time(), time.monotonic()
        row: Figures = {}
        if self.run is None:
            perceiver = make(self.scale, arm, train).to(self.place)
            row["tokenizer_steps"] = train_tokenizer(
                perceiver, train.frames, self.tokenizer_steps, seconds=self.tokenizer_seconds
            )
            row["psnr"] = psnr(perceiver, test.frames)
            seen, unseen = (read(lambda x: perceiver.tokenizer.encode(x)[0].ids, video) for video in (train, test))
        else:
            world = load_model(self.run).eval().to(self.place)
            perceiver = make(self.scale, arm, train, world.perceiver).to(self.place)
            seen, unseen = (read(lambda x: world.perceive(x).perceiver.tokens.ids, video) for video in (train, test))
        quantizer = perceiver.tokenizer.quantizer
        row["perplexity"], row["usage"] = map(float, codebook_statistics(unseen, quantizer.num_codes, quantizer.heads))
        if arm.stay is not None:
            nn.init.constant_(perceiver.model.stay.bias, arm.stay)
        batch = (GPU_BATCH if self.place.type == "cuda" else BATCH)[self.scale]
        start = time.monotonic()
        row["steps"] = train_predictor(perceiver, arm, seen, train.actions, self.steps, batch, self.seconds)
        row |= score(perceiver, unseen, test.actions if arm.actions else None)
        row["predictor_seconds"] = time.monotonic() - start  # with its scores, which wait for the device
        row["frames_seen"] = row["steps"] * batch[0] * (batch[1] - 1)
        if self.perceptron_steps and quantizer.heads == 1:
            known = (seen, train.actions), (unseen, test.actions)
            row |= perceptron_figures(quantizer.codebook, *known, self.perceptron_steps, self.seconds)
        return row | {"cpu_seconds": time.process_time() - begin, "seconds": time.monotonic() - watch}


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


def train_tokenizer(
    perceiver: CausalPerceiverIO, frames: Tensor, steps: int, rate: float = 2e-3, seconds: float = math.inf
) -> int:
    """Reconstruction and commitment on windows of 4 frames (E, T, C, H, W); the codebook follows each step.

    Returns:
        steps taken.
    """
    drawn, tokenizer, taken = windows(16, 4, frames), perceiver.tokenizer.train(), 0
    perceiver.initialise_codebook(images_to_float(next(drawn)[0]))
    for take in descend(list(tokenizer.parameters()), rate, steps, seconds):
        with precision(frames):
            some = images_to_float(next(drawn)[0])
            tokens, _ = tokenizer.encode(some)
            loss = tokenizer.reconstruction_loss(tokens, some) + perceiver.commitment_weight * tokens.commitment
        take(loss)
        perceiver.update_codebook(tokens)
        taken += 1
    tokenizer.eval()
    return taken


def train_predictor(
    perceiver: CausalPerceiverIO,
    arm: Arm,
    ids: Tensor,
    actions: Tensor,
    steps: int,
    batch: tuple[int, int],
    seconds: float = math.inf,
) -> int:
    """Cross-entropy of the next tokens of ids (E, T, Ht, Wt[, Q]); tokenizer and codebook stay.

    Returns:
        steps taken.
    """
    model, drawn, taken = perceiver.model.train(), windows(*batch, ids, actions), 0
    hides = arm.hides and bool(model.reads_latents or model.neighbourhood_frames)
    for take in descend(list(model.parameters()), arm.rate, steps, seconds):
        some, acted = next(drawn)
        with precision(ids):
            logits, targets, present = next_tokens(perceiver, some, acted if arm.actions else None, hides=hides)
            entropies = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
        weights = 1.0 + (arm.changed_weight - 1.0) * (targets != present).float()
        take((entropies * weights.flatten()).sum() / weights.sum())
        taken += 1
    model.eval()
    return taken


@torch.no_grad()
def read(encode: Callable[[Tensor], Tensor], video: Video) -> Tensor:
    """Token ids (E, T, Ht, Wt[, Q]) of whole episodes."""
    return torch.cat([encode(images_to_float(episode)) for episode in video.frames.split(1)])


def parse(arguments: list[str] | None = None) -> Tokens:
    """Options of the command line; argparse, as GPU machines have torch and little else."""
    parser = argparse.ArgumentParser(prog="python -m bench.tokens", description=__doc__)
    parser.add_argument("data", type=Path, help="episode file to train on")
    kinds: dict[str, Callable[[str], Any]] = {"held_out": Path, "run": Path, "out": Path, "seeds": int}
    for field in fields(Tokens)[1:]:
        kind = kinds.get(field.name, str if isinstance(field.default, str | tuple) else type(field.default))
        many = {"nargs": "+"} if isinstance(field.default, tuple) else {}
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=kind, default=field.default, help="(%(default)s)", **many)
    given = vars(parser.parse_args(arguments))
    return Tokens(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


if __name__ == "__main__":
    raise SystemExit(parse().measure())
