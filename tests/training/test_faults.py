"""What is wrong on purpose is refused in one clear line: a slice in every run, all of it by `make faults`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("tyro")

from tests.training.broken_runs import Case, command_cases, make_base, run_case, run_cases

COMMANDS, RUNS = command_cases(seed=1), run_cases(seed=1)
SLICE = [*COMMANDS[3:-1:29], *RUNS[2::23]]  # cheap ones and dear ones alike


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_base(tmp_path_factory.mktemp("broken"))


def check(case: Case, base: tuple[Path, Path], work: Path) -> None:
    outcome = run_case(case, base, work)
    assert outcome.verdict == "clear", f"{outcome.verdict} (status {outcome.status}): {outcome.output}"
    assert outcome.megabytes < 2000


def test_there_are_enough_of_them() -> None:
    assert len(COMMANDS) >= 150 and len({case.name for case in COMMANDS}) == len(COMMANDS)
    assert len(RUNS) >= 60 and len({case.name for case in RUNS}) == len(RUNS)


@pytest.mark.parametrize("case", SLICE, ids=lambda case: case.name)
def test_slice(case: Case, base: tuple[Path, Path], tmp_path: Path) -> None:
    check(case, base, tmp_path / "work")


@pytest.mark.faults
@pytest.mark.parametrize("case", [*COMMANDS, *RUNS], ids=lambda case: case.name)
def test_all(case: Case, base: tuple[Path, Path], tmp_path: Path) -> None:
    check(case, base, tmp_path / "work")
