"""Fields of the physics model, set by hand or drawn for each episode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from aime.envs import ParallelEnvironment
from tests.envs.reference import suite_environment


def damping(env: int, generator: np.random.Generator) -> Mapping[str, Any]:
    """Another friction of the joints for each episode."""
    return {"dof_damping": generator.uniform(0.0, 0.1)}


@pytest.mark.parametrize(("domain", "task"), [("reacher", "hard"), ("walker", "walk"), ("cartpole", "balance")])
def test_a_field_gives_the_physics_of_a_model_with_that_field(
    domain: str, task: str, generator: np.random.Generator
) -> None:
    """Masses too: what follows from them (mj_setConst) is in the model as dm_control would have it."""
    import mujoco

    reference = suite_environment(domain, task, 6)
    model = reference.physics.model.ptr
    with ParallelEnvironment(domain, task, 2, seed=[5, 6]) as env:
        heavy = env.model_field("body_mass") * 1.5
        slow = env.model_field("dof_damping") + 0.02
        model.body_mass[:] = heavy
        model.dof_damping[:] = slow
        mujoco.mj_setConst(model, mujoco.MjData(model))
        env.set_model_field("body_mass", heavy, [1])
        env.set_model_field("dof_damping", slow, [1])
        step, expected = env.reset(), reference.reset()
        for _ in range(60):
            np.testing.assert_array_equal(step.qpos[1], reference.physics.data.qpos)
            np.testing.assert_array_equal(step.qvel[1], reference.physics.data.qvel)
            for name, value in expected.observation.items():
                np.testing.assert_allclose(step.observation[name][1], value, rtol=0, atol=1e-12)
            actions = env.sample_actions(generator)
            step, expected = env.step(actions), reference.step(actions[1])
    plain = suite_environment(domain, task, 5)
    plain.reset()
    with ParallelEnvironment(domain, task, 2, seed=[5, 6]) as env:
        env.set_model_field("body_mass", heavy, [1])
        np.testing.assert_array_equal(env.reset().qpos[0], plain.physics.data.qpos)  # the other keeps its own


def test_a_field_set_back_leaves_nothing_behind() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 1, 6))
    with (
        ParallelEnvironment("walker", "run", seed=2) as env,
        ParallelEnvironment("walker", "run", seed=2) as twin,
    ):
        own = env.model_field("body_mass")
        env.set_model_field("body_mass", 3 * own)
        env.reset(), twin.reset()
        heavy, light = env.step(actions[0]).qvel.copy(), twin.step(actions[0]).qvel.copy()
        assert (heavy != light).any()
        env.set_model_field("body_mass", own)
        np.testing.assert_array_equal(env.reset().qpos, twin.reset().qpos)
        for action in actions:
            np.testing.assert_array_equal(env.step(action).qvel, twin.step(action).qvel)


def test_one_value_for_each_environment() -> None:
    with ParallelEnvironment("cartpole", "swingup", 3, seed=[4, 4, 4]) as env:
        each = np.array([1.0, 2.0, 1.0])[:, None, None] * env.model_field("actuator_gear")
        env.set_model_field("actuator_gear", each)
        env.reset()
        speed = env.step(np.ones((3, 1))).qvel[:, 0]
    assert speed[0] == speed[2] < speed[1]


@pytest.mark.parametrize(("domain", "task"), [("reacher", "easy"), ("walker", "walk")])
@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_randomised_physics_is_that_of_fields_set_before_each_episode(domain: str, task: str, autoreset: Any) -> None:
    options: dict[str, Any] = {"seed": 8, "time_limit": 0.2, "autoreset": autoreset}
    generators = [np.random.default_rng([8 + env, 1]) for env in range(2)]
    with (
        ParallelEnvironment(domain, task, 2, randomise=damping, **options) as env,
        ParallelEnvironment(domain, task, 2, **options | {"autoreset": "disabled"}) as twin,
    ):

        def begin(ids: list[int]) -> Any:
            for index in ids:
                twin.set_model_field("dof_damping", damping(index, generators[index])["dof_damping"], [index])
            return twin.reset(ids if twin._started else None)

        actions = np.random.default_rng(1).uniform(-1, 1, (30, 2, env.action_size))
        np.testing.assert_array_equal(env.reset().qpos, begin([0, 1]).qpos)
        begun = False
        for turn, action in enumerate(actions):
            step = env.step(action)
            if autoreset == "next_step" and begun:
                np.testing.assert_array_equal(step.qpos, begin([0, 1]).qpos)
                begun = False
                continue
            other = twin.step(action).copy()
            np.testing.assert_array_equal(step.reward, other.reward)
            begun = bool(other.last().all())
            if begun and autoreset == "same_step":
                other = begin([0, 1])
            np.testing.assert_array_equal(step.qpos, other.qpos)
            if turn == 15:  # the random physics of episodes to come belongs to the state
                state = env.state()
        expected = env.step(actions[0]).qpos.copy()
        env.set_state(state)
        for action in actions[16:]:
            env.step(action)
        np.testing.assert_array_equal(env.step(actions[0]).qpos, expected)


def test_wrong_fields_are_named() -> None:
    with ParallelEnvironment("cartpole", "swingup", 2, seed=1) as env:
        for name, values, ids, message in (
            ("dof_dampin", 1.0, None, "no floating-point field 'dof_dampin': did you mean 'dof_damping'"),
            ("body_parentid", 1, None, "no floating-point field 'body_parentid'"),
            ("dof_damping", [1.0, 2.0, 3.0], None, r"dof_damping of one environment has shape \(2,\), got \(3,\)"),
            ("dof_damping", np.nan, None, "dof_damping must be finite, entry 0 is not"),
            ("dof_damping", 1.0, [2], "no environment 2: there are 2"),
        ):
            with pytest.raises(ValueError, match=message):
                env.set_model_field(name, values, ids)
    with (
        ParallelEnvironment("cartpole", "swingup", seed=1, randomise=lambda env, generator: {"mass": 1.0}) as env,
        pytest.raises(ValueError, match="no floating-point field 'mass'"),
    ):
        env.reset()
