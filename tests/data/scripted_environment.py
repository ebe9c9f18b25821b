"""A batch of environments with the face of `aime.envs.ParallelEnvironment`, whose pictures tell step and action."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ScriptedStep:
    reward: NDArray[np.float64]
    discount: NDArray[np.float64]
    step_type: NDArray[np.int8]
    qpos: NDArray[np.float64]
    qvel: NDArray[np.float64]
    pixels: NDArray[np.uint8] | None
    body_mask: NDArray[np.bool_] | None
    segmentation: NDArray[np.int32] | None
    faults: dict[int, str] = field(default_factory=dict)


class ScriptedEnvironment:
    """State of environment i: the step counter (qpos) and the last action applied (qvel), both drawn into the frame.

    Channel 0 shows the counter, channel 1 the last action in percent, channel 2 the environment's number. The reward of
    an action is the action itself plus the counter of the frame before it. Environment i's episode ends after
    ``ends[i]`` steps (autoreset next_step), with discount 0; at ``faults[i]`` its physics fails. Geom
    counter % 4 - 1 fills the picture.
    The arrays are written again at every step, as the native environment's are.
    """

    def __init__(self, num_envs: int, ends: dict[int, int] | None = None, faults: dict[int, int] | None = None) -> None:
        self.num_envs = num_envs
        self.seeds = tuple(range(100, 100 + num_envs))
        self.action_minimum, self.action_maximum = np.array([-1.0]), np.array([1.0])
        self.ends, self.fault_at = ends or {}, faults or {}
        self.clock = np.zeros(num_envs, np.int64)
        self.applied = np.zeros(num_envs)
        self.ended = np.zeros(num_envs, np.bool_)
        self.rounds = 0
        self.applied_actions: list[NDArray[np.float32]] = []
        self._frames = np.zeros((num_envs, 6, 5, 3), np.uint8)
        self._masks = np.zeros((num_envs, 6, 5), np.bool_)
        self._geoms = np.zeros((num_envs, 6, 5), np.int32)
        self._qpos = np.zeros((num_envs, 1))

    def reset(self) -> ScriptedStep:
        self.clock[:], self.applied[:], self.ended[:] = 0, 0, False
        self.rounds += 1
        return self._step(np.zeros(self.num_envs), np.zeros(self.num_envs, np.int8), {})

    def step(self, actions: NDArray[np.float32]) -> ScriptedStep:
        assert actions.shape == (self.num_envs, 1)
        self.applied_actions.append(actions.copy())
        first = self.ended.copy()
        reward = np.where(first, 0.0, actions[:, 0] + self.clock)
        self.clock = np.where(first, 0, self.clock + 1)
        self.applied = np.where(first, 0.0, actions[:, 0])
        faults = {i: "NaN" for i, at in self.fault_at.items() if self.clock[i] == at and self.rounds == 1}
        last = np.array([self.clock[i] == self.ends.get(i, -1) or i in faults for i in range(self.num_envs)])
        self.ended = last
        return self._step(reward, np.where(first, 0, np.where(last, 2, 1)).astype(np.int8), faults)

    def _step(self, reward: NDArray[np.float64], kind: NDArray[np.int8], faults: dict[int, str]) -> ScriptedStep:
        self._frames[..., 0] = self.clock[:, None, None]
        self._frames[..., 1] = np.round(100 + 100 * self.applied)[:, None, None]
        self._frames[..., 2] = np.arange(self.num_envs)[:, None, None]
        self._masks[:] = (self.clock % 2 == 1)[:, None, None]
        self._geoms[:] = (self.clock % 4 - 1)[:, None, None]
        self._qpos[:, 0] = self.clock
        discount = np.where(kind == 2, 0.0, 1.0)
        return ScriptedStep(
            reward,
            discount,
            kind,
            self._qpos,
            self.applied[:, None].copy(),
            self._frames,
            self._masks,
            self._geoms,
            faults,
        )
