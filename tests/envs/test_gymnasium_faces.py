"""The Gymnasium faces: Gymnasium's own checker passes, and the numbers are those of the native face and dm_control."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium", "1.1", reason="needs Gymnasium 1.1: pip install 'gymnasium>=1.1'")
from gymnasium.utils.env_checker import check_env, data_equivalence  # noqa: E402
from gymnasium.vector import AutoresetMode  # noqa: E402

from aime.envs import GymnasiumEnvironment, GymnasiumVectorEnvironment, ParallelEnvironment  # noqa: E402
from aime.envs.extension import load_suite  # noqa: E402
from aime.envs.faces import registration  # noqa: E402
from tests.envs.reference import suite_environment  # noqa: E402

SIZE = (24, 32)
# dm_control's observations have no bounds, as Gymnasium's own MuJoCo tasks have none.
UNBOUNDED = "ignore:.*A Box observation space (minimum|maximum) value is -?infinity:UserWarning"


def make(num_envs: int = 2, **options: Any) -> GymnasiumVectorEnvironment:
    return gymnasium.make_vec("aime/cartpole-balance-v0", num_envs, **options)


def zeros(env: Any) -> np.ndarray:
    return np.zeros(env.action_space.shape, env.action_space.dtype)


@pytest.mark.filterwarnings(UNBOUNDED)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cartpole-swingup", {}),
        ("walker-walk", {"observe": "flat", "action_repeat": 2}),
        ("reacher-easy", {"observe": "pixels", "pixels": SIZE, "quality": "fast"}),
        ("cheetah-run", {"pixels": SIZE, "quality": "fast"}),
    ],
)
def test_gymnasiums_checker_passes(name: str, options: dict[str, Any]) -> None:
    env = gymnasium.make(f"aime/{name}-v0", render_mode="rgb_array", render_size=SIZE, **options)
    check_env(env.unwrapped)
    env.close()


def test_every_task_of_the_suite_has_an_id() -> None:
    assert sorted(registration.pairs()) == sorted(load_suite().ALL_TASKS)
    for domain, task in registration.pairs():
        spec = gymnasium.spec(registration.gymnasium_id(domain, task))
        assert spec.kwargs == {"domain": domain, "task": task}
    registration.register()  # a second time changes nothing


def test_importing_the_package_registers_and_a_module_in_the_id_imports_it() -> None:
    script = (
        "import sys, gymnasium\n"
        "env = gymnasium.make_vec('aime.envs:aime/cartpole-swingup-v0', 2)\n"
        "assert env.reset(seed=1)[0]['position'].shape == (2, 3)\n"
        "env.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_without_gymnasium_the_package_works_and_the_face_says_what_to_install() -> None:
    script = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *rest: None if name.split('.')[0] == 'gymnasium' else find(name, *rest)\n"
        "import aime.envs\n"
        "try:\n"
        "    aime.envs.GymnasiumVectorEnvironment\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "GymnasiumVectorEnvironment needs gymnasium>=1.1" in done.stdout
    assert "pip install 'gymnasium>=1.1'" in done.stdout


def test_the_single_environment_has_dm_controls_numbers() -> None:
    reference = suite_environment("walker", "walk", 7)
    env = gymnasium.make("aime/walker-walk-v0")
    env.action_space.seed(0)
    for seed in (7, None):  # the second episode draws on
        observation, _ = env.reset(seed=seed)
        expected = reference.reset()
        for _ in range(20):
            assert list(observation) == list(expected.observation)
            for name, value in expected.observation.items():
                np.testing.assert_allclose(observation[name], value, rtol=0, atol=1e-12)
            action = env.action_space.sample()
            expected = reference.step(action.astype(np.float64))
            observation, reward, terminated, truncated, info = env.step(action)
            assert reward == pytest.approx(expected.reward, abs=1e-12)
            assert (terminated, truncated, info) == (False, False, {})
    env.close()


def test_spaces_of_the_batch_are_those_of_one_environment_stacked() -> None:
    for observe, pixels in (("dict", SIZE), ("flat", None), ("pixels", SIZE)):
        env = make(3, observe=observe, pixels=pixels, quality="fast")
        observation, _ = env.reset(seed=1)
        assert env.observation_space == gymnasium.vector.utils.batch_space(env.single_observation_space, 3)
        assert observation in env.observation_space
        assert env.action_space.shape == (3, *env.single_action_space.shape)
        stepped, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert stepped in env.observation_space
        assert reward.shape == terminated.shape == truncated.shape == (3,)
        assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
        env.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_autoreset_is_that_of_gymnasiums_own_vector_environment(mode: AutoresetMode) -> None:
    """The same calls to ours and to a SyncVectorEnv of single environments give the same results, infos included."""
    limit = 0.05
    ours = make(3, autoreset_mode=mode, time_limit=limit)
    theirs = gymnasium.make_vec(
        "aime/cartpole-balance-v0", 3, "sync", {"autoreset_mode": mode}, time_limit=limit, num_threads=1
    )
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"] is mode
    assert ours.action_space == theirs.action_space
    assert ours.observation_space == theirs.observation_space
    ours.action_space.seed(3)

    def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
        assert data_equivalence(one[:-1], other[:-1], exact=True)
        assert one[-1].keys() == other[-1].keys()
        for name in one[-1]:
            assert data_equivalence(one[-1][name], other[-1][name], exact=True), name

    same(ours.reset(seed=5), theirs.reset(seed=5))
    ended = 0
    for _ in range(14):
        actions = ours.action_space.sample()
        results = ours.step(actions), theirs.step(actions)
        same(*results)
        over = results[0][2] | results[0][3]
        ended += int(over.sum())
        if mode is AutoresetMode.DISABLED and over.any():
            mask = over.copy()
            mask[0] = False
            same(ours.reset(options={"reset_mask": mask}), theirs.reset(options={"reset_mask": mask}))
            same(ours.reset(options={"reset_mask": ~mask}), theirs.reset(options={"reset_mask": ~mask}))
    assert ended >= 6
    ours.close()
    theirs.close()


def test_a_fault_is_a_termination_with_its_reason() -> None:
    from dataclasses import replace

    for mode in AutoresetMode:
        env = make(2, autoreset_mode=mode)
        env.reset(seed=1)
        state = env.parallel.state()
        physics = state.physics.copy()
        physics[1, 3:5] = 1e9  # time, two positions, then the velocities
        env.parallel.set_state(replace(state, physics=physics))
        for _ in range(5):
            _, reward, terminated, truncated, infos = env.step(zeros(env))
            if terminated.any():
                break
        assert terminated.tolist() == [False, True] and not truncated.any()
        assert np.isfinite(reward).all()
        if mode is AutoresetMode.SAME_STEP:
            assert infos["_final_info"].tolist() == [False, True]
            infos = infos["final_info"]
        assert infos["_fault"].tolist() == [False, True]
        assert "huge value" in infos["fault"][1]
        env.close()


def test_render_draws_the_state_that_is_current() -> None:
    with ParallelEnvironment("reacher", "easy", 2, seed=4, pixels=SIZE) as twin:
        env = gymnasium.make_vec("aime/reacher-easy-v0", 2, render_mode="rgb_array", render_size=SIZE)
        with pytest.raises(RuntimeError, match=r"call reset\(\) before"):
            env.render()
        env.reset(seed=4)
        expected = [twin.reset().pixels]
        found = [env.render()]
        env.action_space.seed(1)
        actions = env.action_space.sample()
        env.step(actions)
        expected.append(twin.step(actions).pixels)
        found.append(env.render())
        for pictures, frames in zip(expected, found, strict=True):
            assert isinstance(frames, tuple) and len(frames) == 2
            np.testing.assert_array_equal(np.stack(frames), pictures)
        env.close()
    assert make(1).render() is None
    drawn = make(1, pixels=SIZE, render_mode="rgb_array")
    observation, _ = drawn.reset(seed=1)
    np.testing.assert_array_equal(drawn.render()[0], observation["pixels"][0])
    assert drawn.metadata["render_fps"] == 100
    drawn.close()


def test_results_are_copies_unless_views_are_asked_for() -> None:
    for copy in (True, False):
        env = make(2, copy=copy)
        first, _ = env.reset(seed=1)
        kept = first["velocity"].copy()
        for _ in range(4):
            env.step(np.ones(env.action_space.shape))
        assert (first["velocity"] == kept).all() == copy
        env.close()


def test_calls_that_do_not_fit_are_named() -> None:
    env = make(2, autoreset_mode="Disabled", time_limit=0.01)
    env.reset(seed=1)
    for options, message in (
        ({"reset_mask": np.array([1, 0])}, r"bool array of shape \(2,\), got int64 \(2,\)"),
        ({"reset_mask": [True, False]}, "got list"),
        ({"reset_mask": np.zeros(2, np.bool_)}, "at least one"),
        ({"reset_maks": None}, "unknown option 'reset_maks' of reset: did you mean 'reset_mask'"),
    ):
        with pytest.raises(ValueError, match=message):
            env.reset(options=options)
    with pytest.raises(ValueError, match="3 seeds for 2 environments"):
        env.reset(seed=[1, 2, 3])
    env.step(zeros(env))
    with pytest.raises(RuntimeError, match=r"\[0, 1\] have ended"):
        env.step(zeros(env))
    env.close()
    env.close()
    with pytest.raises(RuntimeError, match="is closed"):
        env.reset()
    for face in (GymnasiumEnvironment, GymnasiumVectorEnvironment):
        for options, message in (
            ({"observe": "fla"}, "did you mean 'flat'"),
            ({"observe": "pixels"}, r"needs pixels=\(height, width\)"),
            ({"observe": "flat", "pixels": SIZE}, "no place for pixels"),
            ({"render_mode": "human"}, "unknown render_mode 'human'.*Known: rgb_array"),
        ):
            with pytest.raises(ValueError, match=message):
                face("cartpole", "balance", **options)
    with pytest.raises(ValueError, match="unknown autoreset_mode 'Same'.*did you mean 'SameStep'"):
        make(2, autoreset_mode="Same")
    single = GymnasiumEnvironment("cartpole", "balance")
    single.reset()
    with pytest.raises(ValueError, match=r"shape \(1,\), got \(2,\)"):
        single.step(np.zeros(2))
    with pytest.raises(ValueError, match=r"no options, got \['x'\]"):
        single.reset(options={"x": 1})
    single.close()
