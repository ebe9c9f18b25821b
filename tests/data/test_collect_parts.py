"""A collection in parts holds the same episodes whoever plays them, and goes on where it was stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tyro")

from aime.cli import main as aime
from aime.data import collect as collect_module
from aime.data import open_source
from aime.data.collect import Collect
from aime.data.collect_parts import Plan
from aime.ranges import OptionError


def settings(out: Path, **others: Any) -> Collect:
    return Collect(episodes=5, part_episodes=2, steps=9, size=16, num_envs=2, threads=1, seed=7, out=out, **others)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Parts are played here, one by one, which takes no interpreters; the list says which."""
    played: list[int] = []

    def play(plan: Plan, parts: Sequence[int], command: Callable[[int], list[str]], *, at_once: int) -> Iterator[int]:
        for part in parts:
            assert aime(command(part)) == 0
            played.append(part)
            yield plan.played(parts)

    monkeypatch.setattr(collect_module, "play", play)
    return played


def contents(path: Path) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray, dict[str, float]]]:
    source = open_source(path)
    episodes = []
    for episode, length in enumerate(source.lengths):
        window = source.window(episode, 0, int(length))
        parameters = source.policy_parameters(episode)
        row = int(source.rows["seed"][episode])
        episodes.append((row, window.observations, window.actions, window.body_masks, parameters))
    return episodes


def assert_same(left: Path, right: Path) -> None:
    for one, other in zip(contents(left), contents(right), strict=True):
        assert one[0] == other[0] and one[4] == other[4]
        assert all(np.array_equal(a, b) for a, b in zip(one[1:4], other[1:4], strict=True))


def test_episodes_do_not_depend_on_the_workers(tmp_path: Path, in_this_process: list[int]) -> None:
    assert settings(tmp_path / "two.h5", workers=2).run() == 0
    assert in_this_process == [0, 1, 2]
    source = open_source(tmp_path / "two.h5")
    assert source.lengths.tolist() == [9] * 5 and source.rows["seed"].tolist() == [7, 8, 9, 10, 11]
    assert sorted(np.concatenate(list((source.splits or {}).values()))) == list(range(5))
    # as the tasks of an array would, in any order; the last command joins
    for worker in (2, 0, 1):
        assert settings(tmp_path / "array.h5", workers=3, worker=worker).run() == 0
        assert not (tmp_path / "array.h5").exists()
    assert in_this_process[3:] == [2, 0, 1]
    assert settings(tmp_path / "array.h5", resume=True).run() == 0
    assert len(in_this_process) == 6  # nothing was left to play
    assert_same(tmp_path / "array.h5", tmp_path / "two.h5")
    assert not list(tmp_path.glob("*.parts"))


def test_what_is_finished_is_kept_and_the_rest_played_again(
    tmp_path: Path, in_this_process: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "parts.h5"
    plan = Plan(out, 5, 2, 2)
    for worker in range(2):
        settings(out, workers=2, worker=worker).run()
    plan.file(1).rename(plan.file(1).with_suffix(".h5.elsewhere"))
    assert settings(tmp_path / "whole.h5", workers=2).run() == 0
    (plan.directory / "part_00001.h5.elsewhere").unlink()
    before = len(in_this_process)
    with pytest.raises(FileExistsError, match=r"parts exists already.*--resume.*--overwrite"):
        settings(out, workers=2).run()
    with pytest.raises(ValueError, match=r"settings.*seed 7 \(now 8\)"):
        dataclasses.replace(settings(out, resume=True), seed=8).run()
    assert settings(out, workers=2, resume=True).run() == 0
    assert in_this_process[before:] == [1]
    assert_same(out, tmp_path / "whole.h5")
    with pytest.raises(FileExistsError):
        settings(out, workers=2).run()
    assert settings(out, workers=2, overwrite=True).run() == 0
    assert "5 episodes of 3 parts joined" in capsys.readouterr().out


def test_processes_play_the_parts_and_a_failure_names_its_log(tmp_path: Path) -> None:
    out = tmp_path / "parts.h5"
    collect = Collect(episodes=2, part_episodes=1, steps=4, size=16, threads=1, out=out, workers=2)
    assert collect.run() == 0
    assert open_source(out).lengths.tolist() == [4, 4]
    wrong = dataclasses.replace(collect, task="nothing", episodes=1, out=tmp_path / "wrong.h5")
    with pytest.raises(RuntimeError, match=r"part 0 failed: error: .*nothing.*part_00000\.log"):
        wrong.run()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"workers": 2, "worker": 2}, r"worker: expected 0\.\.1"),
        ({"resume": True, "overwrite": True}, "overwrite: expected it without"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, others: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        settings(tmp_path / "parts.h5", **others).run()
