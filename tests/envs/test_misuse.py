"""A seeded generator of misuses: each is one clear error, and the environment goes on as if it had not happened."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aime.envs import EnvironmentState, ParallelEnvironment, RayCaster
from aime.envs.extension import load_suite
from tests.envs.reference import suite_environment

COUNT = 3
#: No argument takes these, apart from what `SOUND` says.
JUNK: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**40, -(2**70), 1.5, float("nan"), float("inf"), -1e-9, 1j, "", "3", "\x1b[31m", b"x"),
    *([], [1.5], [[1, 2], [3]], (1, 2, 3), {}, {"a": 1}, {0.5}, range(0), slice(1), object(), Ellipsis, len),
    *(np.zeros(0), np.zeros((2, 2)), np.array(3.5), np.array("x"), np.array([None]), np.datetime64("2020")),
)
#: argument -> the junk, as repr writes it, that is a sound value of it
SOUND: dict[str, set[str]] = {
    "num_envs": set(),
    "num_threads": {"0", "1099511627776"},  # as many as there are environments
    "num_processes": {"0"},
    "batch_size": {"None"},
    "action_repeat": set(),
    "seed": {"None", "0", "(1, 2, 3)"},
    "pixels": {"None"},
    "camera": {"0", "-1"},
    "renderer": set(),
    "quality": set(),
    "samples": {"None"},
    "segmentation": {"True"},
    "frame_stack": set(),
    "depth": {"True"},
    "autoreset": set(),
    "time_limit": {"None", "1.5", "inf", "1099511627776"},
    "dtype": set(),
    "randomise": {"None", repr(len)},
}


def error_of(call: Callable[[], Any]) -> Exception | None:
    """What a call raises."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - its kind is what is tested
        return error
    return None


@pytest.mark.parametrize("name", SOUND)
def test_every_wrong_argument_is_one_error_that_names_it(name: str) -> None:
    threads = len(list(Path("/proc/self/task").iterdir()))
    options: dict[str, Any] = {"num_envs": COUNT, "renderer": "raycast", "pixels": (8, 8)}
    for value in JUNK:
        if repr(value) in SOUND[name]:
            continue
        with pytest.raises((ValueError, TypeError) if name == "seed" else ValueError) as caught:
            ParallelEnvironment("cartpole", "swingup", **{**options, name: value})
        assert name in str(caught.value) and "\x1b" not in str(caught.value), value
    assert len(list(Path("/proc/self/task").iterdir())) == threads


def test_junk_in_place_of_a_task_is_refused() -> None:
    for value in JUNK:
        for arguments in ((value, "swingup"), ("cartpole", value)):
            with pytest.raises(ValueError, match=r"^(unknown )?(domain|task)"):
                ParallelEnvironment(*arguments)
    for value in (3, None, "walk"):
        with pytest.raises(ValueError, match="make_environment must be a function"):
            ParallelEnvironment.from_dm_control(value)  # type: ignore[arg-type]


def test_what_the_machine_has_no_memory_for_is_refused_before_it_is_taken() -> None:
    with pytest.raises(ValueError, match=r"pictures of \(16384, 16384\) for 1000 environments take about .* GiB"):
        ParallelEnvironment("cartpole", "swingup", 1000, pixels=(2**14, 2**14), renderer="raycast")


class Misuses:
    """Calls of an environment that are wrong, drawn from a seed; a few happen to be right."""

    def __init__(self, env: ParallelEnvironment, state: EnvironmentState, seed: int) -> None:
        self.env, self.state, self.generator = env, state, np.random.default_rng(seed)

    def draw(self) -> Callable[[], Any]:
        env = self.env
        ids, junk, actions = self.one(self.ids()), self.one(JUNK), self.one(self.actions())
        field = self.one(("dof_damping", "body_mass", "geom_type", *JUNK))
        calls: tuple[Callable[[], Any], ...] = (
            lambda: env.step(actions),
            lambda: env.reset(ids),
            lambda: env.reset(seed=junk),
            lambda: env.reset([0, 2], seed=junk),
            lambda: env.send(actions, ids),
            env.recv,
            lambda: env.set_model_field(field, junk, ids),
            lambda: env.model_field(junk),
            *[lambda: env.set_state(self.damaged())] * 5,
        )
        return self.one(calls)

    def one(self, values: Any) -> Any:
        return values[int(self.generator.integers(len(values)))]

    def ids(self) -> tuple[Any, ...]:
        masks = (np.array([True, False]), [True], [False] * 5, np.ones((3, 1), bool))
        return *JUNK, *masks, [3], [0, 1.0], ["0"], [2**70], [[0], [1]], np.array([-1])

    def actions(self) -> tuple[Any, ...]:
        size = self.env.action_size
        sound = np.zeros((COUNT, size))
        wrong = (sound * np.nan, sound + 1e9, sound + np.inf, sound[None], sound[:2], sound > 0, sound + 1j)
        return *JUNK, *wrong, [[None]] * COUNT, [["0"]] * COUNT, [[10**400]] * COUNT, sound.astype(object)

    def damaged(self) -> EnvironmentState:
        """A state with one field, or one entry of one, that no environment was in."""
        names = [field.name for field in fields(EnvironmentState)]
        name = self.one([*names, *("physics", "model_changes", "random_states") * 3])
        value = getattr(self.state, name)
        rows = list(value) if isinstance(value, tuple) else []
        row = int(self.generator.integers(COUNT))
        if self.generator.random() < 0.3 or not (len(rows) == COUNT or isinstance(value, np.ndarray)):
            return replace(self.state, **{name: self.one(JUNK)})
        if name == "random_states":
            parts = list(rows[row])
            parts[self.generator.integers(5)] = self.one((*JUNK, np.zeros(624, np.uint32), 625, -np.ones(624)))
            rows[row] = tuple(parts)
        elif name == "model_changes":
            offset = int(self.one((self.generator.integers(5000), self.generator.integers(200_000), 2**40, -1)))
            rows[row] = (*rows[row], (offset, self.one((self.generator.bytes(24), b"\xff" * 8, bytes(40), "x", None))))
        elif rows:
            rows[row] = self.one(JUNK)
        else:
            array = value.copy()
            number = self.one((np.nan, 1e12, -np.inf) if array.dtype.kind == "f" else (77, 5, 100))
            array.reshape(-1)[self.generator.integers(array.size)] = number
            return replace(self.state, **{name: array})
        return replace(self.state, **{name: tuple(rows)})


def in_python(random: np.random.RandomState) -> Any:
    return load_suite().load("reacher", "easy", task_kwargs={"random": random})


MAKERS: dict[str, Callable[[], ParallelEnvironment]] = {
    "in C++": lambda: ParallelEnvironment("cartpole", "swingup", COUNT, seed=1, num_threads=2),
    "begun by dm_control": lambda: ParallelEnvironment("lqr", "lqr_2_1", COUNT, seed=1, num_threads=1),
    "with pictures": lambda: ParallelEnvironment(
        "reacher", "easy", COUNT, seed=1, pixels=(6, 8), frame_stack=2, renderer="raycast", segmentation=True
    ),
    "some at a time": lambda: ParallelEnvironment("walker", "walk", COUNT, seed=1, batch_size=2),
    "in Python": lambda: ParallelEnvironment.from_dm_control(in_python, COUNT, seed=1),
    "in processes": lambda: ParallelEnvironment("cartpole", "swingup", COUNT, seed=1, num_processes=2),
}


@pytest.mark.filterwarnings("ignore:.*has no C.. task:UserWarning")
@pytest.mark.parametrize("kind", MAKERS)
def test_a_misuse_is_one_error_and_changes_nothing(kind: str) -> None:
    refused, draws = 0, 25 if kind == "in processes" else 60
    with MAKERS[kind]() as env:
        env.reset()
        state = env.state()
        before = pickle.dumps(state)
        misuses = Misuses(env, state, seed=3)
        for _ in range(draws):
            error = error_of(misuses.draw())
            if error is not None:
                refused += 1
                assert isinstance(error, ValueError | RuntimeError) or "a seed must be an int" in str(error), repr(
                    error
                )
                assert len(str(error)) > 10
                if env.batch_size is None:  # else something may be in flight
                    assert pickle.dumps(env.state()) == before, str(error)
            env.set_state(state)
        assert np.isfinite(env.step(np.zeros((COUNT, env.action_size))).reward).all()
    assert refused >= 0.7 * draws


def test_masks_choose_environments_wherever_ids_do() -> None:
    mask = np.array([False, True, True])
    with ParallelEnvironment("cartpole", "swingup", COUNT, seed=1, autoreset="disabled", batch_size=1) as env:
        env.reset()
        before = env.step(np.zeros((COUNT, 1))).copy()
        after = env.reset(mask)
        np.testing.assert_array_equal(after.first(), mask)
        np.testing.assert_array_equal(after.qpos[0], before.qpos[0])
        assert not env.reset([False, False, False]).first()[0]
        env.send([[0.5], [0.5]], mask)
        assert sorted(int(env.recv().env_id[0]) for _ in range(2)) == [1, 2]
        env.set_model_field("dof_damping", np.full((2, 2), 3.0), mask.tolist())
        assert [bool(entry) for entry, _ in env.state().fields] == mask.tolist()
        with pytest.raises(ValueError, match="a boolean mask needs an entry for each of the 3 environments, got 2"):
            env.reset(mask[:2])


@pytest.mark.parametrize(
    "dtype", [np.float32, np.dtype("float32"), "float32", np.dtype(">f8").newbyteorder("="), float]
)
def test_numpys_names_of_a_type_are_the_type(dtype: Any) -> None:
    with ParallelEnvironment("cartpole", "swingup", 1, seed=1, dtype=dtype) as env:
        step = env.reset()
        assert env.dtype is np.dtype(dtype).type
        assert step.qpos.dtype == step.observation["position"].dtype == np.dtype(dtype)


def test_an_environment_that_is_closed_says_so_in_every_call() -> None:
    env = ParallelEnvironment("cartpole", "swingup", COUNT, seed=1)
    env.reset()
    state, actions = env.state(), np.zeros((COUNT, 1))
    env.close()
    for call in (
        lambda: env.step(actions),
        env.reset,
        lambda: env.send(actions),
        env.recv,
        env.state,
        lambda: env.set_state(state),
        lambda: env.model_field("dof_damping"),
        lambda: env.set_model_field("dof_damping", 0.0),
        lambda: env.renderer_details,
    ):
        with pytest.raises(RuntimeError, match="the environment cartpole swingup is closed"):
            call()


def test_a_state_whose_model_has_another_structure_is_refused() -> None:
    """Each of its bytes in turn, as a flipped bit leaves it: refused, or steps on."""
    generator = np.random.default_rng(5)
    refused = 0
    with ParallelEnvironment("reacher", "easy", 1, seed=1) as env:
        env.reset()
        state = env.state()
        own = state.model_changes[0]
        for offset in generator.integers(0, 12_000, 300):
            changed = replace(state, model_changes=((*own, (int(offset), bytes([generator.integers(256)]) * 4)),))
            error = error_of(lambda changed=changed: env.set_state(changed))
            refused += error is not None
            assert error is None or "this model cannot have" in str(error) or "cannot be restored" in str(error)
            env.step(np.zeros((1, 2)))
    assert 10 < refused < 300


def test_one_object_for_several_environments_is_refused() -> None:
    shared = in_python(np.random.RandomState(0))
    with pytest.raises(ValueError, match="a new environment, with physics and task of its own"):
        ParallelEnvironment.from_dm_control(lambda _: shared, 2, seed=1)


def test_the_ray_caster_takes_only_data_of_its_model() -> None:
    physics = suite_environment("cartpole", "swingup", 1).physics
    other = suite_environment("walker", "walk", 1).physics
    caster = RayCaster(physics.model.ptr, (8, 8))
    for wrong in (other.data.ptr, physics, None):
        with pytest.raises(ValueError, match=r"data (is of another model|must be a mujoco.MjData)"):
            caster.render(wrong)
    for value in JUNK:
        with pytest.raises(ValueError, match="model must be a mujoco.MjModel"):
            RayCaster(value, (8, 8))
        with pytest.raises(ValueError, match=r"size must be \(height, width\)"):
            RayCaster(physics.model.ptr, value)


FORKED = """
import os, sys, threading, numpy as np
from aime.envs import ParallelEnvironment
env = ParallelEnvironment("cartpole", "swingup", 64, num_threads=1, seed=1, action_repeat=1000)
env.reset()
thread = threading.Thread(target=env.step, args=(np.zeros((64, 1)),))
thread.start()
while True:  # until the thread is within its step
    try:
        env.state()
    except RuntimeError:
        break
child = os.fork()
if child == 0:
    env.close()
    sys.exit(0)
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_the_child_of_a_fork_within_another_threads_step_ends() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr


STACK = 2**32
NO_THREADS = f"""
import resource
from aime.envs import ParallelEnvironment
env = ParallelEnvironment("cartpole", "swingup", 4, num_threads=1, seed=1)
env.reset()
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 3 * {STACK} // 2,) * 2)  # one stack more
try:
    ParallelEnvironment("cartpole", "swingup", 4, num_threads=4, seed=1)
except RuntimeError as error:
    print(error)
print(env.reset().first().all())
"""


def large_stacks() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_STACK, (STACK, resource.getrlimit(resource.RLIMIT_STACK)[1]))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space")
def test_threads_that_the_system_does_not_start_are_an_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_THREADS],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=large_stacks,
        env=os.environ | {"MUJOCO_GL": "disable", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cannot start thread 2 of 3: ")
    assert done.stdout.endswith("\nTrue\n")


def test_calls_of_several_steps_keep_another_thread_out() -> None:
    """A new seed is given and the episodes begun as one: the other thread comes before or after, or is told."""
    with ParallelEnvironment("reacher", "easy", COUNT, seed=1, num_threads=2) as env:
        env.reset()
        told: list[str] = []

        def seed(value: int) -> None:
            for _ in range(40):
                try:
                    env.reset(seed=value)
                except RuntimeError as error:
                    told.append(str(error))

        threads = [threading.Thread(target=seed, args=(value,)) for value in (5, 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all("another thread is using this environment" in one for one in told)
        np.testing.assert_array_equal(env.reset(seed=5).qpos[1], env.reset([0], seed=6).qpos[0])
