"""The ray caster beside MuJoCo's GL renderer: every benchmark task, and small scenes for one feature each."""

from __future__ import annotations

import pytest

from aime.envs.extension import load_suite
from bench import golden
from tests.raycaster.scenes import load, scene

PSNR, SEGMENTATION = 30.0, 0.995
pytestmark = pytest.mark.skipif(not golden.gl_works(), reason="no GL renderer on this machine to compare with")

CHECKER = "<texture name='t' type='2d' builtin='checker' rgb1='.1 .2 .3' rgb2='.8 .7 .6' width='100' height='100'/>"
CUBE = (
    "<texture name='t' type='cube' builtin='flat' mark='cross' rgb1='.6 .3 .1' rgb2='.2 .4 .6' markrgb='1 1 1' "
    "width='127' height='762'/>"
)
FLOOR = "<geom type='plane' size='4 4 .1' rgba='.8 .8 .8 1'/>"
SHAPES = (
    "<geom type='sphere' size='.35' pos='-1.2 0 .4' {0}/>"
    "<geom type='capsule' size='.2 .3' pos='-.4 0 .5' euler='20 40 0' {0}/>"
    "<geom type='ellipsoid' size='.2 .3 .4' pos='.3 0 .5' euler='30 0 20' {0}/>"
    "<geom type='cylinder' size='.25 .3' pos='1 0 .5' euler='50 10 0' {0}/>"
    "<geom type='box' size='.2 .3 .25' pos='1.7 .3 .5' euler='20 30 40' {0}/>"
)
ORANGE = SHAPES.format("rgba='.8 .5 .2 1'")
LOOK = "pos='0 -5 2.5' xyaxes='1 0 0 0 .45 .9'"
SCENES = {
    "headlight": {"worldbody": FLOOR + ORANGE},
    "directional light with shadows": {
        "worldbody": "<light directional='true' pos='0 0 4' dir='-.1 .1 -1'/>" + FLOOR + ORANGE
    },
    "spot light": {"worldbody": "<light pos='0 0 3' dir='0 0 -1' cutoff='40' exponent='5'/>" + FLOOR + ORANGE},
    "attenuated light": {
        "worldbody": "<light pos='1 0 3' dir='-.2 0 -1' attenuation='1 .2 .1'/>" + FLOOR + SHAPES.format("")
    },
    "two lights": {
        "worldbody": "<light pos='2 -1 3' dir='-1 .5 -1.5' diffuse='.5 .2 .2'/><light directional='true' pos='-2 0 3' "
        "dir='1 0 -2' diffuse='.2 .3 .5'/>" + FLOOR + SHAPES.format("rgba='.7 .7 .7 1'")
    },
    "specular": {
        "asset": "<material name='m' rgba='.4 .4 .5 1' specular='1' shininess='.3'/>",
        "worldbody": "<light pos='2 -2 3' dir='-1 1 -1.5'/>" + FLOOR + SHAPES.format("material='m'"),
    },
    "checker floor": {
        "asset": CHECKER + "<material name='m' texture='t' texrepeat='5 5'/>",
        "worldbody": "<geom type='plane' size='4 4 .1' material='m'/>",
    },
    "checker floor, uniform": {
        "asset": CHECKER + "<material name='m' texture='t' texrepeat='1 1' texuniform='true'/>",
        "worldbody": "<geom type='plane' size='4 4 .1' material='m'/>",
    },
    "endless plane": {
        "asset": CHECKER + "<material name='m' texture='t' texrepeat='1 1' texuniform='true'/>",
        "worldbody": "<geom type='plane' size='0 0 1' material='m'/>",
    },
    "flat texture on shapes": {
        "asset": CHECKER + "<material name='m' texture='t' texrepeat='2 2'/>",
        "worldbody": FLOOR + SHAPES.format("material='m'"),
    },
    "cube texture on shapes": {
        "asset": CUBE + "<material name='m' texture='t'/>",
        "worldbody": FLOOR + SHAPES.format("material='m'"),
    },
    "cube texture, uniform": {
        "asset": CUBE + "<material name='m' texture='t' texuniform='true'/>",
        "worldbody": FLOOR + SHAPES.format("material='m'"),
    },
    "reflecting floor": {
        "asset": "<material name='m' rgba='.3 .4 .5 1' reflectance='.4'/>",
        "worldbody": "<light pos='1 -1 4' dir='-.2 .2 -1'/><geom type='plane' size='4 4 .1' material='m'/>" + ORANGE,
    },
    "transparent shapes": {"worldbody": FLOOR + SHAPES.format("rgba='.8 .5 .2 .5'")},
    "sky": {
        "asset": "<texture type='skybox' builtin='gradient' rgb1='.4 .6 .8' rgb2='0 0 0' width='200' height='200'/>",
        "worldbody": SHAPES.format(""),
        "camera": "pos='0 -5 0' xyaxes='1 0 0 0 .1 1'",
    },
    "starry sky": {
        "asset": "<texture type='skybox' builtin='gradient' rgb1='.4 .6 .8' rgb2='0 0 0' width='800' height='800' "
        "mark='random' markrgb='1 1 1'/>",
        "worldbody": SHAPES.format(""),
        "camera": "pos='0 -5 0' xyaxes='1 0 0 0 -.1 1'",
    },
    "haze": {
        "visual": "<rgba haze='.8 .2 .2 1'/><map haze='.3'/>",
        "asset": "<texture type='skybox' builtin='gradient' rgb1='.4 .6 .8' rgb2='0 0 0' width='200' height='200'/>",
        "worldbody": "<geom type='plane' size='0 0 1' rgba='.5 .5 .5 1'/>" + SHAPES.format(""),
    },
    "sites": {
        "worldbody": FLOOR
        + "<site type='sphere' size='.3' pos='-1 0 .5' rgba='1 0 0 1'/><site type='box' size='.2 .2 .2' pos='1 0 .5' "
        "rgba='0 1 0 .5'/><site size='.4' pos='0 0 1' group='4'/>"
    },
    "no light at all": {"worldbody": FLOOR + SHAPES.format(""), "headlight": "active='0'", "camera": LOOK},
    "from below the floor": {"worldbody": FLOOR + SHAPES.format(""), "camera": "pos='0 -5 -1' xyaxes='1 0 0 0 -.2 1'"},
    "inside a box": {"worldbody": FLOOR + SHAPES.format("") + "<geom type='box' size='9 9 9'/>"},
    "wide angle": {"worldbody": FLOOR + SHAPES.format(""), "fovy": 110.0},
}


@pytest.mark.parametrize("name", SCENES)
def test_a_feature_looks_as_in_gl(name: str) -> None:
    physics, size = load(scene(**{"camera": LOOK, **SCENES[name]})), (96, 128)
    pair = golden.GLRenderer(physics, size).picture(), golden.RayRenderer(physics, size).picture()
    physics.free()
    found = golden.compare([pair])
    assert found.psnr >= PSNR, found
    assert found.segmentation >= SEGMENTATION, found
    if found.depth is not None:
        assert found.depth < 0.02, found


@pytest.mark.parametrize(("domain", "task"), load_suite().BENCHMARKING)
def test_a_benchmark_task_looks_as_in_gl(domain: str, task: str) -> None:
    found = golden.compare(golden.pairs(domain, task, 10, seed=1))
    assert found.psnr >= PSNR, found
    assert found.segmentation >= SEGMENTATION, found
