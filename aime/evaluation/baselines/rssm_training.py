"""Training of the RSSM baseline for a given wall-clock time, on the training split only."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from aime.data import EpisodeSource, PrefetchLoader, WindowSampler, cached
from aime.evaluation.baselines.rssm import RSSM, RSSMConfig
from aime.ranges import SEED, Range, check_ranges


@dataclass(frozen=True)
class RSSMTrainingConfig:
    """Settings of the baseline's training.

    Minutes on two cores are one to two thousand steps, so small batches at a high rate: with 32 sequences at 1e-3 it
    took more than 100 steps to leave the plateau of the mean image.
    """

    seconds: Annotated[float, Range(above=0)] = 300.0
    """Wall-clock budget of the optimisation (loading the episodes into memory is not counted)."""
    batch_size: Annotated[int, Range(1, 65536)] = 16
    sequence_length: Annotated[int, Range(1, 65536)] = 16
    learning_rate: Annotated[float, Range(above=0, to=1)] = 1.5e-3
    warmup_steps: Annotated[int, Range(0, 10**9)] = 50
    grad_clip: Annotated[float, Range(above=0)] = 100.0
    weight_average: Annotated[float, Range(0, below=1)] = 0.99
    """Decay of the exponential moving average of the weights, which is what gets evaluated."""
    seed: Annotated[int, SEED] = 0
    clock: Callable[[], float] = time.perf_counter
    """What measures the budget, in seconds."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class TrainedRSSM:
    """The averaged model and what its training amounted to."""

    model: RSSM
    steps: int
    frames: int
    seconds: float
    history: list[dict[str, float]]
    """Every logged step: step, seconds, loss, mse, kl."""

    def summary(self) -> dict[str, float]:
        """For evaluation.json."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return {
            "parameters": float(parameters),
            "steps": float(self.steps),
            "frames": float(self.frames),
            "seconds": self.seconds,
        }


def learning_rate_at(progress: float, step: int, config: RSSMTrainingConfig) -> float:
    """Linear warm-up over steps, then cosine decay to 2 % over the wall-clock budget (``progress`` in [0, 1])."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay = 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * warmup * decay


def train_rssm(
    source: EpisodeSource,
    episodes: Sequence[int],
    mean_image: Tensor,
    config: RSSMTrainingConfig,
    model_config: RSSMConfig | None = None,
    on_step: Callable[[float], None] | None = None,
) -> TrainedRSSM:
    """Train an RSSM until the budget is spent.

    Args:
        source: where the episodes are.
        episodes: the training split.
        mean_image: (C, H, W) in [0, 255], of the same split.
        config: budget and optimiser.
        model_config: sizes; by default the tuned ones at the source's image and action size.
        on_step: called with the share of the budget spent, for a progress bar.

    Returns:
        The model with averaged weights, in evaluation mode.
    """
    torch.manual_seed(config.seed)
    spec = source.spec
    chosen = model_config or RSSMConfig(image_shape=spec.image_shape, action_size=spec.action_size)
    model = RSSM(chosen).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.set_mean_image(mean_image)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, eps=1e-8, fused=True)
    length = min(config.sequence_length, *(int(source.lengths[episode]) for episode in episodes))
    generator = torch.Generator().manual_seed(config.seed)
    sampler = WindowSampler(
        cached(source, list(episodes)), config.batch_size, length, episodes=list(episodes), seed=config.seed
    )
    history: list[dict[str, float]] = []
    step, begin, elapsed = 0, config.clock(), 0.0
    with PrefetchLoader(sampler) as batches:
        while elapsed < config.seconds or step == 0:
            batch = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(elapsed / config.seconds, step, config)
            loss, parts = model.loss(batch.observations, batch.actions, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            optimizer.step()
            weight = min(
                config.weight_average, (1 + step) / (10 + step)
            )  # an early average must not remember the start
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - weight)
            step += 1
            elapsed = config.clock() - begin
            if step % 50 == 0 or elapsed >= config.seconds:
                row = {"step": float(step), "seconds": elapsed, "loss": float(loss.detach())}
                history.append(row | {name: float(value) for name, value in parts.items()})
            if on_step is not None:
                on_step(min(1.0, elapsed / config.seconds))
    frames = step * config.batch_size * length
    return TrainedRSSM(average.eval(), step, frames, elapsed, history)
