"""The report of `aime doctor`: complete, and each lack with its cost and its command."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from aime import doctor
from aime.envs import extension as loading


def test_the_report_covers_what_the_tests_themselves_need() -> None:
    findings = {finding.name: finding for finding in doctor.report()}
    assert set(findings) > doctor.OPTIONAL
    for name in ("Python", "PyTorch", "MuJoCo", "dm_control", "C++ environments", "Ray caster", "OpenGL"):
        assert findings[name].present, findings[name]
    for finding in findings.values():
        assert finding.found
        assert bool(finding.cost) != finding.present


def test_a_missing_package_has_a_cost_and_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)
    finding = doctor.mujoco()
    assert not finding.present
    assert "training from an episode file" in finding.cost
    assert "pip install 'mujoco>=3.17,<4'" in finding.mend


def test_a_mujoco_that_dm_control_cannot_use_is_a_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "4.0.0")
    finding = doctor.mujoco()
    assert not finding.present
    assert "4.0.0" in finding.found


def test_a_machine_without_gl_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoGl:
        @staticmethod
        def probe_gl() -> str:
            raise RuntimeError("no offscreen OpenGL (libEGL.so.1 is not installed)")

    monkeypatch.setattr(loading, "load_extension", NoGl)
    finding = doctor.opengl()
    assert not finding.present
    assert "libEGL.so.1 is not installed" in finding.found
    assert "install" in finding.mend


def test_an_extension_of_another_mujoco_is_a_lack_with_the_rebuild_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise ImportError("the C++ environments do not fit this MuJoCo: built for 3.17.0. Rebuild: ...")

    monkeypatch.setattr(loading, "load_extension", refuse)
    finding = doctor.environments()
    assert not finding.present
    assert "--no-build-isolation" in finding.mend


def test_what_pictures_and_faces_need_has_a_line_each() -> None:
    findings = {finding.name: finding for finding in doctor.report()}
    assert {"OpenGL", "OSMesa", "Gymnasium"} <= set(findings)
    if findings["OpenGL"].present:
        for display in loading.gl_displays():
            assert display in findings["OpenGL"].found
    assert "built for MuJoCo 3." in findings["C++ environments"].found


def test_a_gymnasium_that_is_missing_or_too_old_is_a_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aime.envs.faces.vector", None)
    finding = doctor.gymnasium()
    assert not finding.present
    assert "pip install 'gymnasium>=1.1'" in finding.mend


def test_json_and_text_say_the_same(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    findings = (doctor.Finding("Python", True, "3.11"), doctor.Finding("MuJoCo", False, "none", "no pixels", "install"))
    monkeypatch.setattr(doctor, "report", lambda: findings)
    assert doctor.Doctor().run() == 1
    text = capsys.readouterr().out
    assert doctor.Doctor(json=True).run() == 1
    entries = json.loads(capsys.readouterr().out)
    for entry in entries:
        for value in ("name", "found", "cost", "mend"):
            assert entry[value] in text
