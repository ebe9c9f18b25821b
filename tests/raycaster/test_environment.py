"""`ParallelEnvironment(renderer="raycast")`: its pictures are the ray caster's, everywhere the same, and need no GL."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aime.envs import ParallelEnvironment, TimeStep
from aime.envs.extension import load_suite
from aime.envs.raycaster import RayCaster, instruction_sets
from bench import golden

TASKS = (("cartpole", "swingup"), ("reacher", "easy"), ("walker", "walk"), ("cheetah", "run"), ("humanoid", "walk"))
ONE_TASK_PER_DOMAIN = tuple({domain: (domain, task) for domain, task in load_suite().BENCHMARKING}.values())


def play(domain: str, task: str, count: int = 3, steps: int = 4, **options: Any) -> TimeStep:
    generator = np.random.default_rng(0)
    with ParallelEnvironment(
        domain,
        task,
        count,
        seed=3,
        pixels=(48, 64),
        renderer="raycast",
        segmentation=True,
        depth=True,
        action_repeat=5,
        **options,
    ) as env:
        step = env.reset()
        for _ in range(steps):
            step = env.step(env.sample_actions(generator))
        return step.copy()


def assert_same_pictures(left: TimeStep, right: TimeStep) -> None:
    for name in ("pixels", "segmentation", "body_mask", "depth"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


@pytest.mark.parametrize(("domain", "task"), TASKS)
def test_pictures_do_not_depend_on_the_number_of_threads(domain: str, task: str) -> None:
    assert_same_pictures(play(domain, task, num_threads=1), play(domain, task, num_threads=3))


def test_a_step_has_what_the_ray_caster_draws_of_the_state() -> None:
    generator = np.random.default_rng(0)
    with ParallelEnvironment(
        "reacher", "easy", 2, seed=3, pixels=(48, 64), renderer="raycast", segmentation=True, depth=True
    ) as env:
        env.reset()
        step = env.step(env.sample_actions(generator))
        assert step.pixels is not None
        assert step.segmentation is not None
        assert step.body_mask is not None
        assert step.depth is not None
        assert (step.depth.shape, step.depth.dtype) == ((2, 48, 64), np.float32)
        reference = load_suite().load("reacher", "easy", task_kwargs={"random": 3})
        reference.reset()
        reference.step(env.sample_actions(np.random.default_rng(0))[0])
        physics = reference.physics
        frame = RayCaster(physics.model.ptr, (48, 64), samples=env.samples).render(physics.data.ptr)
        np.testing.assert_array_equal(step.pixels[0], frame.pixels)
        np.testing.assert_array_equal(step.segmentation[0], frame.segmentation)
        np.testing.assert_array_equal(step.depth[0], frame.depth)
        moving = (frame.segmentation >= 0) & (physics.model.geom_bodyid[frame.segmentation] != 0)
        np.testing.assert_array_equal(step.body_mask[0], moving)
        assert (step.pixels[0] != step.pixels[1]).any()


@pytest.mark.skipif(not golden.gl_works(), reason="no GL renderer on this machine to compare with")
def test_depth_of_gl_is_that_of_the_ray_caster() -> None:
    depths = {}
    for renderer in ("gl", "raycast"):
        with ParallelEnvironment(
            "walker", "walk", 1, seed=3, pixels=(64, 64), renderer=renderer, depth=True, segmentation=True
        ) as env:
            step = env.reset()
            assert step.depth is not None
            assert step.segmentation is not None
            depths[renderer] = np.where(step.segmentation[0] >= 0, step.depth[0], np.nan)
    relative = np.abs(depths["gl"] / depths["raycast"] - 1)
    assert np.nanmedian(relative) < 0.01


def test_the_chosen_renderer_and_its_setting_can_be_read() -> None:
    with ParallelEnvironment("cartpole", "swingup", pixels=(8, 8), renderer="raycast", samples=2, seed=1) as env:
        env.reset()
        assert (env.renderer, env.samples) == ("raycast", 2)
        assert instruction_sets()[0] in env.renderer_details
    with ParallelEnvironment("cartpole", "swingup", seed=1) as env:
        assert (env.renderer, env.samples) == ("gl", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"renderer": "raycaster"}, "unknown renderer 'raycaster': did you mean 'raycast'"),
        ({"renderer": "raycast", "samples": 3}, "samples"),
        ({"renderer": "gl", "samples": 4}, "samples"),
        ({"renderer": "raycast", "pixels": None, "depth": True}, "depth needs pixels"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelEnvironment("cartpole", "swingup", **{"pixels": (8, 8), **options})


@pytest.mark.parametrize(("domain", "task"), ONE_TASK_PER_DOMAIN)
def test_hundreds_of_random_poses_are_sound_and_alike_on_all_instruction_sets(domain: str, task: str) -> None:
    """Poses that no episode reaches: every coordinate uniform, far outside joint limits, bodies inside each other."""
    physics = load_suite().load(domain, task, task_kwargs={"random": 1}).physics
    casters = {name: RayCaster(physics.model.ptr, (32, 48), instruction_set=name) for name in instruction_sets()}
    generator = np.random.default_rng(5)
    limit, geoms = 3.0, physics.model.ngeom
    for index in range(300):
        if index % 50 == 49:
            limit *= 3  # up to 700 m and rad: bodies leave the picture, and the far plane
        physics.data.qpos[:] = generator.uniform(-limit, limit, physics.model.nq)
        physics.forward()
        frames = {name: caster.render(physics.data.ptr) for name, caster in casters.items()}
        first = next(iter(frames.values()))
        assert np.isfinite(first.depth).all()
        assert (first.depth > 0).all()
        assert first.segmentation.min() >= -1
        assert first.segmentation.max() < geoms
        for name, frame in frames.items():
            apart = np.abs(frame.pixels.astype(int) - first.pixels).max(axis=-1) > 1
            assert apart.mean() <= 0.002, (name, index)  # the last bit decides on which side of an edge a ray falls
    assert physics.model.nq > 0


def test_an_episode_is_drawn_without_loading_any_gl_library() -> None:
    script = (
        "import numpy as np\n"
        "from aime.envs import ParallelEnvironment\n"
        "with ParallelEnvironment('walker', 'walk', 2, seed=1, pixels=(32, 32), renderer='raycast') as env:\n"
        "    env.reset()\n"
        "    for _ in range(3):\n"
        "        step = env.step(env.sample_actions(np.random.default_rng(0)))\n"
        "    assert step.pixels.std() > 0\n"
        "names = [line.split()[-1] for line in open('/proc/self/maps')]\n"
        "print(sorted({n for n in names if any(s in n for s in ('libEGL', 'libGL', 'OSMesa', 'gallium', 'libX11'))}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={name: value for name, value in os.environ.items() if name != "MUJOCO_GL"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, for GL libraries that are empty")
def test_episodes_are_collected_where_no_gl_library_works(tmp_path: Path) -> None:
    """As `make train` begins, on a machine whose EGL and OSMesa have no functions."""
    empty = tmp_path / "empty.c"
    empty.write_text("int nothing(void) { return 0; }\n")
    for name in ("libEGL.so.1", "libEGL.so.0", "libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so", "libGL.so.1"):
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", str(empty), "-o", str(tmp_path / name)]
        subprocess.run(command, check=True)
    out = tmp_path / "episodes.h5"
    script = (
        "import sys\n"
        "from aime.cli import main\n"
        f"status = main(['collect', '--episodes', '2', '--steps', '4', '--out', {str(out)!r}])\n"
        "from aime.data import open_source\n"
        f"spec = open_source({str(out)!r}).spec\n"
        "assert spec.renderer == 'raycast', spec\n"
        "from aime.envs.extension import gl_displays\n"
        "assert gl_displays() == [], gl_displays()\n"
        "sys.exit(status)\n"
    )
    variables = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=variables | {"LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_restored_states_are_drawn_again_alike() -> None:
    with ParallelEnvironment("reacher", "easy", 2, seed=3, pixels=(32, 32), renderer="raycast", depth=True) as env:
        env.reset()
        step = env.step(env.sample_actions(np.random.default_rng(1))).copy()
        state = env.state()
        env.reset()
        again = env.set_state(replace(state))
        np.testing.assert_array_equal(again.pixels, step.pixels)
        np.testing.assert_array_equal(again.depth, step.depth)
