"""What goes wrong outside the physics: signals, exits, copies, forks, leaks, and errors of dm_control itself."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aime.envs import ParallelEnvironment

PATIENCE = 120  # seconds; a hang fails here, a busy machine does not


def zeros(env: ParallelEnvironment) -> np.ndarray:
    return np.zeros((env.num_envs, env.action_size))


def play(env: ParallelEnvironment, steps: int) -> None:
    for _ in range(steps):
        env.step(zeros(env))


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


INTERRUPTED = """
import sys, numpy as np
from aime.envs import ParallelEnvironment
env = ParallelEnvironment("humanoid", "run", 32, num_threads=2, seed=1, action_repeat=50)
env.reset()
actions = np.zeros((32, 21))
try:
    print("ready", flush=True)
    while True:
        env.step(actions)
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(np.isfinite(env.step(actions).reward).all(), flush=True)  # nothing was left half done
env.close()
"""


def test_an_interrupt_during_a_step_reaches_the_caller_and_the_environment_goes_on() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    out, error = child.communicate(timeout=PATIENCE)
    assert (out, child.returncode) == ("interrupted\nTrue\n", 0), error


@pytest.mark.parametrize(
    "end",
    ["pass", "sys.exit(3)", "raise ValueError('mine')", "threading.Thread(target=play, daemon=True).start(); play(3)"],
)
def test_the_interpreter_ends_with_environments_alive(end: str) -> None:
    """Also within a step of another thread: the status is the program's own."""
    script = (
        "import sys, threading, numpy as np\n"
        "from aime.envs import ParallelEnvironment\n"
        "first = ParallelEnvironment('cartpole', 'swingup', 2, num_threads=2, seed=1)\n"
        "other = ParallelEnvironment('humanoid', 'run', 8, num_threads=2, seed=1, action_repeat=20)\n"
        "first.reset(); other.reset()\n"
        "def play(count=10**9):\n"
        "    env, turn = (other, 0) if count > 3 else (first, 0)\n"
        "    while turn < count:\n"
        "        env.step(np.zeros((env.num_envs, env.action_size)))\n"
        "        turn += 1\n"
        f"{end}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False)
    status = {"sys.exit(3)": 3, "raise ValueError('mine')": 1}.get(end, 0)
    assert done.returncode == status, done.stderr
    if status == 1:
        assert "ValueError: mine" in done.stderr
    elif "daemon" in end:  # the thread learns it by an error of its own, if it still has the time to print it
        assert all("is closed" in line for line in done.stderr.splitlines() if "Error" in line)
    else:
        assert done.stderr == ""


def test_an_environment_is_not_pickled_or_copied_but_its_state_is() -> None:
    with ParallelEnvironment("cartpole", "swingup", 2, seed=1) as env:
        env.reset()
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=r"cannot be pickled or copied: pickle its state\(\)"):
                attempt(env)
        state = pickle.loads(pickle.dumps(env.state()))
        expected = env.step(zeros(env)).copy()
        env.set_state(state)
        np.testing.assert_array_equal(env.step(zeros(env)).qpos, expected.qpos)


@pytest.mark.parametrize(
    ("actions", "found"),
    [
        ([["left"], ["right"]], "<U5"),
        (np.zeros((2, 1), dtype=complex), "complex128"),
        (np.zeros((2, 1), dtype=bool), "bool"),
        (np.full((2, 1), None), "object"),
    ],
)
def test_actions_that_are_no_real_numbers_are_refused(actions: Any, found: str) -> None:
    with ParallelEnvironment("cartpole", "swingup", 2, seed=1) as env:
        env.reset()
        with pytest.raises(ValueError, match=f"actions must be real numbers, got an array of {found}"):
            env.step(actions)
        for kind in (np.float32, np.float16, np.int64, np.uint8):
            assert np.isfinite(env.step(np.zeros((2, 1), dtype=kind)).reward).all()


def test_closing_and_dropping_environments_leaves_no_thread_and_no_descriptor() -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def use() -> None:
        env = ParallelEnvironment("cartpole", "swingup", 4, num_threads=3, seed=1)
        env.reset()
        env.step(zeros(env))
        env.close()
        env.close()
        dropped = ParallelEnvironment("cartpole", "swingup", 4, num_threads=3, seed=1)
        dropped.reset()  # and never closed

    use()
    gc.collect()
    before = threads(), open_files()
    for _ in range(5):
        use()
    gc.collect()
    assert (threads(), open_files()) == before


def test_a_constructor_that_fails_leaves_no_thread() -> None:
    gc.collect()
    before = threads()
    for options in ({"camera": "none"}, {"seed": -1}, {"pixels": (0, 1)}, {"quality": "best"}):
        with pytest.raises(ValueError, match=r".+"):
            ParallelEnvironment("cartpole", "swingup", 4, num_threads=3, **options)
    gc.collect()
    assert threads() == before


def test_a_second_thread_gets_an_error_or_its_turn_and_nothing_breaks() -> None:
    with ParallelEnvironment("humanoid", "run", 8, num_threads=2, seed=1) as env:
        env.reset()
        answers: list[str] = []

        def play() -> None:
            for _ in range(20):
                try:
                    env.step(zeros(env))
                except RuntimeError as error:
                    answers.append(str(error))

        players = [threading.Thread(target=play) for _ in range(2)]
        for player in players:
            player.start()
        for player in players:
            player.join(PATIENCE)
            assert not player.is_alive()
        assert all("another thread is using this environment" in answer for answer in answers)
        assert np.isfinite(env.step(zeros(env)).reward).all()


def _exit_at_once(env: ParallelEnvironment) -> None:
    env.num_envs += 0  # the child holds the environment, and ends without having used it


# The parent is a pytest process with threads; that forking it is risky is the point of the test.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_that_does_not_use_the_environment_ends() -> None:
    with ParallelEnvironment("cartpole", "swingup", 2, num_threads=2, seed=1) as env:
        env.reset()
        child = multiprocessing.get_context("fork").Process(target=_exit_at_once, args=(env,))
        child.start()
        child.join(PATIENCE)
        assert child.exitcode == 0
        env.step(zeros(env))


def test_an_error_of_dm_control_in_a_new_episode_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks whose episodes dm_control begins: the error is its own, and the environment is usable afterwards."""
    with ParallelEnvironment("dog", "stand", 1, seed=1, time_limit=0.03) as env:
        if env.begins_in_cpp:
            pytest.skip("C++ begins the episodes of this task")
        env.reset()

        def fail() -> None:
            raise OSError("no more episodes")

        with monkeypatch.context() as patch:
            patch.setattr(env.suite_environment, "reset", fail)
            with pytest.raises(OSError, match="no more episodes"):
                play(env, 8)
        assert np.isfinite(env.reset().qpos).all()
        assert np.isfinite(env.step(zeros(env)).qpos).all()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupt_while_an_episode_is_drawn_leaves_its_random_numbers(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """In dm_control, and in the function that randomises the model: the next try draws the same again."""
    failing = [False]

    def randomise(env: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        stiffness = generator.uniform(0.1, 1.0, 1)
        if failing[0]:
            raise error
        return {"dof_armature": stiffness}

    def episodes(*, interrupted: bool) -> list[np.ndarray]:
        with ParallelEnvironment("point_mass", "hard", 1, seed=1, randomise=randomise) as env:
            found = [env.reset().qpos.copy()]
            if interrupted:
                draw = env.suite_environment.reset

                def fail() -> None:
                    draw()
                    raise error

                failing[0] = True
                with pytest.raises(error):
                    env.reset()
                failing[0] = False
                with monkeypatch.context() as patch:
                    patch.setattr(env.suite_environment, "reset", fail)
                    with pytest.raises(error):
                        env.reset()
            for _ in range(3):
                found.append(env.reset().qpos.copy())
                found.append(env.step(zeros(env)).qvel.copy())
            return found

    np.testing.assert_array_equal(np.stack(episodes(interrupted=True)), np.stack(episodes(interrupted=False)))
