"""The `aime` command: overview, near names, errors without tracebacks."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from aime import __version__, cli
from aime.ranges import OptionError


def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {name} " in overview for name in ("collect", "train", "evaluate", "imagine", "bench", "doctor"))
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"aime {__version__}\n"


def test_a_wrong_command_names_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["colect"]) == 2
    assert "found 'colect'; did you mean collect?" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_manual(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = cli.load(name)
    assert callable(command.run)
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert f"aime {name}" in capsys.readouterr().out


def test_every_flag_of_collect_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["collect", "--help"])
    manual = capsys.readouterr().out
    for flag in ("--domain", "--steps", "--action-repeat", "--policy", "--quality", "--masks", "--out", "--overwrite"):
        assert flag in manual
    assert "Episodes to store." in manual


def test_a_users_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "x.h5")
    assert cli.main(["collect", "--policy", "smoth", "--out", out]) == 2
    message = capsys.readouterr().err
    assert message == "error: policy: expected one of uniform, smooth, found 'smoth'; did you mean smooth?\n"
    monkeypatch.setenv("AIME_TRACEBACK", "1")
    with pytest.raises(ValueError, match="did you mean smooth"):
        cli.main(["collect", "--policy", "smoth", "--out", out])


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ValueError("FILE: expected a, found b"), 1, "error: FILE: expected a, found b\n"),
        (OptionError("steps: expected 1, found 2"), 2, "error: steps: expected 1, found 2\n"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "data.h5"),
            1,
            "data.h5: no such file or directory",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/dev/shm/x"),
            1,
            "/dev/shm/x: no space left on device (the disk",
        ),
        (MemoryError(), 1, "error: out of memory"),
        (RuntimeError("[enforce fail] not enough memory: you tried to allocate 9 bytes"), 1, "error: out of memory"),
        (RuntimeError("no GL\nlibrary\x1b[31m"), 1, "error: no GL; library\\x1b[31m\n"),
        (KeyError("spec"), 1, "error: unexpected KeyError: 'spec' at cli.py:"),
        (AssertionError(), 1, "error: unexpected AssertionError"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ValueError("x" * 10_000), 1, "... (--traceback shows the rest)"),
    ],
)
def test_every_error_is_one_line(error, status, words, capsys, monkeypatch) -> None:
    def fail(_: list[str]) -> int:
        raise error

    monkeypatch.delenv("AIME_TRACEBACK", raising=False)
    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["train"]) == status
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1 and "\x1b" not in message and len(message) < 800
    if not isinstance(error, KeyboardInterrupt):
        with pytest.raises(type(error)):
            cli.main(["train", "--traceback"])


def test_a_warning_is_one_line(capsys, monkeypatch) -> None:
    def warn(_: list[str]) -> int:
        warnings.warn("mind\nthe \x1b[31mgap", stacklevel=1)
        return 0

    monkeypatch.setattr(cli, "_run", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert cli.main(["train"]) == 0
    assert capsys.readouterr().err == "warning: mind; the \\x1b[31mgap\n"


@pytest.mark.parametrize("arguments", [["train", "--out", ""], ["train", "--out="], [""], ["evaluate", ""]])
def test_an_empty_argument_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert "expected a value, found an empty one" in capsys.readouterr().err


@pytest.mark.parametrize("sink", ["a closed pipe", "a full disk"])
def test_output_that_cannot_be_written_is_no_traceback(sink: str) -> None:
    """`aime | head` may end before all is written; /dev/full is a disk without room."""
    if sink == "a closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full", os.O_WRONLY)
    run = subprocess.run([sys.executable, "-m", "aime"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert run.returncode == 1
    assert run.stderr == ("" if sink == "a closed pipe" else "error: no space left on device\n")


def test_python_m_aime_is_the_same_command() -> None:
    run = subprocess.run([sys.executable, "-m", "aime", "--version"], check=True, capture_output=True, text=True)
    assert run.stdout == f"aime {__version__}\n"


@pytest.mark.parametrize(
    ("name", "module", "flags"),
    [
        ("step --profile", "bench.step_profile", ["--rounds=2"]),
        ("env", "bench.env", ["--rounds=2", "--seconds=0.8", "--num-envs=32", "--minutes=5.5", "--threads=0"]),
        ("kernels", "bench.kernels.__main__", ["--rounds=2"]),
        ("raycast", "bench.raycast", ["--rounds=2", "--poses=60"]),
        ("step", "bench.step", ["--rounds=2", "--batch=16", "--frames=16"]),
    ],
)
def test_bench_runs_the_chosen_benchmark_of_the_checkout(
    name: str, module: str, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []

    def record(arguments: list[str]) -> int:
        given.append(arguments)
        return 3

    monkeypatch.setattr(importlib.import_module(module), "main", record)
    assert cli.main(["bench", *name.split(), "--rounds", "2"]) == 3
    assert given == [flags]


def test_bench_without_a_checkout_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aime.bench.ROOT", tmp_path)
    assert cli.main(["bench", "env"]) == 1
    assert "they come with the sources" in capsys.readouterr().err
