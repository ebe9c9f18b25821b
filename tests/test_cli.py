"""The `aime` command: overview, near names, errors without tracebacks."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from aime import __version__, cli


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
