"""Whole episodes, step by step: N environments begin together, and it is over when the last of them has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aime.envs import ParallelEnvironment
from aime.envs.time_step import TimeStep

View = Callable[[ParallelEnvironment, TimeStep], Any]
"""What is shown of a step to who acts."""
Act = Callable[[Any, Any], tuple[Tensor, Any]]
"""What is shown of N environments, and what the last call returned -> actions (N, A), and the same again."""


def frames_of(environment: ParallelEnvironment, step: TimeStep) -> Tensor:
    """The pictures, (N, C, H, W) uint8."""
    del environment
    assert step.pixels is not None
    return torch.from_numpy(np.ascontiguousarray(step.pixels.transpose(0, 3, 1, 2)))


def observations_of(environment: ParallelEnvironment, step: TimeStep) -> Tensor:
    """Every entry of the task's own observation in its order, (N, O) float32."""
    del environment
    parts = [np.asarray(value).reshape(len(step.reward), -1) for value in step.observation.values()]
    return torch.from_numpy(np.concatenate(parts, 1).astype(np.float32))


def state_of(environment: ParallelEnvironment, step: TimeStep) -> Any:
    """The state of the physics, for a policy that has the simulator as its model."""
    del step
    return environment.state()


@dataclass(frozen=True)
class Moment:
    """One decision of N environments and what came of it.

    Attributes:
        shown: what the actions were chosen by.
        picture: (N, H, W, 3) uint8 of the same moment, a copy; None where nothing is drawn.
        actions: (N, A) float32 that were taken, within the bounds.
        step: what they led to.
        live: (N,) whose episode was going on. The others' rows mean nothing.
        faults: by environment, why the physics ended its episode here.
    """

    shown: Any
    picture: NDArray[np.uint8] | None
    actions: NDArray[np.float32]
    step: TimeStep
    live: NDArray[np.bool_]
    faults: dict[int, str]


def moments(
    environment: ParallelEnvironment, act: Act, view: View, seeds: Sequence[int] | None = None
) -> Iterator[Moment]:
    """Play one episode in each environment; yields every decision until all episodes have ended.

    Args:
        environment: with autoreset "next_step".
        act: chooses the actions; it is given None first.
        view: what it is shown.
        seeds: (N,) of the episodes; None goes on with the environment's own.
    """
    step, state = environment.reset(seed=None if seeds is None else list(seeds)), None
    live = np.ones(environment.num_envs, bool)
    low, high = environment.action_minimum, environment.action_maximum
    while live.any():
        shown, picture = view(environment, step), step.pixels
        chosen, state = act(shown, state)
        # a bound may be passed by a rounding of the scaling, in float32, and again where that is widened to float64
        actions = np.clip(chosen.cpu().numpy(), low.astype(np.float32), high.astype(np.float32))
        picture = None if picture is None else picture.copy()
        step = environment.step(np.clip(actions.astype(np.float64), low, high))
        yield Moment(shown, picture, actions, step, live.copy(), {i: why for i, why in step.faults.items() if live[i]})
        live &= step.step_type != 2
