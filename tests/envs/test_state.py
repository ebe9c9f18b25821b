"""Saving and restoring: the continuation is the same numbers, in the same object, a new one, or another process."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from aime.envs import ParallelEnvironment, TimeStep
from tests.envs.reference import ONE_TASK_PER_DOMAIN


def continue_for(env: ParallelEnvironment, steps: int, seed: int) -> list[TimeStep]:
    generator = np.random.default_rng(seed)
    return [env.step(env.sample_actions(generator)).copy() for _ in range(steps)]


def assert_equal(left: list[TimeStep], right: list[TimeStep]) -> None:
    for one, other in zip(left, right, strict=True):
        for name in ("qpos", "qvel", "reward", "discount", "step_type"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for name, value in one.observation.items():
            np.testing.assert_array_equal(value, other.observation[name])


# Besides the usual ones those that observe sensors of contacts and accelerations, or act through activations.
RESTORED = (*ONE_TASK_PER_DOMAIN, ("finger", "turn_easy"), ("hopper", "hop"), ("quadruped", "walk"))


@pytest.mark.parametrize(("domain", "task"), RESTORED)
@pytest.mark.parametrize("warm_up", [0, 13])
def test_continuation_is_bit_equal_across_episodes(domain: str, task: str, warm_up: int) -> None:
    # 0: the state right after a reset, whose derived quantities come from another call of MuJoCo than a step's.
    with ParallelEnvironment(domain, task, 2, seed=5, time_limit=0.5) as env:
        current = env.reset().copy()
        if warm_up:
            current = continue_for(env, warm_up, seed=1)[-1]
        state = pickle.loads(pickle.dumps(env.state()))
        after = continue_for(env, 60, seed=2)  # runs over the end of an episode: new episodes are drawn
        assert any(step.first().any() for step in after)
        assert_equal([env.set_state(state).copy()], [current])
        assert_equal(continue_for(env, 60, seed=2), after)
    with ParallelEnvironment(domain, task, 2, seed=99, time_limit=0.5, num_threads=1) as other:
        assert_equal([other.set_state(state).copy()], [current])
        assert_equal(continue_for(other, 60, seed=2), after)


def test_restored_pictures_are_equal() -> None:
    with ParallelEnvironment("reacher", "easy", 2, seed=5, pixels=(32, 32), quality="fast", segmentation=True) as env:
        env.reset()
        state = env.state()
        before = env.set_state(state).copy()
        env.reset()
        after = env.set_state(state)
        assert before.pixels is not None and after.pixels is not None
        np.testing.assert_array_equal(before.pixels, after.pixels)


def test_states_that_do_not_fit_are_refused() -> None:
    with (
        ParallelEnvironment("cartpole", "swingup", 2, seed=1) as env,
        ParallelEnvironment("cartpole", "balance", 2, seed=1) as other_task,
        ParallelEnvironment("cartpole", "swingup", 3, seed=1) as other_size,
    ):
        env.reset()
        state = env.state()
        with pytest.raises(ValueError, match="of 'cartpole swingup', this environment is 'cartpole balance'"):
            other_task.set_state(state)
        with pytest.raises(ValueError, match="of 2 environments, here are 3"):
            other_size.set_state(state)
        with pytest.raises(ValueError, match="made by MuJoCo 1"):
            env.set_state(replace(state, mujoco_version=1))
        broken = state.physics.copy()
        broken[1, 3] = np.nan
        with pytest.raises(ValueError, match="environment 1 is not finite"):
            env.set_state(replace(state, physics=broken))


@pytest.mark.parametrize("processes", [1, 2])
def test_physics_that_mujoco_would_replace_is_refused_and_the_next_episodes_stay(processes: int) -> None:
    """Of two processes only the second one's part is wrong: the first takes nothing either."""

    def next_episodes(*, refused: bool) -> list[TimeStep]:
        with ParallelEnvironment("cartpole", "swingup", 2, seed=1, num_processes=processes) as env:
            env.reset()
            old = env.state()
            env.reset()
            physics = old.physics.copy()
            physics[1, 3] = 1e11  # a velocity: finite, and beyond what MuJoCo keeps
            if refused:
                with pytest.raises(
                    ValueError, match=r"environment \d cannot be restored: Nan, Inf or huge value in QVEL"
                ):
                    env.set_state(replace(old, physics=physics))
            return [env.reset().copy() for _ in range(2)]

    assert_equal(next_episodes(refused=True), next_episodes(refused=False))
