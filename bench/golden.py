"""Ray-cast pictures beside MuJoCo's own: the poses, the two renderers, and how a pair of pictures is compared.

Both renderers draw the same mjModel and mjData, so a comparison needs no task class: every task that dm_control loads
can be compared. MuJoCo's picture is the one of `physics.render` (quality "exact" of `ParallelEnvironment`).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aime.envs.extension import gl_displays, load_suite
from aime.envs.raycaster import RayCaster

GEOM = 5  # mujoco.mjtObj.mjOBJ_GEOM
EPISODE_POSES = 8  # poses taken of an episode before the next begins


def benchmark_tasks() -> tuple[tuple[str, str], ...]:
    """The (domain, task) pairs of the Control Suite's benchmark."""
    return tuple(load_suite().BENCHMARKING)


def gl_works() -> bool:
    """Whether this machine can draw the pictures to compare with."""
    return bool(gl_displays())


@dataclass(frozen=True)
class Picture:
    """What a renderer gives for a pose: pixels (H, W, 3) uint8, geom ids (H, W) (-1: none), depth (H, W) in metres."""

    pixels: NDArray[np.uint8]
    segmentation: NDArray[np.int32]
    depth: NDArray[np.float32]


class GLRenderer:
    """MuJoCo's renderer behind dm_control's camera."""

    def __init__(self, physics: Any, size: tuple[int, int], camera: int = 0) -> None:
        # the first context takes seconds, which must not fall into a measurement
        self._camera = importlib.import_module("dm_control.mujoco").Camera(
            physics, height=size[0], width=size[1], camera_id=camera
        )

    def pixels(self) -> NDArray[np.uint8]:
        """The picture of the present pose."""
        return np.array(self._camera.render())  # a copy: the camera draws into one buffer

    def picture(self) -> Picture:
        """The picture, the geom ids and the depth of the present pose."""
        labels = self._camera.render(segmentation=True)
        geoms = np.where(labels[..., 1] == GEOM, labels[..., 0], -1).astype(np.int32)
        return Picture(self.pixels(), geoms, np.array(self._camera.render(depth=True), np.float32))


class RayRenderer:
    """The ray caster on a dm_control physics."""

    def __init__(self, physics: Any, size: tuple[int, int], camera: int = 0, samples: int | None = None) -> None:
        self._physics = physics
        self.caster = RayCaster(physics.model.ptr, size, camera=camera, samples=samples)

    def picture(self) -> Picture:
        """The picture, the geom ids and the depth of the present pose."""
        frame = self.caster.render(self._physics.data.ptr)
        return Picture(frame.pixels, frame.segmentation, frame.depth)


def poses(domain: str, task: str, count: int, seed: int = 0) -> Iterator[Any]:
    """Yield a dm_control physics `count` times, each in another pose that seeded random actions lead to.

    Actions are held for a while, as independent ones hardly move heavy bodies. Episodes begin anew every few poses, so
    that what an episode draws (targets, colours of the scene) varies too.
    """
    environment = load_suite().load(domain, task, task_kwargs={"random": seed})
    generator = np.random.default_rng(seed)
    specification = environment.action_spec()
    for pose in range(count):
        if pose % EPISODE_POSES == 0:
            environment.reset()
        else:
            action = generator.uniform(specification.minimum, specification.maximum)
            for _ in range(int(generator.integers(1, 30))):
                if environment.step(action).last():
                    environment.reset()
        yield environment.physics


@dataclass(frozen=True)
class Fidelity:
    """How near the ray caster's pictures of a task are to MuJoCo's.

    Attributes:
        frames: pictures compared.
        psnr: dB, of the squared error averaged over all pictures and channels.
        psnr_worst: dB, of the worst picture.
        mean_difference: mean |d| of 255.
        changed: share of pixels with a channel off by more than 8 of 255.
        segmentation: share of pixels with the same geom id.
        segmentation_worst: of the worst picture.
        depth: median |d| of the distance, as a share of it, over pixels where both see the same geom; None where there
            are none. The median, since GL's depth is that of one of its samples, not of the pixel's middle.
    """

    frames: int
    psnr: float
    psnr_worst: float
    mean_difference: float
    changed: float
    segmentation: float
    segmentation_worst: float
    depth: float | None


def psnr(squared_error: float) -> float:
    """dB of a mean squared error of values on [0, 255]; infinite for equal pictures."""
    return math.inf if squared_error == 0.0 else 10.0 * math.log10(255.0**2 / squared_error)


def compare(pairs: Iterator[tuple[Picture, Picture]] | list[tuple[Picture, Picture]]) -> Fidelity:
    """Compare pairs (MuJoCo's, ours) of pictures of one task."""
    squares, absolutes, changed, agreements, depths = [], [], [], [], []
    for truth, ours in pairs:
        difference = ours.pixels.astype(np.int32) - truth.pixels
        squares.append(float(np.mean(difference**2)))
        absolutes.append(float(np.abs(difference).mean()))
        changed.append(float((np.abs(difference).max(axis=-1) > 8).mean()))
        same = ours.segmentation == truth.segmentation
        agreements.append(float(same.mean()))
        seen = same & (truth.segmentation >= 0)
        if seen.any():
            depths.append(float(np.median(np.abs(ours.depth / truth.depth - 1)[seen])))
    return Fidelity(
        frames=len(squares),
        psnr=psnr(float(np.mean(squares))),
        psnr_worst=psnr(max(squares)),
        mean_difference=float(np.mean(absolutes)),
        changed=float(np.mean(changed)),
        segmentation=float(np.mean(agreements)),
        segmentation_worst=min(agreements),
        depth=float(np.mean(depths)) if depths else None,
    )


def pairs(
    domain: str, task: str, count: int, size: tuple[int, int] = (64, 64), seed: int = 0, samples: int | None = None
) -> Iterator[tuple[Picture, Picture]]:
    """Both pictures of `count` poses of a task."""
    truth: GLRenderer | None = None
    ours: RayRenderer | None = None
    for physics in poses(domain, task, count, seed):
        if truth is None or ours is None:
            truth, ours = GLRenderer(physics, size), RayRenderer(physics, size, samples=samples)
        yield truth.picture(), ours.picture()
    if truth is not None:
        physics.free()
