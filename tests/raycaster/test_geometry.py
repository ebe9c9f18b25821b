"""Silhouettes, depth, cameras and image sizes against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from aime.envs.raycaster import instruction_sets
from tests.raycaster.scenes import cast, distance, load, rays, scene

SHAPES = {
    "sphere": "<geom type='sphere' size='1' pos='.3 .2 -.4'/>",
    "capsule": "<geom type='capsule' size='.3 .9' euler='30 40 10'/>",
    "capsule seen from its end": "<geom type='capsule' size='.5 .6' euler='90 0 0'/>",
    "ellipsoid": "<geom type='ellipsoid' size='1.2 .4 .7' euler='20 50 70'/>",
    "cylinder": "<geom type='cylinder' size='.6 .8' euler='50 20 0'/>",
    "cylinder across": "<geom type='cylinder' size='.6 .8' euler='0 90 0'/>",
    "box": "<geom type='box' size='.9 .5 .7' euler='25 35 45'/>",
    "box seen straight": "<geom type='box' size='.9 .5 .7'/>",
    "plane": "<geom type='plane' size='2 1 .1' pos='0 0 -1' euler='20 0 0'/>",
}
# A pixel whose middle lies within float32's error of an edge may fall on either side.
DISPUTED = 0.002


@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize("shape", SHAPES)
def test_silhouette_and_depth_are_the_closed_form_s(shape: str, instruction_set: str) -> None:
    physics, size = load(scene(SHAPES[shape])), (96, 128)
    frame = cast(physics, size, instruction_set=instruction_set)
    expected = distance(physics, 0, rays(physics, size))
    seen = np.isfinite(expected)
    assert 0.02 < seen.mean() < 0.9
    assert ((frame.segmentation == 0) != seen).mean() <= DISPUTED
    both = seen & (frame.segmentation == 0)
    np.testing.assert_allclose(frame.depth[both], expected[both], rtol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (3, 5), (17, 64), (64, 17), (31, 129), (84, 84), (240, 320)])
def test_any_image_size_shows_its_share_of_the_scene(size: tuple[int, int]) -> None:
    physics = load(scene(SHAPES["sphere"] + "<geom type='box' size='.5 .5 .5' pos='-1 1 .5'/>"))
    frame = cast(physics, size)
    assert frame.pixels.shape == (*size, 3)
    depths = np.stack([distance(physics, geom, rays(physics, size)) for geom in range(2)])
    expected = np.where(np.isfinite(depths).any(0), depths.argmin(0), -1)
    assert (frame.segmentation != expected).sum() <= np.ceil(DISPUTED * expected.size)


@pytest.mark.parametrize("fovy", [10.0, 45.0, 100.0])
def test_field_of_view_is_the_camera_s(fovy: float) -> None:
    physics, size = load(scene("<geom type='sphere' size='.35'/>", fovy=fovy)), (240, 240)
    # a sphere of radius r in distance d covers the cone with sine r/d
    radius = 120 * np.tan(np.arcsin(0.35 / 5)) / np.tan(np.radians(fovy / 2))
    assert (cast(physics, size).segmentation == 0).sum() == pytest.approx(np.pi * radius**2, rel=0.03)


def test_nearer_geoms_hide_those_behind_in_any_order() -> None:
    near, far = "<geom name='near' size='.3' pos='0 -1 0'/>", "<geom name='far' size='1'/>"
    for order in (near + far, far + near):
        physics = load(scene(order))
        assert cast(physics, (9, 9)).segmentation[4, 4] == physics.model.name2id("near", "geom")


def test_cameras_are_chosen_by_index_name_and_freely() -> None:
    body = "<geom size='.5'/><camera name='other' pos='0 5 0' xyaxes='-1 0 0 0 0 1'/><geom size='.2' pos='0 2 0'/>"
    physics = load(scene(body))
    assert cast(physics, (9, 9), camera="eye").segmentation[4, 4] == 0
    assert cast(physics, (9, 9), camera="other").segmentation[4, 4] == 1
    assert cast(physics, (9, 9), camera=1).segmentation[4, 4] == 1
    assert (cast(physics, (9, 9), camera=-1).segmentation >= 0).any()
    with pytest.raises(ValueError, match="unknown camera 'eyes': did you mean 'eye'"):
        cast(physics, (9, 9), camera="eyes")
    with pytest.raises(ValueError, match=r"no camera 2: the model has 0 \(eye\), 1 \(other\) and -1 \(free\)"):
        cast(physics, (9, 9), camera=2)


def test_a_tracking_camera_follows_its_body() -> None:
    body = (
        "<body pos='0 0 0'><joint type='slide' axis='1 0 0'/><geom size='.4'/>"
        "<camera name='follow' mode='trackcom' pos='0 -4 0' xyaxes='1 0 0 0 0 1'/></body>"
    )
    physics = load(scene(body))
    start = cast(physics, (33, 33), camera="follow")
    with physics.reset_context():
        physics.data.qpos[0] = 7.0
    np.testing.assert_array_equal(cast(physics, (33, 33), camera="follow").segmentation, start.segmentation)
    assert (cast(physics, (33, 33), camera="eye").segmentation == -1).all()


def test_decor_and_hidden_groups_are_left_out() -> None:
    physics = load(
        scene("<geom size='.5' group='3'/><geom size='.2' pos='1 0 0' group='2'/><geom size='.2' pos='-1 0 0'/>")
    )
    assert set(np.unique(cast(physics, (48, 48)).segmentation)) == {-1, 1, 2}


def test_a_geom_behind_the_camera_or_around_it_is_not_seen() -> None:
    physics = load(scene("<geom size='1' pos='0 -8 0'/><geom size='6' pos='0 -5 0'/><geom size='.5' pos='0 1 0'/>"))
    assert set(np.unique(cast(physics, (32, 32)).segmentation)) == {-1, 2}  # faces are culled from inside


@pytest.mark.parametrize(
    ("asset", "geom", "kind"),
    [
        ("<mesh name='m' vertex='0 0 0 1 0 0 0 1 0 0 0 1'/>", "<geom name='lump' type='mesh' mesh='m'/>", "mesh"),
        (
            "<hfield name='h' nrow='3' ncol='3' size='1 1 .1 .1'/>",
            "<geom name='lump' type='hfield' hfield='h'/>",
            "height ?field|hfield",
        ),
    ],
)
def test_geoms_that_cannot_be_drawn_are_named(asset: str, geom: str, kind: str) -> None:
    physics = load(scene(geom, asset=asset))
    with pytest.raises(ValueError, match=rf"(?s)(?=.*lump)(?=.*({kind}))(?=.*gl)"):
        cast(physics, (8, 8))


def test_skins_are_named() -> None:
    xml = scene("<body name='b'><geom size='.1'/></body>").replace(
        "</mujoco>",
        "<deformable><skin name='hide' vertex='0 0 0 1 0 0 0 1 0' face='0 1 2'><bone body='b' bindpos='0 0 0' "
        "bindquat='1 0 0 0' vertid='0 1 2' vertweight='1 1 1'/></skin></deformable></mujoco>",
    )
    with pytest.raises(ValueError, match=r"(?s)(?=.*skin)(?=.*hide)(?=.*gl)"):
        cast(load(xml), (8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 8)}, r"size must be \(height, width\), both at least 1, got \(0, 8\)"),
        ({"samples": 0}, "samples must be one of 1, 2, 4, 8, got 0"),
        ({"instruction_set": "sse"}, "instruction set 'sse': .*Known: .*baseline"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, object], message: str) -> None:
    physics = load(scene("<geom size='1'/>"))
    with pytest.raises(ValueError, match=message):
        cast(physics, **{"size": (8, 8), **options})  # type: ignore[arg-type]
