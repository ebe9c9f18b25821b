"""Tasks in Python: the numbers of dm_control stepping serially, and what goes wrong in a user's code."""

from __future__ import annotations

import collections
import gc
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from aime.envs import ParallelEnvironment, TimeStep
from aime.envs import callback_engine as module
from aime.envs.extension import load_suite

SUITE = load_suite()
from dm_control.rl import control  # noqa: E402 - after the suite, which chooses the GL library
from dm_control.suite import cartpole  # noqa: E402

FIRST, MID, LAST = 0, 1, 2
pytestmark = pytest.mark.filterwarnings("ignore:.*has no C.. task:UserWarning")


class Wandering(cartpole.Balance):  # type: ignore[misc]
    """A goal that moves, noise in what is seen, a push, an action of another size, and an early end."""

    fails: str = ""
    error: type[BaseException] = ZeroDivisionError

    def __init__(self, random: np.random.RandomState) -> None:
        super().__init__(swing_up=False, sparse=False, random=random)
        self.goal, self.steps, self.ends_at = np.zeros(2), 0, 0

    def action_spec(self, physics: Any) -> Any:
        from dm_env import specs

        return specs.BoundedArray((2,), float, -1.0, 1.0)

    def initialize_episode(self, physics: Any) -> None:
        self._fail("initialize_episode")
        super().initialize_episode(physics)
        self.goal, self.steps = self.random.uniform(-1, 1, 2), 0
        self.ends_at = int(self.random.randint(5, 30))
        physics.model.body_mass[2] = self.random.uniform(0.05, 0.2)

    def before_step(self, action: Any, physics: Any) -> None:
        physics.set_control(action[:1] - 0.5 * action[1:])
        physics.data.xfrc_applied[2, 0] = 0.1 * action[1]

    def after_step(self, physics: Any) -> None:
        self.goal = self.goal + 0.01 * self.random.randn(2)
        self.steps += 1

    def get_reward(self, physics: Any) -> Any:
        self._fail("get_reward")
        return -float(np.abs(physics.cart_position() - self.goal[0]))

    def get_observation(self, physics: Any) -> Any:
        self._fail("get_observation")
        observation = super().get_observation(physics)
        observation["noisy"] = physics.velocity()[0] + self.random.randn()
        observation["goal"] = self.goal[None] * np.ones((3, 1))
        if self.fails == "shape":
            observation["goal"] = self.goal
        return observation

    def get_termination(self, physics: Any) -> float | None:
        return 0.25 if self.steps >= self.ends_at else None

    def _fail(self, method: str) -> None:
        if self.fails == method:
            raise self.error(f"in the user's {method}") if self.error is ZeroDivisionError else self.error()


def wandering(random: np.random.RandomState, **options: Any) -> Any:
    physics = cartpole.Physics.from_xml_string(*cartpole.get_model_and_assets())
    return control.Environment(physics, Wandering(random), time_limit=0.2, n_sub_steps=2, **options)


def swingup(random: np.random.RandomState) -> Any:
    return SUITE.load("cartpole", "swingup", task_kwargs={"random": random, "time_limit": 0.12})


def walker(random: np.random.RandomState) -> Any:
    return SUITE.load("walker", "walk", task_kwargs={"random": random, "time_limit": 0.2})


def not_legacy(random: np.random.RandomState) -> Any:
    return wandering(random, legacy_step=False)


def flat(random: np.random.RandomState) -> Any:
    return wandering(random, flat_observation=True)


class Serial:
    """dm_control's environment, with an action repeat."""

    def __init__(self, environment: Any, repeat: int) -> None:
        self.environment, self.repeat = environment, repeat
        self.last = False

    def reset(self) -> tuple[Any, ...]:
        self.last = False
        return self._row(self.environment.reset(), 0.0)

    def step(self, action: Any) -> tuple[Any, ...]:
        reward = 0.0
        for _ in range(self.repeat):
            found = self.environment.step(action)
            reward += found.reward
            if found.last():
                break
        self.last = found.last()
        return self._row(found, reward)

    def _row(self, found: Any, reward: float) -> tuple[Any, ...]:
        data = self.environment.physics.data
        discount = 1.0 if found.discount is None else found.discount
        return found.observation, reward, discount, int(found.step_type), data.qpos.copy(), data.qvel.copy()


def same(step: TimeStep, row: int, expected: tuple[Any, ...], seen: Any = None) -> None:
    """Bit for bit; `seen` has another observation than the reward's step."""
    observation, reward, discount, kind, qpos, qvel = expected
    assert (step.reward[row], step.discount[row], step.step_type[row]) == (reward, discount, kind)
    seen = seen or step
    for name, value in observation.items():
        np.testing.assert_array_equal(seen.observation[name][row], value)
    np.testing.assert_array_equal(seen.qpos[row], qpos)
    np.testing.assert_array_equal(seen.qvel[row], qvel)


def actions_of(env: ParallelEnvironment, count: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(3)
    return (env.sample_actions(generator) for _ in range(count))


def step_through(env: ParallelEnvironment, count: int) -> None:
    for actions in actions_of(env, count):
        env.step(actions)


@pytest.mark.parametrize("make", [swingup, wandering, walker, not_legacy, flat])
@pytest.mark.parametrize("autoreset", ["next_step", "same_step", "disabled"])
def test_the_numbers_are_those_of_dm_control(make: Callable[..., Any], autoreset: Any) -> None:
    ends = 0
    with ParallelEnvironment.from_dm_control(
        make, 3, seed=7, action_repeat=2, autoreset=autoreset, num_threads=2
    ) as env:
        twins = [Serial(make(np.random.RandomState(7 + row)), 2) for row in range(3)]
        step = env.reset()
        for row, twin in enumerate(twins):
            same(step, row, twin.reset())
        for actions in actions_of(env, 50):
            step = env.step(actions)
            ended = []
            for row, twin in enumerate(twins):
                if autoreset == "next_step" and twin.last:
                    same(step, row, twin.reset())
                    continue
                expected = twin.step(actions[row])
                same(step, row, expected, step.final if autoreset == "same_step" and twin.last else None)
                if twin.last:
                    ends += 1
                    ended.append(row)
            if autoreset == "same_step":
                for row in ended:
                    following = twins[row].reset()
                    np.testing.assert_array_equal(step.qpos[row], following[4])
                    for name, value in following[0].items():
                        np.testing.assert_array_equal(step.observation[name][row], value)
            elif autoreset == "disabled" and ended:
                step = env.reset(ended)
                for row in ended:
                    same(step, row, twins[row].reset())
    assert ends >= 6


def test_without_an_own_before_step_the_callback_equals_the_cpp_task() -> None:
    with (
        ParallelEnvironment.from_dm_control(walker, 2, seed=3) as env,
        ParallelEnvironment("walker", "walk", 2, seed=3, time_limit=0.2) as native,
    ):
        env.reset(), native.reset()
        for actions in actions_of(env, 25):
            step, other = env.step(actions), native.step(actions)
            np.testing.assert_array_equal(step.qpos, other.qpos)
            np.testing.assert_allclose(step.reward, other.reward, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [swingup, wandering])
def test_a_restored_state_goes_on_alike(make: Callable[..., Any]) -> None:
    with ParallelEnvironment.from_dm_control(make, 2, seed=7, action_repeat=2) as env:
        env.reset()
        for actions in actions_of(env, 4):
            current = env.step(actions).copy()
        state = env.state()
        expected = [env.step(actions).copy() for actions in actions_of(env, 40)]
        assert sum(step.first().sum() for step in expected) >= 4
        with ParallelEnvironment.from_dm_control(make, 2, seed=99, action_repeat=2) as other:
            for restored in (env, other):
                for left, right in zip(
                    [restored.set_state(state).copy(), *(restored.step(row).copy() for row in actions_of(env, 40))],
                    [current, *expected],
                    strict=True,
                ):
                    for name in ("qpos", "qvel", "reward", "discount", "step_type"):
                        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
                    for name, value in right.observation.items():
                        np.testing.assert_array_equal(left.observation[name], value)


def test_a_new_seed_is_a_new_environment() -> None:
    with ParallelEnvironment.from_dm_control(wandering, 2, seed=7) as env:
        first = env.reset().copy()
        for actions in actions_of(env, 5):
            env.step(actions)
        again = env.reset(seed=7)
        np.testing.assert_array_equal(again.observation["noisy"], first.observation["noisy"])
        np.testing.assert_array_equal(again.qpos, first.qpos)


def test_send_and_recv_give_each_environment_its_own_path() -> None:
    with ParallelEnvironment.from_dm_control(wandering, 4, seed=7, batch_size=2, num_threads=2) as env:
        twins = [Serial(wandering(np.random.RandomState(7 + row)), 1) for row in range(4)]
        env.reset()
        for twin in twins:
            twin.reset()
        env.send(np.full((4, 2), 0.3))
        for _ in range(40):
            step = env.recv()
            ids = step.env_id.tolist()
            for row, number in enumerate(ids):
                twin = twins[number]
                same(step, row, twin.reset() if twin.last else twin.step(np.full(2, 0.3)))
            env.send(np.full((2, 2), 0.3), ids)
    # dropped without close, while threads may wait for the interpreter
    env = ParallelEnvironment.from_dm_control(wandering, 4, seed=7, batch_size=2, num_threads=2)
    env.reset()
    env.send(np.zeros((4, 2)))
    del env
    gc.collect()


@pytest.mark.parametrize("method", ["get_reward", "get_observation", "initialize_episode"])
def test_an_exception_names_task_and_environment_and_the_batch_goes_on(
    method: str,
) -> None:
    made: list[Any] = []

    def recorded(random: np.random.RandomState) -> Any:
        made.append(wandering(random))
        return made[-1]

    with ParallelEnvironment.from_dm_control(recorded, 3, seed=7, name="mine") as env:
        env.reset()
        task = made[2].task  # 0 is environment 0, 1 showed an observation
        task.fails = method
        where = rf"dm_control mine, environment 1: ZeroDivisionError: in the user's {method} \(test_callbacks.py, line"
        with pytest.raises(RuntimeError, match=where) as caught:
            step_through(env, 60)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        task.fails = ""
        step = env.step(np.zeros((3, 2)))
        assert step.step_type[1] == FIRST
        assert env.step(np.zeros((3, 2))).step_type[1] == MID
        assert env.reset().first().all()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize("method", ["get_reward", "initialize_episode"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("batch_size", [None, 1])
def test_an_interrupt_in_a_task_reaches_the_caller_as_itself(
    method: str, error: type[BaseException], batch_size: int | None
) -> None:
    """str(KeyboardInterrupt()) is empty, and it is no Exception: neither loses it, nor does another task's error."""
    made: list[Any] = []

    def recorded(random: np.random.RandomState) -> Any:
        made.append(wandering(random))
        return made[-1]

    def play(env: ParallelEnvironment) -> None:
        for actions in actions_of(env, 60):
            if batch_size is None:
                env.step(actions)
                continue
            env.send(actions)
            for _ in range(env.num_envs):
                env.recv()

    with ParallelEnvironment.from_dm_control(recorded, 3, seed=7, num_threads=2, batch_size=batch_size) as env:
        env.reset()
        task = made[2].task
        task.fails, task.error = method, error
        with pytest.raises(error) as caught:
            play(env)
        assert type(caught.value) is error
        task.fails = ""
        assert env.reset().first().all()
        play(env)  # it comes once, and rewards are asked again
        assert (env.step(np.zeros((3, 2))).reward != 0.0).any()


def test_an_interrupt_goes_before_the_error_of_another_task() -> None:
    made: list[Any] = []

    def recorded(random: np.random.RandomState) -> Any:
        made.append(wandering(random))
        return made[-1]

    with ParallelEnvironment.from_dm_control(recorded, 3, seed=7, num_threads=1) as env:
        env.reset()
        for number, error in ((0, ZeroDivisionError), (3, KeyboardInterrupt)):
            made[number].task.fails, made[number].task.error = "get_reward", error
        with pytest.raises(KeyboardInterrupt):
            env.step(np.zeros((3, 2)))
        made[0].task.error, made[3].task.fails = Unprintable, ""
        with pytest.raises(RuntimeError, match=r"environment 0: Unprintable \(test_callbacks.py, line"):
            step_through(env, 3)


def test_a_changed_observation_is_an_error() -> None:
    with ParallelEnvironment.from_dm_control(wandering, 1, seed=7) as env:
        env.reset()
        env.suite_environment.task.fails = "shape"
        with pytest.raises(RuntimeError, match=r"'goal': \(2,\).*the first one of this task was .*'goal': \(3, 2\)"):
            env.step(np.zeros((1, 2)))


def test_a_physics_fault_ends_that_episode_only() -> None:
    with ParallelEnvironment.from_dm_control(swingup, 2, seed=1) as env:
        env.reset()
        before = env.step(np.zeros((2, 1))).copy()
        env.suite_environment.physics.data.qvel[:] = 1e9
        step = env.step(np.zeros((2, 1)))
        assert list(step.faults) == [0] and step.step_type.tolist() == [LAST, MID]
        assert step.discount.tolist() == [0.0, 1.0]
        np.testing.assert_array_equal(step.observation["position"][0], before.observation["position"][0])
        assert env.step(np.zeros((2, 1))).step_type.tolist() == [FIRST, MID]


def test_pictures_are_of_each_environments_own_model() -> None:
    def coloured(random: np.random.RandomState) -> Any:
        environment = swingup(random)
        environment.physics.model.mat_rgba[:] = [*random.uniform(0, 1, 3), 1]
        return environment

    options: dict[str, Any] = {"pixels": (24, 32), "renderer": "raycast"}
    with ParallelEnvironment.from_dm_control(coloured, 2, seed=5, **options) as env:
        both = env.reset().pixels
        assert both is not None
        for row in range(2):
            with ParallelEnvironment.from_dm_control(coloured, 1, seed=5 + row, **options) as one:
                np.testing.assert_array_equal(one.reset().pixels, both[row : row + 1])
        assert (both[0] != both[1]).any()


def test_a_domain_added_to_the_suite_runs_and_is_announced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def stroll(time_limit: float = 1.0, random: Any = None) -> Any:
        return wandering(random)

    domain = types.SimpleNamespace(SUITE=collections.OrderedDict(stroll=stroll))
    monkeypatch.setitem(SUITE._DOMAINS, "garden", domain)
    monkeypatch.setattr(module, "_ANNOUNCED", set())
    with pytest.warns(UserWarning, match="garden stroll has no C.. task"):
        env = ParallelEnvironment("garden", "stroll", 2, seed=1)
    with env:
        assert not env.begins_in_cpp
        assert env.reset().observation["goal"].shape == (2, 3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ParallelEnvironment("garden", "stroll", 2, seed=1).close()
    with pytest.raises(ValueError, match="garden stroll runs in Python callbacks, .* got 2"):
        ParallelEnvironment("garden", "stroll", 2, num_processes=2)
    with pytest.raises(ValueError, match="unknown domain 'gardn'"):
        ParallelEnvironment("gardn", "stroll", 2)


class OwnStep(control.Environment):  # type: ignore[misc]
    def step(self, action: Any) -> Any:
        return super().step(-action)


def test_what_cpp_cannot_step_is_refused() -> None:
    def own_step(random: np.random.RandomState) -> Any:
        inner = wandering(random)
        return OwnStep(inner.physics, inner.task)

    with pytest.raises(ValueError, match=r"OwnStep has its own step\(\)"):
        ParallelEnvironment.from_dm_control(own_step, 1, seed=1)
    with pytest.raises(TypeError, match="must return a dm_control.rl.control.Environment, got 3"):
        ParallelEnvironment.from_dm_control(lambda random: 3, 1, seed=1)
