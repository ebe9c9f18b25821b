"""Autoreset, faults, errors, memory and life of the environments."""

from __future__ import annotations

import importlib.util
import multiprocessing
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aime.envs import ParallelEnvironment, StepType

FIRST, MID, LAST = StepType.FIRST, StepType.MID, StepType.LAST


def zeros(env: ParallelEnvironment) -> np.ndarray:
    return np.zeros((env.num_envs, env.action_size))


def test_next_step_autoreset_ignores_the_action_of_a_finished_environment() -> None:
    with ParallelEnvironment("cartpole", "balance", 2, seed=1, time_limit=0.05) as env:
        first = env.reset().copy()
        types = [env.step(zeros(env)).copy() for _ in range(6)]
    assert [int(step.step_type[0]) for step in types] == [MID, MID, MID, MID, LAST, FIRST]
    assert types[4].discount[0] == 1.0  # a time limit is no termination
    assert types[5].reward[0] == 0.0
    assert (types[5].qpos[0] != first.qpos[0]).any()  # a new episode, not the first one again


def test_without_autoreset_finished_environments_must_be_reset_by_id() -> None:
    with ParallelEnvironment("cartpole", "balance", 3, seed=1, time_limit=0.02, autoreset="disabled") as env:
        env.reset()
        env.step(zeros(env))
        last = env.step(zeros(env)).copy()
        assert (last.step_type == LAST).all()
        with pytest.raises(RuntimeError, match=r"environments \[0, 1, 2\] have ended: call reset"):
            env.step(zeros(env))
        again = env.reset([1])
        assert again.step_type.tolist() == [LAST, FIRST, LAST]
        np.testing.assert_array_equal(again.qpos[[0, 2]], last.qpos[[0, 2]])
        with pytest.raises(RuntimeError, match=r"\[0, 2\]"):
            env.step(zeros(env))
        env.reset([0, 2])
        assert env.step(zeros(env)).step_type.tolist() == [MID, MID, MID]


@pytest.mark.parametrize("domain_task", [("cartpole", "swingup"), ("walker", "walk")])
def test_diverging_physics_ends_one_episode_and_nothing_else(domain_task: tuple[str, str]) -> None:
    with ParallelEnvironment(*domain_task, 3, seed=1, pixels=(16, 16), quality="fast") as env:
        env.reset()
        before = env.step(zeros(env))
        state = env.state()
        physics = state.physics.copy()
        nq = before.qpos.shape[1]
        physics[1, 1 + nq : 1 + nq + before.qvel.shape[1]] = 1e9  # velocities (after time, qpos): finite, and hopeless
        before = env.set_state(replace(state, physics=physics)).copy()
        for _ in range(5):
            broken = env.step(zeros(env)).copy()
            if broken.faults:
                break
            before = broken
        assert list(broken.faults) == [1]
        assert "Nan, Inf or huge value" in broken.faults[1]
        assert broken.step_type.tolist() == [MID, LAST, MID]
        assert broken.discount.tolist() == [1.0, 0.0, 1.0]
        np.testing.assert_array_equal(broken.qpos[1], before.qpos[1])
        assert np.isfinite(broken.reward).all()
        after = env.step(zeros(env))
        assert after.step_type.tolist() == [MID, FIRST, MID]
        assert not after.faults and np.isfinite(after.qpos).all() and (np.abs(after.qvel) < 1e3).all()


def test_a_faulted_environment_keeps_its_last_report_until_it_is_reset() -> None:
    with ParallelEnvironment("cartpole", "swingup", 2, seed=1, autoreset="disabled") as env:
        env.reset()
        before = env.step(zeros(env)).copy()
        state = env.state()
        physics = state.physics.copy()
        nq = before.qpos.shape[1]
        physics[1, 1 + nq : 1 + nq + before.qvel.shape[1]] = 1e9
        sound = env.set_state(replace(state, physics=physics)).copy()
        broken = env.step(zeros(env)).copy()
        assert list(broken.faults) == [1]
        others = env.reset([0])
        np.testing.assert_array_equal(others.qpos[1], sound.qpos[1])
        assert others.step_type.tolist() == [FIRST, LAST]
        assert not env.reset([1]).faults


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((2, 2)), r"shape \(num_envs, action_size\) = \(2, 1\), got \(2, 2\)"),
        (np.zeros(2), r"got \(2,\)"),
        ([[0.0], [np.nan]], r"environment 1, entry 0 is nan: it must be finite and within \[-1.0, 1.0\]"),
        ([[1.5], [0.0]], r"environment 0, entry 0 is 1.5"),
        ([[0.0], [-np.inf]], r"environment 1, entry 0 is -inf"),
    ],
)
def test_wrong_actions_are_named(actions: Any, message: str) -> None:
    with ParallelEnvironment("cartpole", "swingup", 2, seed=1) as env:
        env.reset()
        before = env.state()
        with pytest.raises(ValueError, match=message):
            env.step(actions)
        np.testing.assert_array_equal(env.state().physics, before.physics)  # nothing moved


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("cartpol", "swingup"), {}, "unknown domain 'cartpol': did you mean 'cartpole'"),
        (("walker", "wlak"), {}, "unknown task 'wlak' of domain 'walker': did you mean 'walk'"),
        (("walker", "fly"), {}, "Known: run, stand, walk"),
        (("cartpole", "swingup"), {"camera": "fixd"}, "unknown camera 'fixd': did you mean 'fixed'"),
        (("cartpole", "swingup"), {"camera": 2}, r"no camera 2: the model has 0 \(fixed\), 1 \(lookatcart\)"),
        (("cartpole", "swingup"), {"quality": "hihg"}, "unknown quality 'hihg': did you mean 'high'"),
        (("cartpole", "swingup"), {"autoreset": "next"}, "did you mean 'next_step'"),
        (("cartpole", "swingup", 0), {}, "num_envs must be at least 1, got 0"),
        (("cartpole", "swingup"), {"action_repeat": 0}, "action_repeat must be at least 1"),
        (("cartpole", "swingup"), {"pixels": (0, 64)}, r"pixels must be \(height, width\)"),
        (("cartpole", "swingup"), {"segmentation": True}, "segmentation needs pixels"),
        (("cartpole", "swingup", 2), {"seed": [1, 2, 3]}, "3 seeds for 2 environments"),
        (("cartpole", "swingup"), {"seed": -1}, "a seed must lie in"),
        (("cartpole", "swingup"), {"time_limit": 0.0}, "time_limit must be positive"),
    ],
)
def test_wrong_settings_are_named(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelEnvironment(*arguments, **options)


def test_calls_out_of_order_say_so() -> None:
    env = ParallelEnvironment("cartpole", "swingup", seed=1)
    for call in (lambda: env.step(zeros(env)), env.state, lambda: env.reset([0])):
        with pytest.raises(RuntimeError, match=r"call reset\(\) before"):
            call()
    env.reset()
    with pytest.raises(ValueError, match="no environment 3: there are 1"):
        env.reset([3])
    env.close()
    env.close()
    for call in (lambda: env.step(zeros(env)), env.reset, env.state):
        with pytest.raises(RuntimeError, match="cartpole swingup is closed"):
            call()


def test_results_stay_valid_until_the_second_next_step_and_after_close(generator: np.random.Generator) -> None:
    env = ParallelEnvironment("walker", "walk", 2, seed=1)
    env.reset()
    step = env.step(env.sample_actions(generator))
    kept = step.copy()
    following = env.step(env.sample_actions(generator))
    np.testing.assert_array_equal(step.qpos, kept.qpos)
    kept = following.copy()
    env.close()
    np.testing.assert_array_equal(following.qpos, kept.qpos)


def test_seeds_decide_the_episodes() -> None:
    def start(seed: Any) -> np.ndarray:
        with ParallelEnvironment("walker", "walk", 2, seed=seed) as env:
            return env.reset().qpos.copy()

    np.testing.assert_array_equal(start(4), start([4, 5]))
    assert (start(4)[0] != start(4)[1]).any()
    assert (start(None) != start(None)).any()


def test_a_reset_with_a_seed_begins_the_episodes_of_that_seed() -> None:
    with ParallelEnvironment("walker", "walk", 3, seed=1) as env, ParallelEnvironment("walker", "walk", 3) as other:
        first = env.reset().copy()
        second = env.reset().copy()
        np.testing.assert_array_equal(other.reset(seed=1).qpos, first.qpos)
        assert other.seeds == (1, 2, 3)
        mixed = other.reset(seed=[1, None, 3]).copy()
        np.testing.assert_array_equal(mixed.qpos[[0, 2]], first.qpos[[0, 2]])
        np.testing.assert_array_equal(mixed.qpos[1], second.qpos[1])
        again = other.reset([2], seed=1)
        np.testing.assert_array_equal(again.qpos, np.stack([mixed.qpos[0], mixed.qpos[1], first.qpos[2]]))
        state = other.state()
        for seed, error, message in (
            (-1, ValueError, r"a seed must lie in \[0, 2\*\*32\), got -1"),
            (2**32 - 2, ValueError, "got 4294967296"),
            ([1, 2], ValueError, "2 seeds for 3 environments"),
            (1.5, TypeError, "a seed must be an int in .*, got 1.5"),
            ([1, 2, "3"], TypeError, "got '3'"),
        ):
            with pytest.raises(error, match=message):
                other.reset(seed=seed)  # type: ignore[arg-type]
        np.testing.assert_array_equal(other.state().physics, state.physics)


def test_joints_say_where_each_number_is() -> None:
    with ParallelEnvironment("humanoid", "stand", seed=1) as env:
        step = env.reset()
        root, first = env.joints[0], env.joints[1]
        assert (root.name, root.kind, root.qpos_size, root.qvel_size) == ("root", "free", 7, 6)
        assert (first.name, first.kind, first.qpos_start, first.qvel_start) == ("abdomen_z", "hinge", 7, 6)
        assert first.limited
        assert not root.limited
        assert sum(joint.qpos_size for joint in env.joints) == step.qpos.shape[1]
        assert sum(joint.qvel_size for joint in env.joints) == step.qvel.shape[1]
        assert env.observation_shapes["head_height"] == () == step.observation["head_height"].shape[1:]


def _step_in_child(env: ParallelEnvironment, answers: Any) -> None:
    try:
        env.step(zeros(env))
    except RuntimeError as error:
        answers.put(str(error))


# The parent is a pytest process with threads; that forking it is risky is the point of the test.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_use_after_a_fork_is_an_error_and_the_child_can_exit() -> None:
    context = multiprocessing.get_context("fork")
    with ParallelEnvironment("cartpole", "swingup", 2, seed=1) as env:
        env.reset()
        answers = context.SimpleQueue()
        child = context.Process(target=_step_in_child, args=(env, answers))
        child.start()
        child.join(30)
        assert child.exitcode == 0
        assert "made before a fork" in answers.get()
        env.step(zeros(env))  # the parent goes on


def test_an_open_environment_does_not_disturb_the_exit_of_the_interpreter() -> None:
    script = (
        "from aime.envs import ParallelEnvironment\n"
        "env = ParallelEnvironment('cartpole', 'swingup', 2, num_threads=2, seed=1, pixels=(16, 16))\n"
        "print(env.reset().pixels.shape, env.renderer_details)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "(2, 16, 16, 3)" in done.stdout


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_triton_can_be_imported_after_pictures_were_drawn() -> None:
    # Mesa's LLVM would otherwise stand in for Triton's own, and crash it.
    script = (
        "from aime.envs import ParallelEnvironment\n"
        "with ParallelEnvironment('cartpole', 'swingup', 1, seed=1, pixels=(16, 16)) as env:\n"
        "    env.reset()\n"
        "import triton\n"
        "print('imported')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "imported" in done.stdout


def test_importing_the_package_is_light() -> None:
    script = (
        "import sys, aime.envs\n"
        "heavy = {'mujoco', 'dm_control', 'aime.envs._parallel_environment', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
