"""Whether a mixture prior earns its place where the future branches: one component against six, at equal CPU seconds.

    python -m bench.branching data/branching.h5 [--cpu-seconds 25] [--seeds 1 2] [--arms ...]

The episodes are those of `bench.branching_world`, which are written where the file is not there. Each arm is a small
model without context and slots, so that what is compared is the prior; it watches the ball fall for CONTEXT frames and
is asked for the rest, 16 times. OMP_NUM_THREADS=1 makes CPU seconds mean the same on every machine of a kind.
"""

from __future__ import annotations

import json
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from aime.allocator import keep_freed_memory
from aime.data import EpisodeSource, collate, open_source, splits_for
from aime.evaluation.ensemble import fair_crps, spread_and_error
from aime.evaluation.mixture import (
    USED_SHARE,
    GaussianMixture,
    components_used,
    responsibilities,
)
from aime.evaluation.record import write_json
from aime.training import TrainConfig, train
from aime.training.experiment import build_model
from bench.branching_world import BACKGROUND, BALL, FORK, LENGTH, RIGHT, cover, draw, make_world, path

RESULT = Path(__file__).parent / "results" / "branching.json"
CONTEXT, SAMPLES = 10, 16
HORIZONS = (1, 3, 4, 6, 10, 14)
"""Frames ahead: the fork is seen at horizon 4."""
SMALL: dict[str, Any] = {
    "latent_dim": 8,
    "hidden_dim": 64,
    "context_dim": 8,
    "prior_hidden_dim": 64,
    "encoder_channels": (16, 24, 32),
    "decoder_channels": (32, 24, 16),
    "mlp_hidden_dim": 64,
    "context_in_posterior": False,
    "attention_in_posterior": False,
}
TRAINING: dict[str, Any] = {
    "batch_size": 16,
    "sequence_length": LENGTH,
    "rehearsal_batch": 48,
    "rehearsal_length": LENGTH,
    "precision": "float32",
    "balancer": "sum",
    "balancer_options": {},
    "validate_every": 0,
}
ARMS: dict[str, dict[str, Any]] = {
    "K=1": {"max_components": 1},
    "K=6": {"max_components": 6},
    "K=6, light sticks": {"max_components": 6, "stick_kl_weight": 0.05},
    "K=6, two groups": {"max_components": 6, "latent_groups": 2},
}
"""Changes of the small model by name."""


@dataclass(frozen=True)
class Scene:
    """Held-out episodes.

    Attributes:
        frames: (N, LENGTH, 3, H, W) uint8.
        masks: (N, LENGTH, H, W) the ball.
        start: (N,) column of the fall.
        right: (N,) the branch.
    """

    frames: Tensor
    masks: Tensor
    start: np.ndarray
    right: np.ndarray


def held_out(source: EpisodeSource, seed: int) -> Scene:
    """The episodes of validation and test."""
    splits = splits_for(source, seed)
    rows = [*splits["validation"], *splits["test"]]
    batch = collate([source.window(int(i), 0, LENGTH) for i in rows])
    assert batch.body_masks is not None
    assert batch.physics is not None
    column = batch.physics[..., 0].numpy()
    return Scene(batch.observations, batch.body_masks.bool(), column[:, 0], column[:, -1] > column[:, 0])


def fair_energy(samples: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Energy score E|X - y| - E|X - X'| / 2 (N,) of images (N, M, H, W) over the mask's pixels (N, H, W).

    |.| is the root mean square over these pixels, so that it has the unit of a pixel; pairs are of different samples.
    """
    weight = mask.float() / mask.float().sum((-2, -1), keepdim=True)

    def norm(difference: Tensor, weights: Tensor) -> Tensor:
        return (difference.square() * weights).sum((-2, -1)).sqrt()

    members = samples.shape[1]
    miss = norm(samples - target[:, None], weight[:, None]).mean(1)
    between = norm(samples[:, :, None] - samples[:, None], weight[:, None, None]).sum((1, 2))
    return miss - 0.5 * between / (members * (members - 1))


def branches(images: Tensor, start: np.ndarray, size: float) -> dict[str, float]:
    """Share of images (N, M, H, W) on [0, 255] whose ball is on the right branch, the left one, or on neither.

    On a branch is an image that shows at least half of the ball's mass, and four fifths of what it shows on one side of
    the column (N,) of the fall.
    """
    mass = ((images - BACKGROUND) / (BALL - BACKGROUND)).clamp(0, 1)
    mass = torch.where(mass < 0.1, 0.0, mass)
    side = torch.from_numpy(np.arange(images.shape[-1]) > start[:, None])[:, None, None].float()  # (N, 1, 1, W)
    whole, right = mass.sum((-2, -1)), (mass * side).sum((-2, -1))
    share, there = right / whole.clamp_min(1e-6), whole > 0.5 * size
    found = {"right": there & (share > 0.8), "left": there & (share < 0.2)}
    shares = {name: float(hit.float().mean()) for name, hit in found.items()}
    return shares | {"neither": 1.0 - shares["right"] - shares["left"]}


def score_rollouts(rollouts: Tensor, scene: Scene) -> dict[int, dict[str, float | None]]:
    """By horizon: scores of rollouts (N, M, Hz, H, W) on [0, 255] in the ball's mask, and where their balls are."""
    scores: dict[int, dict[str, float | None]] = {}
    for horizon in HORIZONS:
        time_of = CONTEXT + horizon - 1
        target, mask = scene.frames[:, time_of, 0].float(), scene.masks[:, time_of]
        samples = rollouts[:, :, horizon - 1]
        spread, error = spread_and_error(samples, target)
        wrong = error[mask].sum()
        row: dict[str, float | None] = {
            "crps": float(fair_crps(samples, target)[mask].mean()),
            "energy": float(fair_energy(samples, target, mask).mean()),
            "spread_ratio": float((spread[mask].sum() / wrong).sqrt()) if wrong > 0 else None,
        }
        if time_of - FORK >= 6:  # before, the balls of the two branches overlap
            size = float(scene.masks[0, time_of].sum())
            row |= branches(samples, scene.start, size)
        scores[horizon] = row
    return scores


def knowing(scene: Scene) -> Tensor:
    """Rollouts (N, M, Hz, H, W) of one who knows all that can be known: the coin's probabilities."""
    random = np.random.default_rng(0)
    count = len(scene.start)
    right = random.random((count, SAMPLES)) < RIGHT
    centres = path(np.repeat(scene.start, SAMPLES), right.reshape(-1))[:, CONTEXT:]
    frames = torch.from_numpy(draw(cover(centres))[:, :, 0]).float()
    return frames.unflatten(0, (count, SAMPLES))  # type: ignore[no-any-return]


@torch.no_grad()
def imagined(model: Any, scene: Scene) -> Tensor:
    """The model's rollouts (N, M, Hz, H, W) on [0, 255], each from a posterior draw of its own."""
    generator = torch.Generator().manual_seed(0)
    actions = torch.zeros(len(scene.start) * SAMPLES, LENGTH, 1)
    seen = scene.frames[:, :CONTEXT].repeat_interleave(SAMPLES, 0)
    states = model.observe(seen, actions[:, :CONTEXT], generator=generator)
    frames = model.imagine(states.at(-1), actions[:, CONTEXT:], generator=generator)["observations"]
    grey = (frames.mean(2) + 1.0) * 127.5  # (N M, Hz, H, W)
    return grey.clamp(0, 255).unflatten(0, (-1, SAMPLES))  # type: ignore[no-any-return]


@torch.no_grad()
def score_prior(model: Any, scene: Scene) -> dict[str, Any]:
    """What the prior makes of the frame at which the branch shows, and of those before and after it.

    Nats of KL and negative log-likelihood of posterior draws; effective components exp(H(mean weights)) at the fork,
    components responsible for at least 1 % there, the weight of all others, from which rollouts draw what never
    happens, and the share of the coin's entropy that the responsible component
    tells, I(component; branch) / H(branch).
    """
    outputs = model.forward_sequence(scene.frames, generator=torch.Generator().manual_seed(0))
    foreseen, latents = outputs.result.foreseen, outputs["latents"]
    mixture = GaussianMixture(foreseen.prior.log_pi, foreseen.prior.means, foreseen.prior.log_scales)
    nll = -model.prior.log_prob(latents, foreseen.prior)  # (N, T)
    coarsest = latents[..., : mixture.means.shape[-1]]  # of latent groups, the one under the mixture
    fork = FORK + 1
    spans = {"before": slice(2, fork), "fork": slice(fork, fork + 1), "after": slice(fork + 1, None)}
    shares = responsibilities(mixture, coarsest)[:, fork]  # (N, K)
    weights = mixture.log_pi[:, fork].exp().mean(0)  # (K,)
    right = torch.from_numpy(scene.right)
    told = entropy(shares.mean(0)) - sum(
        float(side.float().mean()) * entropy(shares[side].mean(0)) for side in (right, ~right)
    )
    coin = float(right.float().mean())
    return {
        "kl": {name: float(foreseen.kl[:, span].mean()) for name, span in spans.items()},
        "nll": {name: float(nll[:, span].mean()) for name, span in spans.items()},
        "effective_components": math.exp(entropy(weights)),
        "components_in_use": components_used(shares.mean(0).numpy()),
        "idle_weight": float(weights[shares.mean(0) < USED_SHARE].sum()),
        "branch_told": told / entropy(torch.tensor([coin, 1 - coin])),
    }


def entropy(shares: Tensor) -> float:
    """Entropy in nats of probabilities (K,)."""
    return float(-torch.special.xlogy(shares, shares).sum())


def run_arm(source: EpisodeSource, change: dict[str, Any], cpu_seconds: float, seed: int) -> dict[str, Any]:
    """Train one arm for so many CPU seconds of the process and score it."""
    model = build_model("laptop", source, seed, SMALL | change)
    config = TrainConfig.preset("laptop", seconds=cpu_seconds, seed=seed, **TRAINING)
    result = train(model, source, config, None, tensorboard=False, show_progress=False, clock=time.process_time)
    model.eval()
    scene = held_out(source, seed)
    facts = {"change": change, "steps": result.step, "cpu_seconds": cpu_seconds}
    return facts | score_prior(model, scene) | {"horizons": score_rollouts(imagined(model, scene), scene)}


@dataclass
class Branching:
    """Compare priors on the branching world."""

    data: Annotated[Path, tyro.conf.Positional]
    """Episode file; written first if it is not there."""
    cpu_seconds: float = 25.0
    """CPU seconds of each training."""
    seeds: tuple[int, ...] = (1, 2)
    """Of weights, windows, noise and splits."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Which arms."""
    out: Path = RESULT
    """Result file; an arm that is there already is not run again."""

    def run(self) -> int:
        """Train and score what is not in the result file yet."""
        unknown = [name for name in self.arms if name not in ARMS]
        if unknown:
            raise SystemExit(f"--arms: expected names among {', '.join(ARMS)}, found {unknown[0]}")
        keep_freed_memory()
        if not self.data.is_file():
            make_world(self.data, 240, 0)
        source = open_source(self.data)
        record: dict[str, Any] = json.loads(self.out.read_text()) if self.out.is_file() else header(source)
        for seed in self.seeds:
            for name in self.arms:
                key = f"{name}/{self.cpu_seconds:g}s/{seed}"
                if key not in record["arms"]:
                    record["arms"][key] = run_arm(source, ARMS[name], self.cpu_seconds, seed)
                    write_json(self.out, record)
                print(key, json.dumps(record["arms"][key], default=str), flush=True)
        return 0


def header(source: EpisodeSource) -> dict[str, Any]:
    """What the figures are of, and those of one who knows the coin's probabilities."""
    scene = held_out(source, 1)
    return {
        "benchmark": "branching",
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "right": RIGHT,
        "fork_horizon": FORK + 2 - CONTEXT,
        "knowing": score_rollouts(knowing(scene), scene),
        "arms": {},
    }


if __name__ == "__main__":
    raise SystemExit(tyro.cli(Branching).run())
