"""What the readers of foreign formats share: small arrays held, frames decoded an episode at a time, the last few kept.

Formats that compress whole episodes, or frame by frame, cannot be read at random at speed. `aime convert` makes a file
of our own of them, once; these sources are what it reads, and good enough for a look or a small run.
"""

from __future__ import annotations

import abc
import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aime.data.errors import DataError
from aime.data.layout import check_steps
from aime.data.source import check_window
from aime.data.spec import EpisodeSpec
from aime.data.window import Window

KEPT_BYTES = 256 << 20  # of decoded frames, the last episode aside


@dataclass(frozen=True)
class Steps:
    """Actions (N, A), rewards (N,) and continues (N,) of one episode, float32."""

    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    continues: NDArray[np.float32]


@dataclass(frozen=True)
class Decoded:
    """What is decoded of an episode: frames (at least N, C, H, W) and, where the format has or can draw them, more."""

    frames: NDArray[np.uint8]
    body_ids: NDArray[np.uint8] | None = None
    """(N, H, W) as in `Window`; masks follow from them"""
    physics: NDArray[np.float64] | None = None
    """(N, nq + nv)"""

    @property
    def nbytes(self) -> int:
        """Of memory."""
        return sum(array.nbytes for array in (self.frames, self.body_ids, self.physics) if array is not None)


def checked_steps(path: Path, episode: int, spec: EpisodeSpec, values: Mapping[str, NDArray[Any]]) -> Steps:
    """The small arrays of an episode as float32.

    Raises:
        DataError: of the wrong shape, or with values that are not finite or out of their range.
    """
    length = len(values["actions"])
    shapes = {"actions": (length, spec.action_size), "rewards": (length,), "continues": (length,)}
    for key, shape in shapes.items():
        array = values[key]
        if array.shape != shape or array.dtype.kind not in "biuf" or not length:
            raise DataError(
                path,
                episode=episode,
                key=key,
                expected=f"numbers {shape}, at least one step",
                found=f"{array.dtype} {array.shape}",
            )
    doubles = {key: values[key].astype(np.float64) for key in shapes}
    check_steps(path, episode, spec, doubles)
    single = {key: array.astype(np.float32) for key, array in doubles.items()}
    return Steps(single["actions"], single["rewards"], single["continues"])


def channels_first(path: Path, frames: NDArray[Any], *, episode: int) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) or (T, 3, H, W) as (T, 3, H, W).

    Raises:
        DataError: of another shape or type.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or 3 not in (frames.shape[1], frames.shape[3]):
        raise DataError(
            path,
            episode=episode,
            key="observations",
            expected="uint8 (T, H, W, 3) or (T, 3, H, W)",
            found=f"{frames.dtype} {frames.shape}",
        )
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2)) if frames.shape[3] == 3 else frames


def spec_of(path: Path, frames: NDArray[np.uint8], action_size: int, **known: Any) -> EpisodeSpec:
    """The spec that (T, C, H, W) frames and what else is known make; DataError where a size or name is impossible."""
    channels, height, width = map(int, frames.shape[1:])
    try:
        return EpisodeSpec(image_shape=(channels, height, width), action_size=int(action_size), **known)
    except ValueError as error:
        raise DataError(path, expected="names and sizes that can be used", found=str(error)) from error


class DecodedSource(abc.ABC):
    """Episodes whose frames are decoded whole; a reader defines `_decode`.

    Args:
        path: the file or directory.
        spec: shapes and provenance.
        steps: the small arrays of each episode.
    """

    has_body_masks = has_body_ids = has_physics = False

    def __init__(self, path: Path, spec: EpisodeSpec, steps: Sequence[Steps]) -> None:
        self.path, self.spec, self._steps = path, spec, list(steps)
        self.lengths: NDArray[np.int64] = np.array([len(one.actions) for one in self._steps], np.int64)
        self._kept: collections.OrderedDict[int, Decoded] = collections.OrderedDict()

    @abc.abstractmethod
    def _decode(self, episode: int) -> NDArray[np.uint8] | Decoded:
        """The frames of an episode, (at least N, C, H, W), alone or with what else there is."""

    def _place(self, episode: int) -> Path:  # noqa: ARG002 (of readers of several files)
        """The file that an error about the frames of an episode names."""
        return self.path

    def window(self, episode: int, start: int, length: int) -> Window:
        """Steps ``start`` to ``start + length - 1`` of an episode; IndexError outside of it."""
        check_window(self, episode, start, length)
        decoded, steps, part = self._decoded(episode), self._steps[episode], slice(start, start + length)
        ids = decoded.body_ids[part] if self.has_body_ids and decoded.body_ids is not None else None
        physics = decoded.physics[part] if self.has_physics and decoded.physics is not None else None
        return Window(
            decoded.frames[part],
            steps.actions[part],
            steps.rewards[part],
            steps.continues[part],
            body_masks=None if ids is None else ids > 0,
            physics=None if physics is None else physics.astype(np.float32),
            episode=episode,
            start=start,
            body_ids=ids,
        )

    def _decoded(self, episode: int) -> Decoded:
        if episode in self._kept:
            self._kept.move_to_end(episode)
            return self._kept[episode]
        made = self._decode(episode)
        decoded = made if isinstance(made, Decoded) else Decoded(made)
        frames, length, shape = decoded.frames, int(self.lengths[episode]), self.spec.image_shape
        if frames.dtype != np.uint8 or frames.shape[1:] != shape or len(frames) < length:
            raise DataError(
                self._place(episode),
                episode=episode,
                key="observations",
                expected=f"uint8 ({length}, {', '.join(map(str, shape))})",
                found=f"{frames.dtype} {frames.shape}",
            )
        self._kept[episode] = Decoded(frames[:length], decoded.body_ids, decoded.physics)
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return self._kept[episode]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": collections.OrderedDict()}


def named_in(path: Path) -> dict[str, str]:
    """Domain and task where a part of the path names them, as walker_walk does: {"domain": .., "task": ..} or {}."""
    for part in (path.stem, *reversed(path.parts)):
        for domain in DOMAINS:
            task = part[len(domain) + 1 :]
            if part[: len(domain) + 1] in (f"{domain}_", f"{domain}-") and task.replace("_", "").isalpha():
                return {"domain": domain, "task": task}
    return {}


#: of the Control Suite
DOMAINS = (
    *("acrobot", "ball_in_cup", "cartpole", "cheetah", "dog", "finger", "fish", "hopper", "humanoid", "humanoid_CMU"),
    *("lqr", "manipulator", "pendulum", "point_mass", "quadruped", "reacher", "stacker", "swimmer", "walker"),
)
