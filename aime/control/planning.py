"""A policy that plans each action: a planner, a model, and the bounds of a task's actions."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aime.control.planner import Plan, Planner
from aime.world_model.imaginable import Imaginable, check_imagined


class Policy(Protocol):
    """Whatever acts: an agent, or a planner with a model."""

    def act(self, observation: Any, state: Any = None, explore: bool = False) -> tuple[Tensor, Any]:
        """Actions (B, A) within the task's bounds, and the state to be called with at the next frame.

        Args:
            observation: (B, C, H, W) uint8, the frames of B environments.
            state: what the last call returned; None at the start of an episode.
            explore: act to learn instead of to score.
        """
        ...


@dataclass(frozen=True)
class PlanningState:
    """Between two decisions: the model's state, the plan, and the action taken."""

    model: Any
    plan: Plan
    action: Tensor


@dataclass
class Decisions:
    """What the decisions of a policy took.

    Attributes:
        seconds: wall-clock time of each, of all B environments together: model, search and all.
        cpu_seconds: of the process, all threads together: what a decision takes on a machine of its own.
        iterations: rounds of each search.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    iterations: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Decisions, median and 95th percentile of their milliseconds, median of their CPU's, rounds of a search."""
        if not self.seconds:
            return {}
        milliseconds = 1e3 * np.asarray(self.seconds)
        return {
            "decisions": float(len(milliseconds)),
            "ms_median": float(np.median(milliseconds)),
            "ms_p95": float(np.percentile(milliseconds, 95)),
            "cpu_ms_median": float(1e3 * np.median(self.cpu_seconds)),
            "iterations": float(np.mean(self.iterations)),
        }


class PlanningPolicy:
    """Plans every action anew, starting from the plan of the step before.

    Args:
        model: of rewards.
        planner: searches in [-1, 1]; actions are scaled to the bounds.
        minimum, maximum: (A,) bounds of an action.
        discount: of rewards along a plan.
        seed: of the search.

    Raises:
        ValueError: a bound that is not finite: there is nothing to scale [-1, 1] to.
    """

    def __init__(
        self,
        model: Imaginable,
        planner: Planner,
        minimum: NDArray[np.floating[Any]],
        maximum: NDArray[np.floating[Any]],
        *,
        discount: float = 1.0,
        seed: int = 0,
    ) -> None:
        low, high = (torch.as_tensor(np.asarray(bound), dtype=torch.float32) for bound in (minimum, maximum))
        if not bool(low.isfinite().all() and high.isfinite().all()):
            raise ValueError(f"actions: expected finite bounds to plan within, found {minimum} to {maximum}")
        self.model, self.planner, self.discount = model, planner, discount
        self.middle, self.half = (low + high) / 2, (high - low) / 2
        self.generator = torch.Generator().manual_seed(seed)
        self.decisions = Decisions()

    @torch.no_grad()
    def act(
        self, observation: Any, state: PlanningState | None = None, explore: bool = False
    ) -> tuple[Tensor, PlanningState]:
        """See `Policy.act`; the observation is what the model observes: frames (B, C, H, W), or a simulator's state."""
        begin, cpu = time.perf_counter(), time.process_time()
        if isinstance(observation, Tensor):
            batch, frames = len(observation), observation[:, None]  # (B, 1, C, H, W)
        else:
            batch, frames = len(observation.physics), observation
        before = torch.zeros(batch, len(self.middle)) if state is None else state.action  # (B, A)
        known = self.model.observe(
            frames, before[:, None], None if state is None else state.model, generator=self.generator
        )

        def score(candidates: Tensor) -> Tensor:  # (B, N, H, A) -> (B, N)
            imagined = self.model.imagine(known, self._scaled(candidates), generator=self.generator)
            check_imagined(imagined, *candidates.shape[:3])
            return imagined.returns(self.discount)

        plan = self.planner.plan(
            score, batch, None if state is None else state.plan, explore=explore, generator=self.generator
        )
        action = self._scaled(plan.action)
        self.decisions.seconds.append(time.perf_counter() - begin)
        self.decisions.cpu_seconds.append(time.process_time() - cpu)
        self.decisions.iterations.append(plan.iterations)
        return action, PlanningState(known, plan, action)

    def _scaled(self, actions: Tensor) -> Tensor:
        """From [-1, 1] to the bounds."""
        return self.middle + self.half * actions
