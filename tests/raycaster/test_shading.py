"""Light, shadow, transparency and reflection where their colours are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from tests.raycaster.scenes import Array, Rays, cast, distance, load, rays, scene

AMBIENT_ONLY = "ambient='1 1 1' diffuse='0 0 0' specular='0 0 0'"
DIM = "ambient='.3 .3 .3' diffuse='0 0 0' specular='0 0 0'"
FROM_ABOVE = "pos='0 -4 5' xyaxes='1 0 0 0 .78 .62'"
SIZE = (96, 128)


def eroded(mask: np.ndarray) -> np.ndarray:
    """The mask without two pixels along its edge, where pictures are smoothed."""
    inner = np.pad(mask, 2)[2:-2, 2:-2]
    for axis in (0, 1):
        for shift in (-2, -1, 1, 2):
            inner = inner & np.roll(mask, shift, axis)
    return inner


def shadowed(physics: object, floor: int, caster: int, towards_light: Array) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the floor whose way to the light the caster blocks, and those where it is free (edges in neither)."""
    sight = rays(physics, SIZE)
    depth = distance(physics, floor, sight)
    visible = np.isfinite(depth) & ~np.isfinite(distance(physics, caster, sight))
    points = sight.origin + np.where(np.isfinite(depth), depth, 0)[..., None] * sight.direction
    blocked = np.zeros(SIZE, bool)
    for row, column in np.argwhere(visible):
        ray = Rays(points[row, column], towards_light[None, None])
        blocked[row, column] = np.isfinite(distance(physics, caster, ray)).item()
    return eroded(visible & blocked), eroded(visible & ~blocked)


@pytest.mark.parametrize("direction", [(0.0, 0.0, -1.0), (0.5, 0.2, -1.0)])
@pytest.mark.parametrize("shape", ["type='sphere' size='.5'", "type='box' size='.5 .3 .2' euler='20 30 0'"])
def test_shadows_lie_where_the_light_is_blocked(shape: str, direction: tuple[float, float, float]) -> None:
    towards = " ".join(map(str, direction))
    light = f"<light directional='true' pos='0 0 4' dir='{towards}' diffuse='.6 .6 .6' specular='0 0 0'/>"
    floor = "<geom name='floor' type='plane' size='4 4 .1' rgba='1 1 1 1'/>"
    physics = load(scene(f"{light}{floor}<geom {shape} pos='0 .3 1.2'/>", camera=FROM_ABOVE, headlight=DIM))
    frame = cast(physics, SIZE)
    inner, outer = shadowed(physics, 0, 1, -np.array(direction))
    assert inner.sum() > 50
    grey = frame.pixels.astype(int).mean(-1)
    slope = 1 / np.linalg.norm(direction)
    # material: ambient .3 of the headlight everywhere, and the light's .6 times the cosine where it arrives
    np.testing.assert_allclose(grey[inner], 255 * 0.3, atol=3)
    np.testing.assert_allclose(grey[outer], 255 * (0.3 + 0.6 * slope), atol=3)


def test_a_light_that_casts_no_shadow_lights_everything() -> None:
    body = (
        "<light directional='true' castshadow='false' pos='0 0 4' dir='0 0 -1' diffuse='.6 .6 .6' specular='0 0 0'/>"
        "<geom type='plane' size='4 4 .1' rgba='1 1 1 1'/><geom size='.5' pos='0 .3 1.2'/>"
    )
    frame = cast(load(scene(body, camera=FROM_ABOVE, headlight=DIM)), SIZE)
    np.testing.assert_allclose(frame.pixels[eroded(frame.segmentation == 0)].astype(int), 255 * 0.9, atol=2)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_transparent_geoms_let_the_colour_behind_through(alpha: float) -> None:
    wall = "<geom type='box' size='3 .1 3' pos='0 2 0' rgba='0 .2 1 1'/>"
    glass = f"<geom type='box' size='.5 .1 .5' rgba='1 .4 0 {alpha}'/>"
    frame = cast(load(scene(wall + glass, headlight=AMBIENT_ONLY)), (33, 33))
    behind = (1 - alpha) ** 2  # MuJoCo blends every transparent geom twice, front to back and back to front
    expected = 255 * ((1 - behind) * np.array([1, 0.4, 0]) + behind * np.array([0, 0.2, 1]))
    np.testing.assert_allclose(frame.pixels[16, 16], expected, atol=2)
    np.testing.assert_allclose(frame.pixels[2, 2], 255 * np.array([0, 0.2, 1]), atol=1)


def test_an_invisible_geom_is_not_drawn() -> None:
    frame = cast(load(scene("<geom size='1' rgba='1 0 0 0'/><geom size='.3' pos='0 3 0' rgba='0 1 0 1'/>")), (33, 33))
    assert frame.segmentation[16, 16] == 1


def test_emission_and_material_colour() -> None:
    asset = "<material name='m' rgba='.5 .25 .125 1' emission='.5'/>"
    physics = load(scene("<geom size='1' material='m'/>", asset=asset, headlight=DIM))
    # emission * rgba + ambient of the headlight * rgba
    np.testing.assert_allclose(cast(physics, (33, 33)).pixels[16, 16], 255 * 0.8 * np.array([0.5, 0.25, 0.125]), atol=1)


def test_headlight_shades_a_sphere_by_the_cosine_to_the_viewer() -> None:
    headlight = "ambient='0 0 0' diffuse='1 1 1' specular='0 0 0'"
    physics = load(scene("<geom size='1' rgba='1 1 1 1'/>", headlight=headlight, fovy=20))
    frame, sight = cast(physics, SIZE), rays(physics, SIZE)
    depth = distance(physics, 0, sight)
    seen = np.isfinite(depth)
    points = sight.origin + np.where(seen, depth, 1)[..., None] * sight.direction
    cosine = points @ np.array([0.0, -1.0, 0.0])  # of the unit sphere's normal to the headlight, which looks along +y
    inside = seen & (cosine > 0.4)  # the edge is smoothed
    to_viewer = (points * (sight.origin - points)).sum(-1) / np.linalg.norm(sight.origin - points, axis=-1)
    grey = frame.pixels[..., 0].astype(float) / 255
    error = min(np.abs(grey - cosine)[inside].max(), np.abs(grey - to_viewer)[inside].max())
    assert error < 0.05  # MuJoCo lights the corners of a sphere of triangles and interpolates between them


def test_a_mirror_floor_shows_the_geom_above_it() -> None:
    asset = "<material name='mirror' rgba='.2 .2 .2 1' reflectance='.5'/>"
    body = "<geom type='plane' size='4 4 .1' material='mirror'/><geom size='.4' pos='0 0 .8' rgba='1 0 0 1'/>"
    frame = cast(load(scene(body, camera=FROM_ABOVE, asset=asset, headlight=AMBIENT_ONLY)), SIZE)
    red = eroded(frame.segmentation == 0) & (frame.pixels[..., 0] > frame.pixels[..., 1] + 30)
    assert 20 < red.sum() < 2000
    rows = np.argwhere(red)[:, 0]
    assert rows.min() > np.argwhere(frame.segmentation == 1)[:, 0].mean()  # the mirror image hangs below


def test_a_skybox_fills_what_no_geom_covers() -> None:
    asset = "<texture type='skybox' builtin='gradient' rgb1='0 0 1' rgb2='1 0 0' width='64' height='384'/>"
    frame = cast(load(scene("<geom size='.2'/>", asset=asset)), (48, 48))
    sky = frame.segmentation == -1
    assert sky.mean() > 0.9
    assert (frame.pixels[sky].astype(int).sum(-1) > 100).all()
    # rgb1 is above, rgb2 below
    assert frame.pixels[0, 5, 2] > frame.pixels[-1, 5, 2]
    assert frame.pixels[0, 5, 0] < frame.pixels[-1, 5, 0]


def test_more_samples_smooth_edges_and_nothing_else() -> None:
    physics = load(
        scene(
            "<geom type='box' size='1 1 1' rgba='1 1 1 1'/>",
            headlight=AMBIENT_ONLY,
            camera="pos='0 -5 0' xyaxes='1 .1 0 -.01 .1 1'",
        )
    )
    one, many = (cast(physics, (64, 64), samples=count).pixels for count in (1, 8))
    assert set(np.unique(one)) == {0, 255}
    assert len(np.unique(many)) > 4
    flat = np.isin(many, (0, 255)).all(-1)
    np.testing.assert_array_equal(one[flat], many[flat])
