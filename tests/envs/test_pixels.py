"""Pictures: equal to dm_control's where "exact" is asked, close to it elsewhere, and masks that fit them."""

from __future__ import annotations

import numpy as np
import pytest

from aime.envs import ParallelEnvironment
from tests.envs.reference import ONE_TASK_PER_DOMAIN, suite_environment

GEOM = 5  # mujoco.mjtObj.mjOBJ_GEOM


@pytest.mark.parametrize(("domain", "task"), ONE_TASK_PER_DOMAIN)
def test_exact_pictures_and_masks_equal_dm_control(domain: str, task: str, generator: np.random.Generator) -> None:
    references = [suite_environment(domain, task, seed) for seed in (3, 4)]
    for reference in references:
        reference.reset()
    # Two threads: the two environments are drawn on two different EGL displays.
    with ParallelEnvironment(
        domain, task, 2, num_threads=2, seed=3, pixels=(64, 64), quality="exact", segmentation=True
    ) as env:
        step = env.reset()
        for _ in range(3):
            actions = env.sample_actions(generator)
            step = env.step(actions)
            for reference, action in zip(references, actions, strict=True):
                reference.step(action)
        assert step.pixels is not None and step.segmentation is not None and step.body_mask is not None
        for index, reference in enumerate(references):
            physics = reference.physics
            np.testing.assert_array_equal(step.pixels[index], physics.render(64, 64, camera_id=0))
            labels = physics.render(64, 64, camera_id=0, segmentation=True)
            geoms = np.where(labels[..., 1] == GEOM, labels[..., 0], -1)
            np.testing.assert_array_equal(step.segmentation[index], geoms)
            moving = (geoms >= 0) & (physics.model.geom_bodyid[geoms] != 0)
            np.testing.assert_array_equal(step.body_mask[index], moving)
            assert 0.002 < moving.mean() < 0.5
    for reference in references:
        reference.physics.free()


@pytest.mark.parametrize(("size", "camera"), [((48, 80), "lookatcart"), ((84, 84), -1), ((500, 700), 0)])
def test_other_sizes_and_cameras_equal_mujoco(size: tuple[int, int], camera: int | str) -> None:
    """Also beyond the model's own 480 x 640 offscreen buffer, which the reference has to enlarge."""
    reference = suite_environment("cartpole", "swingup", 9)
    reference.reset()
    reference.physics.model.vis.global_.offheight = 600
    reference.physics.model.vis.global_.offwidth = 800
    with ParallelEnvironment("cartpole", "swingup", seed=9, pixels=size, camera=camera) as env:
        pixels = env.reset().pixels
    assert pixels is not None and pixels.shape == (1, *size, 3)
    np.testing.assert_array_equal(pixels[0], reference.physics.render(*size, camera_id=camera))
    reference.physics.free()


# Measured over 40 frames of each task: high .03 mean, fast .9 mean, of 255.
@pytest.mark.parametrize(("quality", "mean", "share"), [("high", 0.1, 0.02), ("fast", 2.0, 0.4)])
@pytest.mark.parametrize(("domain", "task"), [("cartpole", "swingup"), ("walker", "walk")])
def test_reduced_qualities_stay_close(domain: str, task: str, quality: str, mean: float, share: float) -> None:
    def frames(chosen: str) -> np.ndarray:
        generator = np.random.default_rng(1)
        with ParallelEnvironment(domain, task, 2, seed=1, pixels=(64, 64), quality=chosen) as env:  # type: ignore[arg-type]
            found = [env.reset().copy().pixels]
            found += [env.step(env.sample_actions(generator)).copy().pixels for _ in range(4)]
        return np.stack([frame for frame in found if frame is not None]).astype(np.float64)

    difference = np.abs(frames("exact") - frames(quality))
    assert difference.mean() < mean
    assert 0 < (difference > 0).mean() < share


def test_pictures_follow_the_state_and_differ_between_environments() -> None:
    with ParallelEnvironment("reacher", "easy", 2, seed=2, pixels=(32, 32), quality="fast") as env:
        first = env.reset().copy().pixels
        second = env.reset().pixels
        assert first is not None and second is not None
        assert (first[0] != first[1]).any()  # another arm and another target
        assert (first[0] != second[0]).any()


def test_the_target_of_reacher_is_not_a_moving_body() -> None:
    with ParallelEnvironment("reacher", "easy", 1, seed=2, pixels=(64, 64), segmentation=True) as env:
        step = env.reset()
        target = env.suite_environment.physics.model.name2id("target", "geom")
        assert step.segmentation is not None and step.body_mask is not None
        assert (step.segmentation == target).any()
        assert not step.body_mask[step.segmentation == target].any()
