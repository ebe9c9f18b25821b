"""Environments split over processes: the same numbers, the same errors, and an end in every case."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aime.envs import ParallelEnvironment, TimeStep, process_engine
from aime.envs.batch_engine import BatchEngine
from aime.envs.process_engine import ProcessEngine, choose_processes
from aime.envs.settings import checked
from aime.envs.shared_steps import _arrays

DEADLINE = 60.0  # seconds; far more than anything here takes


def assert_equal(left: TimeStep, right: TimeStep) -> None:
    for one, other in zip(_arrays(left), _arrays(right), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert left.faults == right.faults


def wait_for_end(pid: int) -> None:
    """Return when the process has ended (it need not be a child of this one)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(descriptor) as file:
        poll = select.poll()
        poll.register(file, select.POLLIN)
        assert poll.poll(DEADLINE * 1000), f"process {pid} still runs"


def pids(env: ParallelEnvironment) -> list[int]:
    return [worker.process.pid for worker in env._engine._workers.workers]


@pytest.mark.parametrize(
    "options",
    [
        {"domain": "cheetah", "task": "run", "time_limit": 0.05},
        {"domain": "reacher", "task": "hard", "pixels": (16, 24), "segmentation": True, "frame_stack": 2},
        {"domain": "cartpole", "task": "swingup", "dtype": np.float32, "autoreset": "same_step", "time_limit": 0.06},
    ],
    ids=lambda options: str(options["domain"]),
)
def test_processes_give_the_numbers_of_one(options: dict[str, Any], generator: np.random.Generator) -> None:
    options = {"num_envs": 5, "seed": 3, "num_threads": 2, "action_repeat": 2, **options}
    with (
        ParallelEnvironment(**options, num_processes=1) as one,
        ParallelEnvironment(**options, num_processes=2) as split,
    ):
        assert isinstance(one._engine, BatchEngine)
        assert isinstance(split._engine, ProcessEngine)
        for name in (
            "num_envs",
            "num_threads",
            "camera",
            "seeds",
            "joints",
            "control_timestep",
            "action_size",
            "pixels",
        ):
            assert getattr(one, name) == getattr(split, name), name
        assert one.observation_shapes == split.observation_shapes
        assert (one.num_processes, split.num_processes) == (1, 2)
        assert split.suite_environment.action_spec() == one.suite_environment.action_spec()
        assert_equal(one.reset(), split.reset())
        for _ in range(12):
            actions = one.sample_actions(generator)
            assert_equal(one.step(actions), split.step(actions))
        assert_equal(one.reset([4, 1], seed=9), split.reset([4, 1], seed=9))
        seeds = [5, None, 7, None, 9]
        assert_equal(one.reset(seed=seeds), split.reset(seed=seeds))
        assert one.seeds == split.seeds == (5, 10, 7, 6, 9)
        assert_equal(one.reset([2]), split.reset([2]))


def test_results_last_until_the_second_next_step() -> None:
    with ParallelEnvironment("cartpole", "swingup", 2, seed=1, num_processes=2) as env:
        first = env.reset()
        kept = first.copy()
        env.step(np.ones((2, 1)))
        assert_equal(first, kept)
        env.step(np.ones((2, 1)))
        assert not np.array_equal(first.qpos, kept.qpos)


def test_a_state_goes_on_in_any_number_of_processes(generator: np.random.Generator) -> None:
    options: dict[str, Any] = {"domain": "reacher", "task": "easy", "num_envs": 3, "time_limit": 0.2}
    with (
        ParallelEnvironment(**options, seed=1, num_processes=3) as split,
        ParallelEnvironment(**options, seed=8, num_processes=1) as one,
    ):
        split.reset()
        split.step(split.sample_actions(generator))
        state = pickle.loads(pickle.dumps(split.state()))
        assert_equal(one.set_state(state), split.set_state(state))
        for _ in range(15):  # past an autoreset: the random streams go on as well
            actions = one.sample_actions(generator)
            assert_equal(one.step(actions), split.step(actions))
        split.set_state(one.state())
        actions = one.sample_actions(generator)
        assert_equal(one.step(actions), split.step(actions))


def test_faults_and_errors_have_the_numbers_of_all_environments() -> None:
    with ParallelEnvironment("cartpole", "swingup", 3, seed=1, autoreset="disabled", num_processes=2) as env:
        with pytest.raises(RuntimeError, match=r"call reset\(\) before the first step"):
            env.step(np.zeros((3, 1)))
        first = env.reset().copy()
        state = env.state()
        physics = state.physics.copy()
        nq, nv = first.qpos.shape[1], first.qvel.shape[1]
        physics[2, 1 + nq : 1 + nq + nv] = 1e9
        env.set_state(replace(state, physics=physics))
        broken = env.step(np.zeros((3, 1))).copy()
        assert list(broken.faults) == [2]
        with pytest.raises(RuntimeError, match=r"environments \[2\] have ended: call reset\(\[2\]\)"):
            env.step(np.zeros((3, 1)))
        again = env.reset([2])
        np.testing.assert_array_equal(again.qpos[:2], broken.qpos[:2])  # the refused step moved nobody
        assert not again.faults
        with pytest.raises(ValueError, match=r"action of environment 2, entry 0 is nan"):
            env.step(np.array([[0.0], [0.0], [np.nan]]))
        with pytest.raises(ValueError, match=r"no environment 3: there are 3"):
            env.reset([3])
        with pytest.raises(ValueError, match="the state is of 2 environments"):
            env.set_state(replace(state, physics=physics[:2]))
        with pytest.raises(RuntimeError, match="num_processes=1"):
            env.send(np.zeros((3, 1)))
        with pytest.raises(RuntimeError, match="model fields need all environments in one process"):
            env.set_model_field("dof_damping", [0.0, 0.0])
        changes = (state.model_changes[0], state.model_changes[1], ((2**40, b"beyond"),))
        with pytest.raises(ValueError, match="outside this model") as caught:
            env.set_state(replace(state, model_changes=changes))
        assert caught.value.__notes__ == ["in worker process 1 (environment 2), which numbers its own from 0"]
    with pytest.raises(RuntimeError, match="the environment cartpole swingup is closed"):
        env.step(np.zeros((3, 1)))


def test_the_constructor_raises_what_the_processes_raise() -> None:
    with pytest.raises(ValueError, match="unknown camera 'front'"):
        ParallelEnvironment("cartpole", "swingup", 2, pixels=(8, 8), camera="front", num_processes=2)
    with pytest.raises(TypeError, match="pixel_size"):
        ParallelEnvironment("cartpole", "swingup", 2, pixel_size=3, num_processes=2)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"num_processes must lie in \[0, num_envs = 2\], got 3"):
        ParallelEnvironment("cartpole", "swingup", 2, num_processes=3)
    with pytest.raises(ValueError, match="batch_size needs all environments in one process"):
        ParallelEnvironment("cartpole", "swingup", 2, num_processes=2, batch_size=1)
    with pytest.raises(ValueError, match="randomise needs all environments in one process"):
        ParallelEnvironment("cartpole", "swingup", 2, num_processes=2, randomise=lambda env, generator: {})


@pytest.mark.parametrize(
    ("displays", "options", "expected"),
    [
        (["EGL device 0 (software)", "EGL surfaceless (software)"], {"num_threads": 2}, 1),
        (["EGL device 0 (software)", "EGL surfaceless (software)"], {"num_threads": 3}, 2),
        (["EGL device 0 (software)", "EGL surfaceless (software)"], {"num_threads": 64}, 8),
        (["EGL device 0 (software)", "EGL surfaceless (software)"], {"num_threads": 8, "pixels": None}, 1),
        (["EGL device 0 (software)", "EGL surfaceless (software)"], {"num_threads": 8, "renderer": "raycast"}, 1),
        (["EGL device 0 (software)", "EGL surfaceless (software)"], {"num_threads": 8, "batch_size": 4}, 1),
        (["EGL device 0 (software)", "EGL surfaceless (software)"], {"num_threads": 2, "num_processes": 2}, 2),
        (["OSMesa (software)"], {"num_threads": 2}, 2),
        (["EGL device 0"], {"num_threads": 8}, 1),
        ([], {"num_threads": 8}, 1),
    ],
)
def test_the_rule_splits_only_software_pictures_of_many_threads(
    displays: list[str], options: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_engine, "gl_displays", lambda: displays)
    assert choose_processes(checked("cartpole", "swingup", 16, **{"pixels": (64, 64), **options})) == expected


def test_a_dead_process_is_an_error_that_names_its_environments() -> None:
    env = ParallelEnvironment("cartpole", "swingup", 5, seed=1, num_processes=2)
    env.reset()
    workers = pids(env)
    os.kill(workers[1], signal.SIGKILL)
    message = r"worker process 1 \(environments 3 to 4\) of cartpole swingup was ended by SIGKILL"
    with pytest.raises(RuntimeError, match=message):
        env.step(np.zeros((5, 1)))
    for pid in workers:
        wait_for_end(pid)
    with pytest.raises(RuntimeError, match=rf"is closed: {message}"):
        env.step(np.zeros((5, 1)))
    env.close()
    env.close()


def test_another_thread_is_refused_while_one_waits() -> None:
    with ParallelEnvironment("cartpole", "swingup", 2, seed=1, num_processes=2) as env:
        env.reset()
        held = env._engine._workers._exclusive()
        with held:
            errors: list[str] = []

            def step() -> None:
                try:
                    env.step(np.zeros((2, 1)))
                except RuntimeError as error:
                    errors.append(str(error))

            thread = threading.Thread(target=step)
            thread.start()
            thread.join(DEADLINE)
        assert errors == ["another thread is using this environment"]
        env.step(np.zeros((2, 1)))


def use_after_fork(env: ParallelEnvironment, queue: Any) -> None:
    try:
        env.step(np.zeros((2, 1)))
        queue.put("stepped")
    except RuntimeError as error:
        queue.put(str(error))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_the_child_of_a_fork_is_refused_and_leaves_the_processes_alone() -> None:
    with ParallelEnvironment("cartpole", "swingup", 2, seed=1, num_processes=2) as env:
        env.reset()
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=use_after_fork, args=(env, queue))
        child.start()
        assert "made before a fork" in queue.get(timeout=DEADLINE)
        child.join(DEADLINE)
        assert child.exitcode == 0
        env.step(np.zeros((2, 1)))


PARENT = """
import os, signal, sys
import numpy as np
from aime.envs import ParallelEnvironment

env = ParallelEnvironment("cartpole", "swingup", 2, seed=1, num_processes=2)
env.reset()
print(*(worker.process.pid for worker in env._engine._workers.workers), flush=True)
"""
ENDS = {
    "with environments that live": ("", 0),
    "by an error": ("raise SystemExit(3)", 3),
    "by a signal that no handler sees": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "by Ctrl-C while stepping": ("while True: env.step(np.zeros((2, 1)))", -signal.SIGINT),
}


@pytest.mark.parametrize("end", ENDS)
def test_no_process_outlives_a_parent_that_ends(end: str) -> None:
    code, status = ENDS[end]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT + code], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert len(workers) == 2
        if "Ctrl-C" in end:
            os.killpg(parent.pid, signal.SIGINT)
        assert parent.wait(DEADLINE) == status
    for pid in workers:
        wait_for_end(pid)


def test_an_interrupted_step_is_complete_and_the_next_one_follows_it() -> None:
    with (
        ParallelEnvironment("cartpole", "swingup", 2, seed=1, num_processes=2) as env,
        ParallelEnvironment("cartpole", "swingup", 2, seed=1, num_processes=1) as sound,
    ):
        env.reset()
        sound.reset()
        workers = env._engine._workers
        collect = workers._collect

        def interrupted(*, drop: bool = False) -> Any:
            if drop:
                return collect(drop=True)
            raise KeyboardInterrupt

        workers._collect = interrupted
        with pytest.raises(KeyboardInterrupt):
            env.step(np.ones((2, 1)))
        workers._collect = collect
        sound.step(np.ones((2, 1)))
        assert_equal(env.step(-np.ones((2, 1))), sound.step(-np.ones((2, 1))))
