"""Our numbers are dm_control's: states bit for bit, rewards and observations to 1e-12 (libm's exp against numpy's)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aime.envs import ParallelEnvironment, StepType, TimeStep
from aime.envs.tasks import supported
from bench.alignment import compare
from tests.envs.reference import TASKS, suite_environment

TOLERANCE = 1e-12


# The cheapest and the most telling one of each domain runs a whole episode.
WHOLE_EPISODES = tuple({domain: (domain, task) for domain, task in TASKS}.values())


@pytest.mark.parametrize(("domain", "task"), TASKS)
def test_three_episodes_of_every_task_equal_dm_control(domain: str, task: str) -> None:
    found = compare(domain, task, seeds=(1, 2026), steps=3 * 45 + 5, episode_steps=45)
    assert found.exact(TOLERANCE), found
    assert found.resets == 2 * 3


@pytest.mark.parametrize(("domain", "task"), WHOLE_EPISODES)
def test_whole_episodes_with_strong_actions_equal_dm_control(domain: str, task: str) -> None:
    found = compare(
        domain, task, seeds=(7,), steps=1003, episode_steps=1000 if domain == "lqr" else None, bang_bang=True
    )
    assert found.exact(TOLERANCE), found
    assert found.resets == 1


# Begun by the C++ tasks; dm_control begins the others.
BEGUN_IN_CPP = {
    *(("acrobot", task) for task in ("swingup", "swingup_sparse")),
    ("ball_in_cup", "catch"),
    *(pair for pair in TASKS if pair[0] in ("cartpole", "cheetah", "finger", "hopper", "pendulum", "reacher")),
    ("point_mass", "easy"),
    *(pair for pair in TASKS if pair[0] in ("stacker", "swimmer", "walker")),
}


@pytest.mark.parametrize(("domain", "task"), sorted(BEGUN_IN_CPP))
def test_a_row_of_episodes_begins_as_dm_controls_do(domain: str, task: str) -> None:
    """Rejected draws, the second normal of a pair and refills of the random words come after many episodes only."""
    twin = suite_environment(domain, task, 3)
    with ParallelEnvironment(domain, task, 2, seed=[8, 3]) as env:
        for _ in range(25):
            ours, theirs = env.reset(), twin.reset()
            np.testing.assert_array_equal(ours.qpos[1], twin.physics.data.qpos)
            np.testing.assert_array_equal(ours.qvel[1], twin.physics.data.qvel)
            for name, value in theirs.observation.items():
                np.testing.assert_allclose(ours.observation[name][1], value, rtol=0, atol=TOLERANCE)


def test_which_tasks_begin_in_cpp() -> None:
    found = set()
    for domain, task in TASKS:
        if domain in ("dog", "humanoid_CMU"):  # slow to compile, and known
            continue
        with ParallelEnvironment(domain, task, seed=1) as env:
            if env.begins_in_cpp:
                found.add((domain, task))
    assert found == BEGUN_IN_CPP


def test_every_task_of_the_suite_is_supported() -> None:
    assert sorted(supported()) == sorted(TASKS)


def test_lqr_ends_with_discount_0_where_dm_control_ends_it() -> None:
    """At rest in the goal the episode is over; each seed has springs of its own, and a reseed draws new ones."""
    twin = suite_environment("lqr", "lqr_2_1", 4)
    with ParallelEnvironment("lqr", "lqr_2_1", 2, seed=[9, 4]) as env:
        env.reset()
        twin.reset()
        state = env.state()
        physics = state.physics.copy()
        physics[1, 1:5] = 1e-9
        env.set_state(replace(state, physics=physics))
        twin.physics.set_state(np.full(4, 1e-9))
        twin.physics.forward()
        ours, theirs = env.step(np.zeros((2, 1))), twin.step(np.zeros(1))
        assert theirs.last() and theirs.discount == 0.0
        assert ours.step_type.tolist() == [StepType.MID, StepType.LAST]
        assert ours.discount.tolist() == [1.0, 0.0]
        assert ours.reward[1] == pytest.approx(theirs.reward, abs=TOLERANCE)
        begun, expected = env.step(np.zeros((2, 1))), twin.step(np.zeros(1))
        np.testing.assert_array_equal(begun.qpos[1], expected.observation["position"])


def test_a_task_that_draws_its_model_is_reseeded_with_it() -> None:
    twin = suite_environment("lqr", "lqr_6_2", 11)
    first = twin.reset()
    with ParallelEnvironment("lqr", "lqr_6_2", 2, seed=1) as env:
        env.reset()
        step = env.reset(seed=[11, 12])
        np.testing.assert_array_equal(step.qpos[0], first.observation["position"])
        for _ in range(20):
            step, expected = env.step(np.full((2, 2), 0.5)), twin.step(np.full(2, 0.5))
        np.testing.assert_array_equal(step.qpos[0], expected.observation["position"])


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
