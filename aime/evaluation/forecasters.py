"""Everything that can forecast frames, behind one call, so that all are scored by the same code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from einops import rearrange, repeat
from torch import Tensor

from aime.evaluation.baselines.rssm import RSSM
from aime.evaluation.metrics import PEAK


@dataclass(frozen=True)
class Forecast:
    """Frames predicted after the context, on [0, 255].

    ``mean`` (N, Hz, C, H, W) is the predictive mean over the sampled rollouts; ``single`` is the first of them, or
    ``None`` for a forecaster that does not sample.
    """

    mean: Tensor
    single: Tensor | None = None
    rollouts: Tensor | None = None
    """(N, M, Hz, C, H, W), all of them."""
    reward: Tensor | None = None
    """(N, Hz) predicted reward of the action taken at each forecast frame, where the model predicts rewards."""


@dataclass(frozen=True)
class ForecastTask:
    """What a forecaster is given."""

    context: Tensor
    """(N, L, C, H, W) uint8, the observed frames."""
    actions: Tensor
    """(N, L + Hz, A), ``actions[:, t]`` taken after frame t: the context's, then the forecast frames'."""
    samples: int = 16
    """Rollouts to sample."""
    generator: torch.Generator | None = None
    """On the forecaster's device."""

    @property
    def observed(self) -> int:
        """L, frames of context."""
        return int(self.context.shape[1])

    @property
    def horizon(self) -> int:
        """Hz, frames to forecast."""
        return int(self.actions.shape[1]) - self.observed


class Forecaster(Protocol):
    """Predicts the frames after an observed context. Its generator has to be on its ``device``."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def forecast(self, task: ForecastTask) -> Forecast:
        """Forecast the frames after ``task.context``."""
        ...


class CopyLast:
    """Repeats the last observed frame."""

    device = torch.device("cpu")

    def forecast(self, task: ForecastTask) -> Forecast:
        """See :class:`Forecaster`."""
        return Forecast(repeat(task.context[:, -1].float(), "n c h w -> n t c h w", t=task.horizon))


class MeanImage:
    """Always predicts the mean image of the training split."""

    device = torch.device("cpu")

    def __init__(self, mean_image: Tensor) -> None:
        self.mean_image = mean_image

    def forecast(self, task: ForecastTask) -> Forecast:
        """See :class:`Forecaster`."""
        clips = task.context.shape[0]
        return Forecast(repeat(self.mean_image, "c h w -> n t c h w", n=clips, t=task.horizon))


def to_frames(unit: Tensor) -> Tensor:
    """A model's frames in [-1, 1] -> [0, 255], clipped."""
    return ((unit.float() + 1.0) * (PEAK / 2.0)).clamp(0.0, PEAK)


class WorldModelForecaster:
    """AIME's open loop: filter the context, then imagine under the recorded actions.

    Each of the ``samples`` rollouts filters the context with its own posterior draw before it draws from the prior, so
    that the predictive mean integrates over what the context leaves uncertain as well. The state after (o_{L-1},
    a_{L-1}) is handed to ``imagine`` with actions a_L, a_{L+1}, ...; its first frame predicts o_L.
    """

    def __init__(self, model: Any, device: torch.device | str = "cpu") -> None:
        self.model = model
        self.device = torch.device(device)

    def forecast(self, task: ForecastTask) -> Forecast:
        """See :class:`Forecaster`."""
        observed, samples, generator = task.observed, task.samples, task.generator
        frames = repeat(task.context.to(self.device), "n t c h w -> (n s) t c h w", s=samples)
        controls = repeat(task.actions.to(self.device), "n t a -> (n s) t a", s=samples)
        states = self.model.observe(frames, controls[:, :observed], generator=generator)
        imagined = self.model.imagine(
            states.at(observed - 1), controls[:, observed:], horizon=task.horizon, generator=generator
        )
        rollouts = rearrange(to_frames(imagined["observations"]), "(n s) t c h w -> n s t c h w", s=samples)
        rewards = imagined.get("rewards")
        rollouts = rollouts.cpu()
        return Forecast(
            rollouts.mean(1),
            rollouts[:, 0],
            rollouts,
            None if rewards is None else rearrange(rewards, "(n s) t -> n s t", s=samples).mean(1).float().cpu(),
        )


class RSSMForecaster:
    """The RSSM baseline's open loop, sampled in exactly the same way."""

    def __init__(self, model: RSSM) -> None:
        self.model = model
        self.device = model.mean_image.device

    def forecast(self, task: ForecastTask) -> Forecast:
        """See :class:`Forecaster`. The RSSM's state after frame L-1 has not absorbed a_{L-1} yet: imagination does."""
        samples = task.samples
        frames = repeat(task.context.to(self.device), "n t c h w -> (n s) t c h w", s=samples)
        controls = repeat(task.actions.to(self.device), "n t a -> (n s) t a", s=samples)
        states = self.model.observe(frames, controls[:, : task.observed], task.generator)
        imagined = self.model.imagine(states.last(), controls[:, task.observed - 1 : -1], task.generator)
        rollouts = rearrange((imagined * PEAK).clamp(0.0, PEAK), "(n s) t c h w -> n s t c h w", s=samples)
        rollouts = rollouts.cpu()
        return Forecast(rollouts.mean(1), rollouts[:, 0], rollouts)
