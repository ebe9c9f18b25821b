"""The dm_env face: dm_env's own tests pass, and specs and time steps are dm_control's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dm_env
import numpy as np
import pytest
from absl.testing import absltest
from dm_env import test_utils

from aime.envs import DmEnvironment
from tests.envs.reference import ONE_TASK_PER_DOMAIN, suite_environment


class DmEnvironmentTest(test_utils.EnvironmentTestMixin, absltest.TestCase):
    """dm_env's contract, over the end of an episode."""

    def make_object_under_test(self) -> DmEnvironment:
        return DmEnvironment("cartpole", "swingup", seed=1, time_limit=0.1)

    def make_action_sequence(self) -> Iterator[np.ndarray]:
        generator = np.random.default_rng(0)
        for _ in range(25):
            yield generator.uniform(-1.0, 1.0, 1)


class PixelsTest(test_utils.EnvironmentTestMixin, absltest.TestCase):
    """The same with pictures in the observation."""

    def make_object_under_test(self) -> DmEnvironment:
        return DmEnvironment("reacher", "easy", seed=1, time_limit=0.1, pixels=(16, 24), quality="fast")


@pytest.mark.parametrize(("domain", "task"), ONE_TASK_PER_DOMAIN)
def test_specs_and_time_steps_are_dm_controls(domain: str, task: str, generator: np.random.Generator) -> None:
    limit = 0.3
    reference = suite_environment(domain, task, 3, time_limit=limit)
    ours = DmEnvironment(domain, task, seed=3, time_limit=limit)
    assert ours.action_spec() == reference.action_spec()
    assert ours.observation_spec() == reference.observation_spec()
    assert ours.reward_spec() == reference.reward_spec()
    assert ours.discount_spec() == reference.discount_spec()
    specification = reference.action_spec()
    for _ in range(70):
        action = generator.uniform(specification.minimum, specification.maximum)
        found, expected = ours.step(action), reference.step(action)  # the first of each episode ignores its action
        assert_same(found, expected)
    ours.close()
    ours.close()


def assert_same(found: dm_env.TimeStep, expected: dm_env.TimeStep) -> None:
    assert found.step_type is expected.step_type
    assert found.discount == expected.discount
    if expected.reward is None:
        assert found.reward is None
    else:
        assert found.reward == pytest.approx(expected.reward, abs=1e-12)
    assert list(found.observation) == list(expected.observation)
    for name, value in expected.observation.items():
        np.testing.assert_allclose(found.observation[name], value, rtol=0, atol=1e-12)


def test_observations_stay_as_they_were() -> None:
    env: Any = DmEnvironment("cartpole", "swingup", seed=1)
    first = env.reset().observation["velocity"]
    kept = first.copy()
    for _ in range(4):
        env.step(np.ones(1))
    np.testing.assert_array_equal(first, kept)
    with pytest.raises(ValueError, match=r"shape \(1,\), got \(2,\)"):
        env.step(np.ones(2))
    env.close()
