"""What environments return and what they save."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


class StepType(enum.IntEnum):
    """The place of a time step in its episode, with dm_env's numbers."""

    FIRST = 0
    MID = 1
    LAST = 2


@dataclass(frozen=True)
class TimeStep:
    """The results of one step of N environments.

    The arrays are views of memory that the environment writes again at the second next step (or reset): use them
    before, or copy them (`copy`).

    Attributes:
        observation: dm_control's observation by name: (N, size) float64, or (N,) where dm_control gives a scalar.
        reward: (N,) float64, the sum over the action repeat; 0 in a first step.
        discount: (N,) float64; 1, except 0 where a physics fault ended the episode.
        step_type: (N,) int8, see `StepType`.
        qpos, qvel: (N, nq), (N, nv) float64, MuJoCo's state.
        pixels: (N, H, W, 3) uint8, or None without `pixels=`.
        segmentation: (N, H, W) int32, the MuJoCo geom id of each pixel, -1 where there is none (sky); None without
            `segmentation=True`. One sample per pixel: edges are sharp.
        body_mask: (N, H, W) bool, True where the geom belongs to a body other than the world; None likewise.
        faults: why the physics of an environment failed in this step, by its index. Its step is LAST with discount 0
            and repeats the last sound observation; the next step begins its new episode.
    """

    observation: Mapping[str, NDArray[np.float64]]
    reward: NDArray[np.float64]
    discount: NDArray[np.float64]
    step_type: NDArray[np.int8]
    qpos: NDArray[np.float64]
    qvel: NDArray[np.float64]
    pixels: NDArray[np.uint8] | None = None
    segmentation: NDArray[np.int32] | None = None
    body_mask: NDArray[np.bool_] | None = None
    faults: Mapping[int, str] = field(default_factory=dict)

    def first(self) -> NDArray[np.bool_]:
        """(N,) which steps begin an episode."""
        return np.equal(self.step_type, StepType.FIRST)

    def last(self) -> NDArray[np.bool_]:
        """(N,) which steps end an episode."""
        return np.equal(self.step_type, StepType.LAST)

    def copy(self) -> TimeStep:
        """The same time step in memory of its own."""
        return TimeStep(
            {name: value.copy() for name, value in self.observation.items()},
            self.reward.copy(),
            self.discount.copy(),
            self.step_type.copy(),
            self.qpos.copy(),
            self.qvel.copy(),
            None if self.pixels is None else self.pixels.copy(),
            None if self.segmentation is None else self.segmentation.copy(),
            None if self.body_mask is None else self.body_mask.copy(),
            dict(self.faults),
        )


@dataclass(frozen=True)
class Joint:
    """One joint of the model and where its numbers stand in `qpos` and `qvel`.

    `limited`: the model bounds its range; a hinge without bounds is an angle that wraps.
    """

    name: str
    kind: str  # "free" | "ball" | "slide" | "hinge"
    qpos_start: int
    qpos_size: int
    qvel_start: int
    qvel_size: int
    limited: bool


@dataclass(frozen=True)
class EnvironmentState:
    """Everything that decides how N environments go on; picklable. Made by `ParallelEnvironment.state`.

    Attributes:
        task: "domain task", checked when it is restored.
        mujoco_version: the library that made it.
        physics: (N, S) float64 in MuJoCo's mjSTATE_INTEGRATION order.
        model_changes: per environment the (offset, bytes) runs in which its episode's model differs.
        random_states: per environment the state of the numpy RandomState that draws its episodes.
        step_count: (N,) control steps of the current episode.
        reward, discount, step_type: (N,) of the time step that was current.
    """

    task: str
    mujoco_version: int
    physics: NDArray[np.float64]
    model_changes: tuple[tuple[tuple[int, bytes], ...], ...]
    random_states: tuple[Any, ...]
    step_count: NDArray[np.int64]
    reward: NDArray[np.float64]
    discount: NDArray[np.float64]
    step_type: NDArray[np.int8]
