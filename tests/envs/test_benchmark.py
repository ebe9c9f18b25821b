"""The environments' benchmark: it measures, ends in time, names who is absent, and its chart shows what is stored."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from bench import env as benchmark
from bench.environments.chart import chart
from bench.environments.contestants import PICTURES, STATES, Contestant
from bench.environments.settings import TASKS, Settings
from tests.envs.reference import suite_environment

TINY = Settings(rounds=2, seconds=0.15, num_envs=2, pixel_envs=1, threads=1, size=16)
OURS = {"ours": STATES["ours"], "dm_control": STATES["dm_control"]}


def test_a_run_stores_every_round_and_its_ratios(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Contestant(STATES["ours"].open, lambda: "pip install nobody")
    pictures = {"ours, exact": PICTURES["ours, exact"]}
    monkeypatch.setattr(benchmark, "KINDS", {"control_steps": OURS | {"nobody": missing}, "pictures": pictures})
    sizes = ["--rounds=2", "--seconds=0.15", "--num-envs=2", "--pixel-envs=1", "--threads=1", "--size=16"]
    out = tmp_path / "env.json"
    begin = time.monotonic()
    tasks = ["cartpole/swingup", "cartpole/none"]
    assert benchmark.main(["--tasks", *tasks, *sizes, "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["run_seconds"] <= time.monotonic() - begin + 1
    assert record["absent"] == {"nobody": "pip install nobody"}
    assert "absent: nobody (pip install nobody)" in capsys.readouterr().out
    assert record["unknown_tasks"] == ["cartpole/none"]
    rates = record["control_steps"]["cartpole/swingup"]
    assert set(rates) == {"ours", "dm_control"}
    for rate in rates.values():
        assert len(rate["rounds"]) == 2 and min(rate["rounds"]) > 100
        assert rate["per_cpu_second"] > 100
    assert rates["ours"]["ours_over"] == 1.0
    ratios = [mine / theirs for mine, theirs in zip(*(rates[one]["rounds"] for one in OURS), strict=True)]
    assert rates["dm_control"]["ours_over"] == pytest.approx(sum(ratios) / 2)
    assert record["pictures"]["cartpole/swingup"]["ours, exact"]["per_second"] > 1


def test_the_time_of_a_run_is_shared_out_and_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(benchmark.time, "monotonic", lambda: now)
    clock = benchmark.Clock(minutes=1.0, tasks=3)
    assert clock.seconds(measurements=10, most=0.5, overhead=0.0) == 0.5
    now = 30.0
    assert clock.seconds(measurements=10, most=5.0, overhead=5.0) == pytest.approx((30 / 2 - 5) / 10)
    now = 52.0  # too little for a fair share, enough for the shortest measurements
    clock = benchmark.Clock(minutes=1.0, tasks=9)
    now = 100.0
    assert clock.seconds(measurements=10, most=5.0, overhead=5.0) == benchmark.LEAST_SECONDS
    now = 111.0
    assert clock.seconds(measurements=10, most=5.0, overhead=0.0) == 0.0


def test_a_contestant_that_fails_is_left_out_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    process = benchmark.ContestantProcess("control_steps", "ours", TINY)
    try:
        rates = benchmark.take_turns([process], "cartpole/fly", rounds=1, seconds=0.1)
        assert rates == {}
        assert "unknown task 'fly'" in capsys.readouterr().out
        rates = benchmark.take_turns([process], "cartpole/balance", rounds=1, seconds=0.1)  # and goes on
        assert rates["ours"][0].per_second > 0
    finally:
        process.end()


def test_contestants_do_the_same_amount_of_physics() -> None:
    """mj_step.cpp and mujoco.rollout take the substeps of a control step; EnvPool's frame_skip counts them too."""
    envpool = pytest.importorskip("envpool", reason="needs EnvPool: pip install envpool")
    for text in TASKS:
        domain, task = text.split("/")
        name = "".join(part.capitalize() for part in (domain, *task.split("_"))) + "-v1"
        assert envpool.make_spec(name).config.frame_skip == suite_environment(domain, task, 1)._n_sub_steps


def test_the_chart_has_every_figure_and_the_stored_one_is_up_to_date() -> None:
    def rate(value: float) -> dict[str, Any]:
        return {"per_second": value}

    record = {
        "machine": {"cpu": "A <CPU>"},
        "settings": {"threads": 2, "action_repeat": 2, "num_envs": 32, "pixel_envs": 8, "rounds": 3, "size": 64},
        "control_steps": {"walker/walk": {"ours": rate(96.0), "EnvPool": rate(90.0), "mj_step": rate(100.0)}},
        "pictures": {"walker/walk": {"ours, exact": rate(30.0), "dm_control": rate(10.0)}},
    }
    drawn = chart(record)
    for text in ("walker/walk, ours: 0.96", "walker/walk, EnvPool: 0.90", "ours, exact: 3.00", "A &lt;CPU&gt;"):
        assert text in drawn
    heights = [float(height) for height in re.findall(r'height="([\d.]+)" rx="1.5"', drawn)]
    assert heights[0] / heights[1] == pytest.approx(96 / 90, abs=0.01)
    if benchmark.CHART.exists():
        stored = json.loads((benchmark.RESULTS / "env.json").read_text())
        assert benchmark.CHART.read_text() == chart(stored), "run `python scripts/update_readme.py`"
