"""Locks on files and directories: exclusive, told apart by what they hold, gone with their holder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aime.locking import LockedError, hold

HOLDER = """
import sys
from aime.locking import hold
lock = hold(sys.argv[1], "a test")
print("held", flush=True)
sys.stdin.readline()
"""


def _holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_who_holds_the_path(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    with _holder(path) as process:
        with pytest.raises(LockedError, match=rf"run: .* for training, found it in use by process {process.pid} ") as e:
            hold(path, "training")
        assert "for a test:" in str(e.value)
        assert " -c " in str(e.value)  # the command
        process.send_signal(signal.SIGKILL)
    with hold(path, "training"):  # the file of the killed holder is there and locks nothing
        pass
    assert list(path.parent.iterdir()) == []


def test_one_process_cannot_hold_a_path_twice_and_links_are_the_same_path(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    lock = hold(tmp_path / "run", "training")
    with pytest.raises(LockedError, match=f"process {os.getpid()} "):
        hold(tmp_path / "link", "training")
    with hold(tmp_path / "other", "training"):
        pass
    lock.release()
    lock.release()
    hold(tmp_path / "link", "training").release()


FORKING_HOLDER = """
import os, signal, sys
from aime.locking import hold
lock = hold(sys.argv[1], "a test")
if os.fork():
    signal.pause()
print("child", os.getppid(), flush=True)
sys.stdin.readline()
"""


def test_a_forked_child_does_not_keep_its_parents_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKING_HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == f"child {parent.pid}\n"
        with pytest.raises(LockedError):
            hold(tmp_path / "run", "training")
        parent.kill()
        parent.wait()
        hold(tmp_path / "run", "training").release()  # the child still lives: it waits for its input to end


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".run.lock").symlink_to(victim)
    with pytest.raises(OSError, match=r"cannot lock .*run for training.*\.run\.lock"):
        hold(tmp_path / "run", "training")
    assert victim.read_text() == "precious"


def test_control_characters_of_a_holder_are_escaped(tmp_path: Path) -> None:
    lock = hold(tmp_path / "run", "training")
    (tmp_path / ".run.lock").write_text("process 1: \x1b[31mred")
    with pytest.raises(LockedError, match=r"process 1: \\x1b\[31mred"):
        hold(tmp_path / "run", "training")
    lock.release()
