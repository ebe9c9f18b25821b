"""The soak, for seconds: it does what it says and stores what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import soak


def test_a_short_soak_counts_its_steps_and_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "STATES", ("cartpole/swingup", "lqr/lqr_2_1"))
    monkeypatch.setattr(soak, "DRAWN", (("reacher/easy", "raycast"),))
    monkeypatch.setattr(soak, "STEPS", 3)
    out = tmp_path / "soak.json"
    assert soak.main(["--minutes", "0.005", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    # two batches of 8 and one of 2 environments, 3 steps of 2 control steps each
    assert found["control_steps"] == found["turns"] * 3 * 2 * (8 + 8 + 2) > 0
    assert found["environments_made"] == 3 + 2 * 3 + found["turns"]
    assert found["memory"][0] == found["first_bytes"] > 2**20
    assert "memory first" in capsys.readouterr().out
