"""send and recv: the same numbers as stepping together, in the order in which environments finish."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aime.envs import ParallelEnvironment
from tests.envs.reference import ONE_TASK_PER_DOMAIN


@pytest.mark.parametrize(("domain", "task"), ONE_TASK_PER_DOMAIN)
@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_every_environment_goes_its_own_way(domain: str, task: str, autoreset: Any) -> None:
    """Each environment's action depends on its own step count only, so its path is that of stepping together."""
    count, batch, steps = 5, 2, 50
    actions = np.random.default_rng(1).uniform(-1, 1, (steps, count, 30))
    options: dict[str, Any] = {"seed": 3, "time_limit": 0.4, "autoreset": autoreset}
    with ParallelEnvironment(domain, task, count, **options) as env:
        env.reset()
        together = [env.step(actions[turn, :, : env.action_size]).copy() for turn in range(steps)]
    with ParallelEnvironment(domain, task, count, num_threads=2, batch_size=batch, **options) as env:
        env.reset()
        done = np.zeros(count, dtype=int)
        env.send(actions[0, :, : env.action_size])
        while (done < steps).any():
            step = env.recv()
            assert len(step.env_id) == batch == len(set(step.env_id.tolist()))
            for row, environment in enumerate(step.env_id.tolist()):
                expected = together[done[environment]] if done[environment] < steps else None
                done[environment] += 1
                if expected is None:
                    continue
                np.testing.assert_array_equal(step.qpos[row], expected.qpos[environment])
                assert step.reward[row] == expected.reward[environment]
                assert step.step_type[row] == expected.step_type[environment]
                for name, value in step.observation.items():
                    np.testing.assert_array_equal(value[row], expected.observation[name][environment])
            ids = step.env_id.tolist()
            env.send(np.stack([actions[min(done[i], steps - 1), i, : env.action_size] for i in ids]), ids)


def test_pictures_and_masks_come_with_the_state() -> None:
    options: dict[str, Any] = {"seed": 3, "pixels": (16, 16), "quality": "fast", "segmentation": True}
    with (
        ParallelEnvironment("cartpole", "swingup", 3, **options) as env,
        ParallelEnvironment("cartpole", "swingup", 3, num_threads=2, batch_size=1, **options) as some,
    ):
        env.reset(), some.reset()
        together = env.step(np.zeros((3, 1)))
        some.send(np.zeros((3, 1)))
        seen = set()
        for _ in range(3):
            step = some.recv()
            environment = int(step.env_id[0])
            seen.add(environment)
            for name in ("qpos", "pixels", "segmentation", "body_mask"):
                np.testing.assert_array_equal(getattr(step, name)[0], getattr(together, name)[environment])
    assert seen == {0, 1, 2}


def test_a_result_stays_valid_until_the_second_next_recv() -> None:
    generator = np.random.default_rng(0)
    with ParallelEnvironment("reacher", "easy", 6, num_threads=2, batch_size=2, seed=3) as env:
        env.reset()
        env.send(env.sample_actions(generator))
        held = env.recv()
        copy = held.copy()
        for _ in range(40):
            env.send(generator.uniform(-1, 1, (2, 2)), held.env_id.tolist())
            following = env.recv()
            for name in ("qpos", "reward", "env_id"):
                np.testing.assert_array_equal(getattr(held, name), getattr(copy, name))
            held, copy = following, following.copy()


def test_calls_that_would_wait_for_ever_or_mix_are_errors() -> None:
    with ParallelEnvironment("cartpole", "swingup", 4, num_threads=2, batch_size=2, seed=1) as env:
        with pytest.raises(RuntimeError, match=r"call reset\(\) before"):
            env.send(np.zeros((4, 1)))
        env.reset()
        with pytest.raises(RuntimeError, match="recv waits for 2 environments, but 0 are in flight"):
            env.recv()
        env.send(np.zeros((3, 1)), [0, 2, 3])
        for ids, message in (([2], "environment 2 is in flight"), ([1, 1], "environment 1 is named twice")):
            with pytest.raises(ValueError, match=message):
                env.send(np.zeros((len(ids), 1)), ids)
        for call in (lambda: env.step(np.zeros((4, 1))), env.state, lambda: env.reset([1])):
            with pytest.raises(RuntimeError, match="results of 3 environments are outstanding"):
                call()
        assert len(env.recv().env_id) == 2
        with pytest.raises(RuntimeError, match="but 1 are in flight"):
            env.recv()
        with pytest.raises(ValueError, match=r"shape \(len\(ids\), action_size\) = \(1, 1\), got \(2, 1\)"):
            env.send(np.zeros((2, 1)), [1])
        with pytest.raises(ValueError, match="action of environment 1, entry 0 is nan"):
            env.send([[np.nan]], [1])
        env.reset()  # drops what was in flight
        env.send(np.zeros((4, 1)))
        assert sorted([*env.recv().env_id.tolist(), *env.recv().env_id.tolist()]) == [0, 1, 2, 3]
        env.step(np.zeros((4, 1)))  # all together again, as nothing is in flight
    with ParallelEnvironment("cartpole", "swingup", 4, seed=1) as env:
        env.reset()
        with pytest.raises(RuntimeError, match="send needs an environment made with batch_size"):
            env.send(np.zeros((4, 1)))
        with pytest.raises(RuntimeError, match="recv needs an environment made with batch_size"):
            env.recv()


def test_an_ended_episode_without_autoreset_is_not_sent() -> None:
    with ParallelEnvironment(
        "cartpole", "swingup", 2, batch_size=1, seed=1, time_limit=0.01, autoreset="disabled"
    ) as env:
        env.reset()
        env.send(np.zeros((2, 1)))
        ended = int(env.recv().env_id[0])
        with pytest.raises(RuntimeError, match=rf"environments \[{ended}\] have ended: call reset\(\[{ended}\]\)"):
            env.send(np.zeros((1, 1)), [ended])


def test_closing_with_environments_in_flight_ends() -> None:
    env = ParallelEnvironment("humanoid", "walk", 8, num_threads=2, batch_size=1, seed=1)
    env.reset()
    env.send(np.zeros((8, env.action_size)))
    step = env.recv().copy()
    env.close()
    assert np.isfinite(step.qpos).all()
