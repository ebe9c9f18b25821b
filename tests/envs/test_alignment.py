"""Our numbers are dm_control's: states bit for bit, rewards and observations to 1e-12 (libm's exp against numpy's)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aime.envs import ParallelEnvironment, StepType, TimeStep
from tests.envs.reference import ONE_TASK_PER_DOMAIN, TASKS, suite_environment

TOLERANCE = 1e-12


def assert_same(step: TimeStep, references: list[Any], expected: list[Any]) -> None:
    """Each environment's row equals its dm_control twin's time step."""
    for env, (reference, twin) in enumerate(zip(references, expected, strict=True)):
        assert step.step_type[env] == int(twin.step_type)
        np.testing.assert_array_equal(step.qpos[env], reference.physics.data.qpos)
        np.testing.assert_array_equal(step.qvel[env], reference.physics.data.qvel)
        assert step.reward[env] == pytest.approx(twin.reward or 0.0, abs=TOLERANCE)
        assert step.discount[env] == (1.0 if twin.discount is None else twin.discount)
        assert list(step.observation) == list(twin.observation)
        for name, value in twin.observation.items():
            assert step.observation[name][env].shape == np.shape(value)
            np.testing.assert_allclose(step.observation[name][env], value, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("domain", "task"), TASKS)
def test_500_steps_of_3_seeds_equal_dm_control(domain: str, task: str, generator: np.random.Generator) -> None:
    seeds = (1, 2, 2026)
    references = [suite_environment(domain, task, seed) for seed in seeds]
    with ParallelEnvironment(domain, task, len(seeds), num_threads=2, seed=seeds) as env:
        assert_same(env.reset(), references, [reference.reset() for reference in references])
        for _ in range(500):
            actions = env.sample_actions(generator)
            step = env.step(actions)
            assert_same(
                step,
                references,
                [reference.step(action) for reference, action in zip(references, actions, strict=True)],
            )


@pytest.mark.parametrize(("domain", "task"), ONE_TASK_PER_DOMAIN)
def test_episodes_after_the_first_equal_dm_control(domain: str, task: str, generator: np.random.Generator) -> None:
    # Ends after different fractions of the limit: the step limit of dm_control need not be a whole number.
    limit = 0.33
    references = [suite_environment(domain, task, seed, time_limit=limit) for seed in (7, 8)]
    firsts = 0
    with ParallelEnvironment(domain, task, 2, seed=7, time_limit=limit) as env:
        assert_same(env.reset(), references, [reference.reset() for reference in references])
        for _ in range(100):
            actions = env.sample_actions(generator)
            step = env.step(actions)
            firsts += int(step.first().sum())
            assert_same(
                step,
                references,
                [reference.step(action) for reference, action in zip(references, actions, strict=True)],
            )
    assert firsts >= 4


def test_every_supported_task_is_tested() -> None:
    from aime.envs.tasks import supported

    assert sorted(supported()) == sorted(TASKS)


@pytest.mark.parametrize("repeat", [2, 3])
def test_action_repeat_sums_rewards_and_stops_at_the_end(repeat: int, generator: np.random.Generator) -> None:
    limit = 0.1  # 10 control steps: with a repeat of 3 the last action is cut short
    reference = suite_environment("cartpole", "balance", 5, time_limit=limit)
    reference.reset()
    with ParallelEnvironment("cartpole", "balance", seed=5, action_repeat=repeat, time_limit=limit) as env:
        env.reset()
        last = False
        while not last:
            action = env.sample_actions(generator)
            step = env.step(action)
            total = 0.0
            for _ in range(repeat):
                twin = reference.step(action[0])
                total += twin.reward
                if twin.last():
                    break
            last = twin.last()
            assert step.step_type[0] == int(twin.step_type)
            assert step.reward[0] == pytest.approx(total, abs=TOLERANCE)
            np.testing.assert_array_equal(step.qpos[0], reference.physics.data.qpos)


def test_a_humanoid_keeps_contacts_bit_equal_with_strong_actions() -> None:
    """Bang-bang control drives many contacts and the solver's warm start through many thousand substeps."""
    reference = suite_environment("humanoid", "run", 11)
    generator = np.random.default_rng(3)
    reference.reset()
    with ParallelEnvironment("humanoid", "run", seed=11) as env:
        env.reset()
        for _ in range(300):
            action = np.sign(env.sample_actions(generator))
            reference.step(action[0])
            step = env.step(action)
        np.testing.assert_array_equal(step.qvel[0], reference.physics.data.qvel)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    def rollout(count: int) -> TimeStep:
        generator = np.random.default_rng(4)
        with ParallelEnvironment("reacher", "hard", 5, num_threads=count, seed=3, time_limit=0.3) as env:
            env.reset()
            for _ in range(40):
                step = env.step(env.sample_actions(generator))
            return step.copy()

    one, many = rollout(1), rollout(threads)
    np.testing.assert_array_equal(one.qpos, many.qpos)
    np.testing.assert_array_equal(one.observation["to_target"], many.observation["to_target"])
    np.testing.assert_array_equal(one.step_type, many.step_type)


def test_reacher_targets_differ_between_environments_and_episodes() -> None:
    with ParallelEnvironment("reacher", "easy", 3, seed=1) as env:
        first = env.reset().copy()
        second = env.reset()
        finger = first.observation["to_target"]
        assert len(np.unique(finger.round(9), axis=0)) == 3
        assert not np.isclose(finger, second.observation["to_target"]).any()
        assert (second.step_type == StepType.FIRST).all()
