"""scripts/gpu.sh in the layout of a GPU machine: torch and pytest installed, aime not, and no GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from types import ModuleType

import pytest

from bench.kernels.cases import CASES

ROOT = Path(__file__).parents[1]
TRACKED = ("aime", "kernels", "scripts", "tests", "bench", "pyproject.toml")

# What a GPU machine says up to the first launch: everything after it fails for want of a driver.
CUDA_SAYS_IT_IS_THERE = """
import torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_name = lambda *_: "Imagined 100"
torch.cuda.get_device_capability = lambda *_: (9, 0)
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of links, and an environment of links to this one's packages without aime; no .pth file is read."""
    directory = tmp_path_factory.mktemp("machine")
    venv.create(directory / "environment", with_pip=False, symlinks=True)
    packages = next((directory / "environment").glob("lib/python3*/site-packages"))
    for place in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))):
        for entry in Path(place).iterdir():
            ours = "aime" in entry.name.lower() or entry.suffix == ".pth"
            if not ours and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    checkout = directory / "checkout"
    checkout.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "results", "build")
    for name in TRACKED:
        source, target = ROOT / name, checkout / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=ignored, symlinks=True)
        else:
            shutil.copy(source, target)
    link = checkout / "aime" / "kernels"  # some checkouts have it; a fresh one has not
    if link.is_symlink():
        link.unlink()
    return directory


def run(machine: Path, *stages: str, cuda: bool, **settings: str) -> subprocess.CompletedProcess[str]:
    packages = next((machine / "environment").glob("lib/python3*/site-packages"))
    (packages / "sitecustomize.py").write_text(CUDA_SAYS_IT_IS_THERE if cuda else "")
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("AIME_", "PYTHON", "TRITON_", "OUT"))
    }
    environment = {**kept, "PYTHON": str(machine / "environment" / "bin" / "python"), **settings}
    command = ["sh", str(machine / "checkout" / "scripts" / "gpu.sh"), *stages]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_without_a_gpu_it_says_so(machine: Path) -> None:
    ended = run(machine, "contact", cuda=False)
    assert ended.returncode == 1
    assert ended.stderr.strip() == ("make gpu: torch sees no CUDA device here (torch.cuda.is_available() is False)")


def test_an_unknown_stage_is_named(machine: Path) -> None:
    ended = run(machine, "contacts", cuda=False)
    assert ended.returncode == 2
    assert "unknown stage 'contacts', expected some of contact, tests, benchmarks, training" in ended.stderr


def test_contact_reaches_the_first_launch_of_every_op(machine: Path) -> None:
    out, other = machine / "contact-out", machine / "contact-other"
    ended = run(machine, "contact", cuda=True, AIME_GPU_OUT=str(out), OUT=str(other))
    assert ended.returncode == 1, ended.stderr
    (record,) = out.glob("imagined-100-*-contact.jsonl")
    found = lines(record)
    assert len(found) == 16  # seven ops, one of them in both structures, two backends
    for line in found:
        assert not line["passed"]
        # not an import, a name or a shape: the machine has no driver
        assert "cuda" in str(line["exception"]).lower() or "nvidia" in str(line["exception"]).lower(), line
        assert not str(line["exception"]).startswith(("ImportError", "ModuleNotFoundError", "NameError", "TypeError"))
    for place in (other, machine / "checkout" / "bench" / "results"):
        assert (place / record.name).read_text() == record.read_text()
    (stages,) = out.glob("imagined-100-*-stages.jsonl")
    assert [line["stage"] for line in lines(stages)] == ["contact"]


def test_the_cuda_tests_are_collected_and_shared_out(machine: Path) -> None:
    out = machine / "tests-out"
    ended = run(
        machine, "tests", cuda=True, AIME_GPU_OUT=str(out), AIME_GPU_WORKERS="1", AIME_GPU_PYTEST="--collect-only"
    )
    log = next(out.glob("imagined-100-*-tests-0.log")).read_text()
    (record,) = out.glob("imagined-100-*-tests-0.jsonl")
    assert lines(record) == [], "a file could not be collected"
    assert ended.returncode == 0, log[-3000:]
    collected = [line for line in log.splitlines() if "::" in line]
    assert len(collected) > 100
    assert any(line.startswith("tests/kernels/") for line in collected)
    assert any(line.startswith("tests/world_model/") for line in collected)


def owed() -> list[str]:
    """Commands of the table of what is owed to a GPU, whatever stands in its last column between backticks."""
    page = (ROOT / "docs" / "kernels" / "h100.md").read_text().partition("## Owed to a GPU")[2]
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [command for row in rows for command in re.findall(r"`([^`]+)`", row.rstrip("| ").rpartition(" | ")[2])]


def test_what_is_owed_to_a_gpu_can_be_typed(machine: Path) -> None:
    """Every command of the page exists, and those that need no installation start in the layout that has none."""
    commands = owed()
    assert len(commands) >= 8
    targets = set(re.findall(r"^([a-z-]+(?: [a-z-]+)*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = {name for target in targets for name in target.split()}
    started: set[str] = set()
    for command in commands:
        words = [word for word in command.split() if not re.match(r"[A-Z_]+=", word)]
        if words[0] == "make":
            assert set(words[1:]) <= known, command
            continue
        assert (ROOT / words[0]).is_file() and os.access(ROOT / words[0], os.X_OK), command
        if words[:2] == ["scripts/gpu.sh", "run"]:
            started.add(" ".join(words[2 : 4 if words[2] == "-m" else 3]))
        if words[3:4] == ["bench.kernels"]:
            assert words[4] in CASES, command
    assert len(started) >= 3
    for entry in sorted(started):
        ended = run(machine, "run", *entry.split(), "--help", cuda=True)
        assert ended.returncode == 0 and ended.stdout.startswith("usage:"), (entry, ended.stderr)
        options = set(re.findall(r"--[a-z-]+", ended.stdout))
        for command in (command for command in commands if f"run {entry}" in command):
            assert set(re.findall(r" (--[a-z-]+)", command)) <= options, command


def test_a_command_of_its_own_leaves_its_results_where_they_are_looked_for(machine: Path) -> None:
    out = machine / "run-out"
    code = "import pathlib, aime.kernels; pathlib.Path('bench/results/own.json').write_text('1')"
    ended = run(machine, "run", "-c", code, cuda=True, OUT=str(out))
    assert ended.returncode == 0, ended.stderr
    assert (out / "own.json").read_text() == "1"
    assert run(machine, "run", "-c", "raise SystemExit(3)", cuda=True, OUT=str(out)).returncode == 3


def test_training_without_episodes_names_the_command_that_makes_them(machine: Path) -> None:
    ended = run(machine, "training", cuda=True, AIME_GPU_OUT=str(machine / "training-out"))
    assert ended.returncode == 1
    assert "gpu_cartpole_swingup.h5, found no file; `make gpu-data` makes it where MuJoCo is" in ended.stdout


def test_a_killed_stage_keeps_what_it_has(machine: Path) -> None:
    """Half a second is not enough for anything; the log and the line about the stage are there all the same."""
    out = machine / "killed-out"
    ended = run(machine, "contact", cuda=True, AIME_GPU_OUT=str(out), AIME_STAGE_SECONDS="0.5")
    assert ended.returncode == 1
    (stages,) = out.glob("imagined-100-*-stages.jsonl")
    assert lines(stages)[0]["codes"] == {"contact": "out of time"}
    assert len(list((machine / "checkout" / "bench" / "results").glob("imagined-100-*-contact.log"))) == 1


def test_shards_are_disjoint_and_complete(tmp_path: Path) -> None:
    (tmp_path / "test_numbers.py").write_text(
        "import pytest\n\n@pytest.mark.parametrize('n', range(7))\ndef test_number(n):\n    assert n != 3\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    seen: list[tuple[object, object]] = []
    for index in range(3):
        record = tmp_path / f"{index}.jsonl"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "gpu_shard",
            "-c",
            os.devnull,
            "--rootdir",
            str(tmp_path),
        ]
        command += ["--shard", f"{index}/3", "--record", str(record), str(tmp_path)]
        subprocess.run(command, env=environment, capture_output=True, check=False, cwd=tmp_path)
        seen += [(line["test"], line["outcome"]) for line in lines(record)]
    assert len(seen) == len(set(seen)) == 7
    assert [name for name, outcome in seen if outcome == "failed"] == ["test_numbers.py::test_number[3]"]


def stages_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    specification = importlib.util.spec_from_file_location("gpu_stages", ROOT / "scripts" / "gpu_stages.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "gpu_stages", module)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("ended", "names", "reported"),
    [
        ({}, ["kernels", "kernels-compiled"], {"kernels": 0, "kernels-compiled": 0}),
        ({"kernels-compiled": "out of time"}, ["kernels", "kernels-compiled"], {"kernels": 0}),
        ({"kernels": "out of time"}, ["kernels"], {"kernels": "out of time"}),
    ],
)
def test_the_table_of_kernels_comes_before_what_torch_compiles(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    ended: dict[str, object],
    names: list[str],
    reported: dict[str, object],
) -> None:
    """Compiling every size would take the stage's whole time; the last ops had no row then."""
    monkeypatch.delenv("AIME_GPU_BENCH", raising=False)
    stages, ran = stages_module(monkeypatch), list[str]()
    deadline = stages.Deadline(float("inf"))

    def run(results: object, commands: dict[str, list[str]], _: object) -> dict[str, object]:
        for name, command in commands.items():
            ran.append(name)
            assert ("--no-compile" in command) == (name == "kernels")
            Path(command[command.index("--out") + 1]).write_text("{}")
            if ended.get(name) == "out of time":
                deadline.end = 0.0
        return {name: ended.get(name, 0) for name in commands}

    monkeypatch.setattr(stages, "run", run)
    assert stages.benchmarks(stages.Results("imagined", [tmp_path / "a", tmp_path / "b"]), deadline) == reported
    assert ran == names
    assert (tmp_path / "b" / "kernels-cuda.json").exists() == ("kernels-compiled" in names)


def test_torch_compile_is_timed_at_a_size_of_every_op(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = stages_module(monkeypatch)
    assert set(stages.OPS) == set(CASES)
    record = ROOT / "bench" / "results" / "nvidia-h100-80gb-hbm3-2026-11-26-kernels.json"
    sizes = {(row["op"], row["size"]) for row in json.loads(record.read_text())["measurements"]}
    chosen = {op for op, size in sizes if re.search(stages.COMPILED, f"{op} {size}")}
    assert chosen == {op for op, _ in sizes}
    assert not any(re.search(stages.COMPILED, size) for _, size in sizes if size.endswith(("16", "fast")))
