"""What environments return and what they save."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray


class StepType(enum.IntEnum):
    """The place of a time step in its episode, with dm_env's numbers."""

    FIRST = 0
    MID = 1
    LAST = 2


T = TypeVar("T")


def _copy(value: T) -> T:
    """`value` with memory of its own: arrays, mappings and dataclasses of them."""
    copied: Any = value
    if isinstance(value, np.ndarray):
        copied = value.copy()
    elif isinstance(value, Mapping):
        copied = {key: _copy(entry) for key, entry in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        copied = type(value)(**{entry.name: _copy(getattr(value, entry.name)) for entry in fields(value)})
    return cast(T, copied)


@dataclass(frozen=True)
class FinalObservation:
    """The last observation of the episodes that ended in a step with autoreset "same_step".

    Attributes:
        mask: (N,) bool, the rows that hold one; the others are of no meaning.
        observation, qpos, qvel, pixels, segmentation, body_mask, depth: as in `TimeStep`.
    """

    mask: NDArray[np.bool_]
    observation: Mapping[str, NDArray[np.floating[Any]]]
    qpos: NDArray[np.floating[Any]]
    qvel: NDArray[np.floating[Any]]
    pixels: NDArray[np.uint8] | None = None
    segmentation: NDArray[np.int32] | None = None
    body_mask: NDArray[np.bool_] | None = None
    depth: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class TimeStep:
    """The results of one step of N environments.

    The arrays are views of memory that the environment writes again at the second next step (or reset): use them
    before, or copy them (`copy`). A result of `recv` has `batch_size` rows and lasts until the second next `recv`.

    Attributes:
        observation: dm_control's observation by name: (N, size), or (N,) where dm_control gives a scalar; float64, or
            the environment's `dtype`.
        reward: (N,) float64, the sum over the action repeat; 0 in a first step.
        discount: (N,) float64; 1, except 0 where a physics fault ended the episode.
        step_type: (N,) int8, see `StepType`.
        qpos, qvel: (N, nq), (N, nv) MuJoCo's state; float64, or the environment's `dtype`.
        pixels: (N, H, W, 3) uint8, (N, k, H, W, 3) with a frame stack of k, or None without `pixels=`.
        segmentation: (N, H, W) int32, the MuJoCo geom id of each pixel, -1 where there is none (sky); None without
            `segmentation=True`. One sample per pixel: edges are sharp.
        body_mask: (N, H, W) bool, True where the geom belongs to a body other than the world; None likewise.
        depth: (N, H, W) float32, metres along the camera's axis to what each pixel shows; where there is nothing, the
            far end of what MuJoCo draws. None without `depth=True`.
        faults: why the physics of an environment failed in this step, by its index. Its step is LAST with discount 0
            and repeats the last sound observation; the next step begins its new episode.
        env_id: (N,) int32, the environment of each row: 0 ... N - 1, except from `recv`.
        final: with autoreset "same_step" the final observations; None otherwise.
    """

    observation: Mapping[str, NDArray[np.floating[Any]]]
    reward: NDArray[np.float64]
    discount: NDArray[np.float64]
    step_type: NDArray[np.int8]
    qpos: NDArray[np.floating[Any]]
    qvel: NDArray[np.floating[Any]]
    pixels: NDArray[np.uint8] | None = None
    segmentation: NDArray[np.int32] | None = None
    body_mask: NDArray[np.bool_] | None = None
    depth: NDArray[np.float32] | None = None
    faults: Mapping[int, str] = field(default_factory=dict)
    env_id: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    final: FinalObservation | None = None

    def first(self) -> NDArray[np.bool_]:
        """(N,) which steps begin an episode."""
        return np.equal(self.step_type, StepType.FIRST)

    def last(self) -> NDArray[np.bool_]:
        """(N,) which steps end an episode."""
        return np.equal(self.step_type, StepType.LAST)

    def copy(self) -> TimeStep:
        """The same time step in memory of its own."""
        return _copy(self)


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
        physics: (N, S) float64 in MuJoCo's mjSTATE_INTEGRATION order, then its sensors.
        model_changes: per environment the (offset, bytes) runs in which its episode's model differs.
        random_states: per environment the state of the numpy RandomState that draws its episodes.
        step_count: (N,) control steps of the current episode.
        reward, discount, step_type: (N,) of the time step that was current.
        frames: (N, k, H, W, 3) with a frame stack of k, else None.
        fields: per environment the model fields that were set, and the state of the generator that randomises them.
        task_states: per environment the pickled attributes of a task in Python; empty for tasks in C++.
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
    frames: NDArray[np.uint8] | None = None
    fields: tuple[tuple[Mapping[str, NDArray[np.floating[Any]]], Any], ...] = ()
    task_states: tuple[bytes, ...] = ()
