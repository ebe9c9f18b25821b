"""Training of the RSSM baselines for a given number of CPU seconds, on the training split only.

CPU seconds of the process and not wall clock: what else the machine does then takes nothing from a row of the table.
And on one thread: threads that share a small product spend CPU seconds waiting for each other.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch

from aime.allocator import keep_freed_memory
from aime.data import EpisodeSource, EpisodeSpec, PrefetchLoader, WindowSampler, cached
from aime.evaluation.baselines.rssm import RSSM, RSSMConfig
from aime.evaluation.protocol import PixelStatistics
from aime.ranges import SEED, Range, check_ranges
from aime.threads import threads


@dataclass(frozen=True)
class RSSMTrainingConfig:
    """Settings of the baseline's training.

    Minutes on two cores are one to two thousand steps, so small batches at a high rate: with 32 sequences at 1e-3 it
    took more than 100 steps to leave the plateau of the mean image.
    """

    seconds: Annotated[float, Range(above=0)] = 300.0
    """Budget of the optimisation in seconds of ``clock`` (loading the episodes into memory is not counted)."""
    batch_size: Annotated[int, Range(1, 65536)] = 16
    sequence_length: Annotated[int, Range(1, 65536)] = 16
    learning_rate: Annotated[float, Range(above=0, to=1)] = 1.5e-3
    weight_decay: Annotated[float, Range(0, 1)] = 0.0
    """Of AdamW."""
    warmup_steps: Annotated[int, Range(0, 10**9)] = 50
    grad_clip: Annotated[float, Range(above=0)] = 100.0
    weight_average: Annotated[float, Range(0, below=1)] = 0.99
    """Decay of the exponential moving average of the weights, which is what gets evaluated."""
    seed: Annotated[int, SEED] = 0
    clock: Callable[[], float] = time.process_time
    """What measures the budget: CPU seconds of the process, all threads together."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class TrainedRSSM:
    """The averaged model and what its training amounted to."""

    model: RSSM
    steps: int
    frames: int
    cpu_seconds: float
    history: list[dict[str, float]]
    """Every logged step: step, cpu_seconds, loss, mse, kl."""

    def summary(self) -> dict[str, float]:
        """For metrics.json and evaluation.json."""
        return {
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "steps": self.steps,
            "frames": self.frames,
            "cpu_seconds": self.cpu_seconds,
        }


BASELINES = ("rssm", "rssm_tuned")
"""Rows of the table that are trained."""


def baseline_settings(
    name: str, spec: EpisodeSpec, seconds: float, seed: int = 0
) -> tuple[RSSMConfig, RSSMTrainingConfig]:
    """Model and training of a row of ``BASELINES``, for ``seconds`` CPU seconds.

    Raises:
        ValueError: no such row.
    """
    if name == "rssm":
        sizes = RSSMConfig(image_shape=spec.image_shape, action_size=spec.action_size)
        return sizes, RSSMTrainingConfig(seconds=seconds, seed=seed)
    if name == "rssm_tuned":
        tuned = RSSMConfig.tuned(spec.image_shape, spec.action_size)
        return tuned, RSSMTrainingConfig(seconds=seconds, seed=seed, learning_rate=2e-3, weight_decay=1e-5)
    raise ValueError(f"expected one of the baselines {', '.join(BASELINES)}, found {name!r}")


def learning_rate_at(progress: float, step: int, config: RSSMTrainingConfig) -> float:
    """Linear warm-up over steps, then cosine decay to 2 % over the budget (``progress`` in [0, 1])."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay = 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * warmup * decay


def train_rssm(
    source: EpisodeSource,
    episodes: Sequence[int],
    statistics: PixelStatistics,
    config: RSSMTrainingConfig,
    model_config: RSSMConfig | None = None,
    on_step: Callable[[float], None] | None = None,
) -> TrainedRSSM:
    """Train an RSSM until the budget is spent.

    Args:
        source: where the episodes are.
        episodes: the training split.
        statistics: mean and spread of the pixels of the same split.
        config: budget and optimiser.
        model_config: sizes; by default those of the row ``rssm`` at the source's image and action size.
        on_step: called with the share of the budget spent, for a progress bar.

    Returns:
        The model with averaged weights, in evaluation mode.
    """
    keep_freed_memory()  # as the trainer does: a tenth of a step
    torch.manual_seed(config.seed)
    spec = source.spec
    chosen = model_config or RSSMConfig(image_shape=spec.image_shape, action_size=spec.action_size)
    model = RSSM(chosen).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.set_statistics(statistics)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    length = min(config.sequence_length, *(int(source.lengths[episode]) for episode in episodes))
    generator = torch.Generator().manual_seed(config.seed)
    sampler = WindowSampler(
        cached(source, list(episodes)), config.batch_size, length, episodes=list(episodes), seed=config.seed
    )
    history: list[dict[str, float]] = []
    step, begin, elapsed = 0, config.clock(), 0.0
    with PrefetchLoader(sampler) as batches, threads(1):
        while elapsed < config.seconds or step == 0:
            batch = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(elapsed / config.seconds, step, config)
            loss, parts = model.loss(batch.observations, batch.actions, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            optimizer.step()
            # An early average must not remember the start.
            weight = min(config.weight_average, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - weight)
            step += 1
            elapsed = config.clock() - begin
            if step % 50 == 0 or elapsed >= config.seconds:
                row = {"step": float(step), "cpu_seconds": elapsed, "loss": float(loss.detach())}
                history.append(row | {name: float(value) for name, value in parts.items()})
            if on_step is not None:
                on_step(min(1.0, elapsed / config.seconds))
    frames = step * config.batch_size * length
    return TrainedRSSM(average.eval(), step, frames, elapsed, history)
