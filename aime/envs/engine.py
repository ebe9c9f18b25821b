"""What steps the environments behind `ParallelEnvironment`: one protocol, and what every engine tells of its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aime.envs.time_step import EnvironmentState, Joint, TimeStep

#: Actions computed in float32 may pass a bound by its last bit.
RANGE_SLACK = 1e-6


@dataclass(frozen=True)
class Description:
    """What an engine found when it loaded the task.

    Attributes:
        num_threads, num_processes: that work.
        camera: its index in the model.
        samples: rays a pixel of the ray caster; None for OpenGL.
        action_minimum, action_maximum: (A,) bounds of an action.
        control_timestep: simulated seconds of one step, its repeats included.
        joints: of the model.
        observation_shapes: the shape of each observation of one environment.
        mujoco_version: of the library, 3017000 for 3.17.0.
        begins_in_cpp: whether the extension begins the episodes.
    """

    num_threads: int
    num_processes: int
    camera: int
    samples: int | None
    action_minimum: NDArray[np.float64]
    action_maximum: NDArray[np.float64]
    control_timestep: float
    joints: tuple[Joint, ...]
    observation_shapes: dict[str, tuple[int, ...]]
    mujoco_version: int
    begins_in_cpp: bool


class Engine(Protocol):
    """N environments that step. `ParallelEnvironment` checks ids, seeds and the form of actions before it calls.

    A method that raises ValueError has changed nothing. RuntimeError: closed, used by another thread or in the child of
    a fork, or a call out of order; the environments can go on, unless it says that they are closed.
    """

    @property
    def description(self) -> Description:
        """What was loaded."""

    @property
    def suite_environment(self) -> Any:
        """A dm_control environment of the task, for its specs."""

    def reset(self, ids: Sequence[int] | None, seeds: Mapping[int, int]) -> TimeStep:
        """Begin episodes in `ids` (None: all, also those in flight), of the new `seeds` of some of them."""

    def step(self, actions: NDArray[np.float64]) -> TimeStep:
        """All environments take (N, A) actions; ValueError for one out of its bounds."""

    def send(self, actions: NDArray[np.float64], ids: Sequence[int]) -> None:
        """The environments `ids` take (len(ids), A) actions; returns at once."""

    def recv(self) -> TimeStep:
        """The first `batch_size` results."""

    def set_model_field(self, name: str, values: ArrayLike, ids: Sequence[int]) -> None:
        """Set a field of the models of `ids`."""

    def model_field(self, name: str) -> NDArray[np.floating[Any]]:
        """The task's own values of a field."""

    def state(self) -> EnvironmentState:
        """All that decides how the environments go on."""

    def check_state(self, state: EnvironmentState) -> None:
        """ValueError where `set_state` could not take the whole of `state`."""

    def set_state(self, state: EnvironmentState) -> TimeStep:
        """Go on from a state that `check_state` let pass."""

    def renderer(self) -> str:
        """What each thread has drawn with."""

    def close(self) -> None:
        """End threads and processes; RuntimeError while another thread uses the engine."""
