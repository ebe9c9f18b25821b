"""Small MuJoCo scenes and what a pinhole camera sees of them in closed form."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aime.envs.extension import load_suite
from aime.envs.raycaster import Frame, RayCaster

Array = NDArray[np.float64]


def load(xml: str) -> Any:
    """A dm_control physics of the scene, its positions up to date."""
    load_suite()
    return importlib.import_module("dm_control.mujoco").Physics.from_xml_string(xml)


def cast(physics: Any, size: tuple[int, int], **options: Any) -> Frame:
    """The ray caster's picture of a physics."""
    return RayCaster(physics.model.ptr, size, **options).render(physics.data.ptr)


def scene(
    worldbody: str,
    *,
    camera: str = "pos='0 -5 0' xyaxes='1 0 0 0 0 1'",
    fovy: float = 45.0,
    headlight: str = "ambient='.4 .4 .4' diffuse='.6 .6 .6' specular='0 0 0'",
    asset: str = "",
    visual: str = "",
) -> str:
    """An MJCF text with one camera; by default it looks along +y, x to the right, z up."""
    return (
        f"<mujoco><visual><headlight {headlight}/>{visual}</visual><asset>{asset}</asset>"
        f"<worldbody><camera name='eye' {camera} fovy='{fovy}'/>{worldbody}</worldbody></mujoco>"
    )


@dataclass(frozen=True)
class Rays:
    """A ray through the middle of each pixel: origin (3,), direction (H, W, 3) of length 1 along the camera's axis."""

    origin: Array
    direction: Array


def rays(physics: Any, size: tuple[int, int]) -> Rays:
    """The rays of the scene's first camera."""
    height, width = size
    half = np.tan(np.radians(physics.model.cam_fovy[0]) / 2)
    right, up, back = np.asarray(physics.data.cam_xmat[0]).reshape(3, 3).T
    x = (np.arange(width) + 0.5 - width / 2) / (height / 2) * half
    y = (height / 2 - np.arange(height) - 0.5) / (height / 2) * half
    direction = x[None, :, None] * right + y[:, None, None] * up - back
    return Rays(np.array(physics.data.cam_xpos[0]), direction)


def distance(physics: Any, geom: int, sight: Rays) -> Array:
    """(H, W) depth of the geom's surface along each ray; infinite where the ray misses it."""
    rotation = np.asarray(physics.data.geom_xmat[geom]).reshape(3, 3)
    origin = rotation.T @ (sight.origin - physics.data.geom_xpos[geom])
    direction = sight.direction @ rotation
    size = physics.model.geom_size[geom]
    kind = int(physics.model.geom_type[geom])
    if kind == 0:
        return _plane(origin, direction, size)
    if kind == 2:
        return _quadric(origin, direction, np.full(3, size[0]))
    if kind == 3:
        ends = [_quadric(origin - [0, 0, z], direction, np.full(3, size[0])) for z in (size[1], -size[1])]
        return np.minimum(_tube(origin, direction, size[0], size[1]), np.minimum(*ends))
    if kind == 4:
        return _quadric(origin, direction, size)
    if kind == 5:
        lids = [_disk(origin, direction, size[0], z) for z in (size[1], -size[1])]
        return np.minimum(_tube(origin, direction, size[0], size[1]), np.minimum(*lids))
    assert kind == 6
    return _box(origin, direction, size)


def _plane(origin: Array, direction: Array, size: Array) -> Array:
    with np.errstate(divide="ignore"):
        t = -origin[2] / direction[..., 2]
    hit = origin + t[..., None] * direction
    inside = (np.abs(hit[..., :2]) <= np.where(size[:2] > 0, size[:2], np.inf)).all(-1)
    return np.where((t > 0) & (origin[2] > 0) & inside, t, np.inf)


def _quadric(origin: Array, direction: Array, radii: Array) -> Array:
    o, d = origin / radii, direction / radii
    a, b, c = (d * d).sum(-1), d @ o, o @ o - 1
    root = b * b - a * c
    t = (-b - np.sqrt(np.maximum(root, 0))) / a
    return np.where((root > 0) & (t > 0), t, np.inf)


def _tube(origin: Array, direction: Array, radius: float, half: float) -> Array:
    o, d = origin[:2], direction[..., :2]
    a, b, c = (d * d).sum(-1), d @ o, o @ o - radius * radius
    root = b * b - a * c
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (-b - np.sqrt(np.maximum(root, 0))) / a
        inside = np.abs(origin[2] + t * direction[..., 2]) <= half
    return np.where((root > 0) & (t > 0) & inside, t, np.inf)


def _disk(origin: Array, direction: Array, radius: float, height: float) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (height - origin[2]) / direction[..., 2]
        hit = origin[:2] + t[..., None] * direction[..., :2]
        return np.where((t > 0) & ((hit * hit).sum(-1) <= radius * radius), t, np.inf)


def _box(origin: Array, direction: Array, size: Array) -> Array:
    with np.errstate(divide="ignore"):
        sides = np.stack([(-size - origin) / direction, (size - origin) / direction])
    near, far = sides.min(0).max(-1), sides.max(0).min(-1)
    return np.where((near < far) & (near > 0), near, np.inf)
