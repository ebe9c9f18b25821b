"""Plays episodes in a batch of environments and records them, frame and action aligned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aime.data.hdf5_writer import Episode
from aime.data.policies import Policy

FIRST, LAST = 0, 2  # dm_env's step types


class BatchTimeStep(Protocol):
    """What recording reads of a step of N environments; `aime.envs.TimeStep` has it."""

    @property
    def reward(self) -> NDArray[np.float64]: ...
    @property
    def discount(self) -> NDArray[np.float64]: ...
    @property
    def step_type(self) -> NDArray[np.int8]: ...
    @property
    def qpos(self) -> NDArray[np.floating[Any]]: ...
    @property
    def qvel(self) -> NDArray[np.floating[Any]]: ...
    @property
    def pixels(self) -> NDArray[np.uint8] | None: ...
    @property
    def segmentation(self) -> NDArray[np.int32] | None: ...
    @property
    def body_mask(self) -> NDArray[np.bool_] | None: ...
    @property
    def faults(self) -> Mapping[int, str]: ...


class BatchEnvironment(Protocol):
    """What recording needs of N environments; `aime.envs.ParallelEnvironment` has it."""

    @property
    def num_envs(self) -> int: ...
    @property
    def seeds(self) -> Sequence[int]: ...
    @property
    def action_minimum(self) -> NDArray[np.float64]: ...
    @property
    def action_maximum(self) -> NDArray[np.float64]: ...
    def reset(self) -> BatchTimeStep: ...
    def step(self, actions: Any) -> BatchTimeStep: ...


@dataclass
class _Track:
    """The steps of one environment's episode, while it is played."""

    frames: list[NDArray[np.uint8]] = field(default_factory=list)
    masks: list[NDArray[np.bool_]] = field(default_factory=list)
    ids: list[NDArray[np.uint8]] = field(default_factory=list)
    physics: list[NDArray[np.float64]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    continues: list[float] = field(default_factory=list)
    done: bool = False
    fault: str | None = None


class Recorder:
    """Plays rounds of N episodes and yields them one by one.

    Args:
        environment: N environments with pixels; its autoreset is next_step.
        policy: draws the actions.
        steps: an episode's length at most; it ends earlier where the task does.
        seed: of the policy. Episode i takes its actions from the generator seeded with (seed, i).
        body_of_geom: (geoms + 1,) uint8, the id to store where a geom is seen, and last the one where none is; ids are
            stored where this is given, and the environment then has a segmentation.
        on_step: called after each batch step with the number of environments that still record.

    Attributes:
        faults: (episode, reason) of each episode dropped because its physics failed.
    """

    def __init__(
        self,
        environment: BatchEnvironment,
        policy: Policy,
        *,
        steps: int,
        seed: int,
        body_of_geom: NDArray[np.uint8] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, found {steps}")
        self.environment, self.policy, self.steps, self.seed, self.on_step = environment, policy, steps, seed, on_step
        self.body_of_geom = body_of_geom
        self.faults: list[tuple[int, str]] = []
        self._resets = [0] * environment.num_envs
        self._drawn = 0

    def episodes(self, count: int) -> Iterator[Episode]:
        """Yield ``count`` sound episodes; the environments of a round finish together.

        Raises:
            RuntimeError: the physics failed in every episode of a round.
        """
        made = 0
        while made < count:
            sound = 0
            for episode in self._round():
                sound += 1
                if made < count:
                    made += 1
                    yield episode
            if not sound:
                raise RuntimeError(f"the physics failed in every episode of a round: {self.faults[-1][1]}")

    def _round(self) -> Iterator[Episode]:
        environment = self.environment
        count = environment.num_envs
        drawn = [self._draw_actions(self._drawn + i) for i in range(count)]
        numbers = range(self._drawn, self._drawn + count)
        self._drawn += count
        tracks = [_Track() for _ in range(count)]
        reset_index = list(self._resets)
        step = environment.reset()
        self._resets = [n + 1 for n in self._resets]
        for t in range(self.steps):
            self._observe(tracks, step)
            step = environment.step(np.stack([actions[t] for actions, _ in drawn]))
            self._follow(tracks, step)
            if self.on_step is not None:
                self.on_step(sum(not track.done for track in tracks))
            if all(track.done for track in tracks):
                break
        for i, track in enumerate(tracks):
            if track.fault is not None:
                self.faults.append((numbers[i], track.fault))
                continue
            length = len(track.rewards)
            yield Episode(
                observations=np.ascontiguousarray(np.stack(track.frames).transpose(0, 3, 1, 2)),  # (N, C, H, W)
                actions=drawn[i][0][:length],
                rewards=np.array(track.rewards, np.float32),
                continues=np.array(track.continues, np.float32),
                physics=np.stack(track.physics),
                body_masks=np.stack(track.masks) if track.masks else None,
                body_ids=np.stack(track.ids) if track.ids else None,
                seed=environment.seeds[i],
                reset_index=reset_index[i],
                policy_parameters=drawn[i][1],
            )

    def _draw_actions(self, episode: int) -> tuple[NDArray[np.float32], tuple[float, ...]]:
        generator = np.random.default_rng((self.seed, episode))
        return self.policy.actions(
            generator, self.steps, self.environment.action_minimum, self.environment.action_maximum
        )

    def _observe(self, tracks: list[_Track], step: BatchTimeStep) -> None:
        """Record o_t and its state for every episode that goes on (copies: the environment reuses its memory)."""
        if step.pixels is None:
            raise ValueError("recording needs an environment with pixels")
        for i, track in enumerate(tracks):
            if track.done:
                continue
            track.frames.append(step.pixels[i].copy())
            track.physics.append(np.concatenate([step.qpos[i], step.qvel[i]]))
            if step.body_mask is not None:
                track.masks.append(step.body_mask[i].copy())
            if self.body_of_geom is not None:
                if step.segmentation is None:
                    raise ValueError("recording ids of bodies needs an environment with a segmentation")
                track.ids.append(self.body_of_geom[step.segmentation[i]])  # -1, no geom, is the last entry

    def _follow(self, tracks: list[_Track], step: BatchTimeStep) -> None:
        """Record what a_t led to: r_t and the discount."""
        for i, track in enumerate(tracks):
            if step.step_type[i] == FIRST:  # an environment that finished early has begun another episode by itself
                self._resets[i] += 1
            if track.done:
                continue
            track.rewards.append(float(step.reward[i]))
            track.continues.append(float(step.discount[i]))
            track.fault = step.faults.get(i)
            track.done = step.step_type[i] == LAST


def bodies_of(environment: Any) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Names of the bodies, the world's apart, that own a geom; and the id of each geom's body, 0 for the world's.

    The second is (geoms + 1,), its last entry for pixels without a geom: body i of the first has id i + 1.

    Args:
        environment: `aime.envs.ParallelEnvironment`.

    Raises:
        ValueError: more bodies than bytes can tell apart.
    """
    model = environment.suite_environment.physics.model
    owners = [int(body) for body in model.geom_bodyid]
    bodies = sorted({body for body in owners if body})
    ids = {0: 0} | {body: i + 1 for i, body in enumerate(bodies)}
    if len(bodies) > np.iinfo(np.uint8).max:
        raise ValueError(f"masks: expected a model of at most 255 bodies, found {len(bodies)}")
    names = tuple(model.id2name(body, "body") or f"body_{body}" for body in bodies)
    return names, np.array([ids[body] for body in owners] + [0], np.uint8)
