"""Autoreset in the same step, episodes begun ahead, and what a row holds: frame stack, precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aime.envs import ParallelEnvironment, StepType, TimeStep
from tests.envs.reference import ONE_TASK_PER_DOMAIN

FIRST, MID, LAST = StepType.FIRST, StepType.MID, StepType.LAST


def rows_equal(left: Any, right: Any, row: int) -> None:
    """State, observation and pictures of one row."""
    for name in ("qpos", "qvel", "pixels", "segmentation", "body_mask"):
        if getattr(left, name) is not None:
            np.testing.assert_array_equal(getattr(left, name)[row], getattr(right, name)[row])
    for name, value in left.observation.items():
        np.testing.assert_array_equal(value[row], right.observation[name][row])


def actions_of(env: ParallelEnvironment, steps: int) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [env.sample_actions(generator) for _ in range(steps)]


@pytest.mark.parametrize(("domain", "task"), ONE_TASK_PER_DOMAIN)
@pytest.mark.parametrize("threads", [1, 2])
def test_same_step_reports_both_sides_of_an_end(domain: str, task: str, threads: int) -> None:
    """Against an environment without autoreset that is reset by hand: rewards, both observations, the streams."""
    options: dict[str, Any] = {"seed": 5, "action_repeat": 2, "time_limit": 0.25, "num_threads": threads}
    ends = 0
    with (
        ParallelEnvironment(domain, task, 3, autoreset="same_step", **options) as env,
        ParallelEnvironment(domain, task, 3, autoreset="disabled", **options) as twin,
    ):
        rows_equal(env.reset(), twin.reset(), 0)
        for actions in actions_of(env, 40):
            step, other = env.step(actions), twin.step(actions).copy()
            np.testing.assert_array_equal(step.reward, other.reward)
            np.testing.assert_array_equal(step.discount, other.discount)
            np.testing.assert_array_equal(step.step_type, other.step_type)
            assert step.final is not None
            np.testing.assert_array_equal(step.final.mask, other.last())
            ended = np.flatnonzero(other.last()).tolist()
            following = twin.reset(ended) if ended else other
            for row in range(3):
                rows_equal(step, following, row)
                if row in ended:
                    rows_equal(step.final, other, row)
            ends += len(ended)
    assert ends >= 6


def test_same_step_keeps_the_final_picture() -> None:
    options: dict[str, Any] = {"seed": 5, "time_limit": 0.06, "pixels": (32, 32), "quality": "fast"}
    with (
        ParallelEnvironment("reacher", "easy", 2, autoreset="same_step", segmentation=True, **options) as env,
        ParallelEnvironment("reacher", "easy", 2, autoreset="disabled", segmentation=True, **options) as twin,
    ):
        env.reset(), twin.reset()
        for actions in actions_of(env, 3):
            step, other = env.step(actions), twin.step(actions)
        assert step.last().all() and step.final is not None
        for row in range(2):
            rows_equal(step.final, other, row)
        assert (step.pixels != step.final.pixels).any()


def test_a_fault_in_same_step_begins_the_next_episode_at_once() -> None:
    with ParallelEnvironment("cartpole", "swingup", 2, seed=1, autoreset="same_step") as env:
        env.reset()
        before = env.step(np.zeros((2, 1))).copy()
        state = env.state()
        state.physics[1, 3:5] = 1e9  # the velocities, after time and two positions
        sound = env.set_state(state).copy()
        broken = env.step(np.zeros((2, 1)))
        assert list(broken.faults) == [1]
        assert broken.step_type.tolist() == [MID, LAST]
        assert broken.discount.tolist() == [1.0, 0.0]
        assert broken.final is not None and broken.final.mask.tolist() == [False, True]
        rows_equal(broken.final, sound, 1)
        assert (np.abs(broken.qvel[1]) < 1.0).all()
        after = env.step(np.zeros((2, 1)))
        assert not after.faults and after.step_type.tolist() == [MID, MID]
        assert before.final is not None and not before.final.mask.any()


@pytest.mark.parametrize(("domain", "task"), [("cartpole", "swingup"), ("reacher", "easy")])
def test_a_state_taken_while_episodes_are_begun_ahead_goes_on_alike(domain: str, task: str) -> None:
    def go_on(env: ParallelEnvironment) -> list[TimeStep]:
        return [env.step(actions).copy() for actions in actions_of(env, 60)]

    with ParallelEnvironment(domain, task, 3, seed=2, time_limit=0.4, num_threads=2) as env:
        env.reset()
        for actions in actions_of(env, 7):  # some next episodes have begun, others have not
            env.step(actions)
        state = env.state()
        expected = go_on(env)
        env.set_state(state)
        for left, right in zip(expected, go_on(env), strict=True):
            np.testing.assert_array_equal(left.step_type, right.step_type)
            for row in range(3):
                rows_equal(left, right, row)
        assert sum(step.first().sum() for step in expected) >= 3


def test_new_seeds_drop_the_episodes_begun_ahead() -> None:
    with ParallelEnvironment("reacher", "easy", 2, seed=3, time_limit=0.2) as env:
        first = env.reset().copy()
        for actions in actions_of(env, 5):
            env.step(actions)
        again = env.reset(seed=3)
        for row in range(2):
            rows_equal(first, again, row)


def test_a_frame_stack_holds_the_last_pictures_and_begins_with_the_first() -> None:
    options: dict[str, Any] = {"seed": 4, "time_limit": 0.06, "pixels": (12, 16), "quality": "fast"}
    with (
        ParallelEnvironment("cartpole", "swingup", 2, frame_stack=3, **options) as env,
        ParallelEnvironment("cartpole", "swingup", 2, **options) as single,
    ):
        first = single.reset().pixels
        assert first is not None
        expected = [first.copy()] * 3
        stack = env.reset().pixels
        assert stack is not None and stack.shape == (2, 3, 12, 16, 3)
        np.testing.assert_array_equal(stack, np.stack(expected, axis=1))
        for turn, actions in enumerate(actions_of(env, 9)):
            step, one = env.step(actions), single.step(actions)
            assert one.pixels is not None
            expected = [*expected[1:], one.pixels.copy()] if not one.first().any() else [one.pixels.copy()] * 3
            np.testing.assert_array_equal(step.pixels, np.stack(expected, axis=1))
            if turn == 3:
                state = env.state()
                restored = env.set_state(state)
                np.testing.assert_array_equal(restored.pixels, np.stack(expected, axis=1))


def test_single_precision_is_the_rounded_state() -> None:
    with (
        ParallelEnvironment("walker", "walk", 2, seed=4, dtype=np.float32) as env,
        ParallelEnvironment("walker", "walk", 2, seed=4) as double,
    ):
        step, exact = env.reset(), double.reset()
        for actions in actions_of(env, 5):
            step, exact = env.step(actions), double.step(actions)
        assert step.qpos.dtype == step.qvel.dtype == np.float32
        assert step.reward.dtype == np.float64
        np.testing.assert_array_equal(step.qpos, exact.qpos.astype(np.float32))
        np.testing.assert_array_equal(step.reward, exact.reward)
        for name, value in step.observation.items():
            assert value.dtype == np.float32
            np.testing.assert_array_equal(value, exact.observation[name].astype(np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_stack": 0}, "frame_stack must be at least 1, got 0"),
        ({"frame_stack": 2}, r"frame_stack needs pixels=\(height, width\)"),
        ({"dtype": np.int32}, "dtype must be numpy.float32 or numpy.float64"),
        ({"batch_size": 3}, r"batch_size must lie in \[1, num_envs = 2\], got 3"),
        ({"batch_size": 0}, "got 0"),
    ],
)
def test_wrong_layouts_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelEnvironment("cartpole", "swingup", 2, seed=1, **options)
