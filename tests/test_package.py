"""The package as others get it: metadata, and a wheel that holds everything, kernels included."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest

import aime

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the source, without the C++ extensions (their build is tested by every install)."""
    source = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("aime", "kernels", "csrc"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-c",
        "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))",
        str(out),
    ]
    environment = os.environ | {"AIME_SKIP_EXTENSIONS": "1"}
    run = subprocess.run(command, cwd=source, env=environment, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_every_module(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    expected = {str(file.relative_to(ROOT)) for file in (ROOT / "aime").rglob("*.py")}
    expected |= {f"aime/{file.relative_to(ROOT)}" for file in (ROOT / "kernels").rglob("*.py")}
    assert {"aime/__init__.py", "aime/kernels/__init__.py"} <= expected
    assert expected <= packed
    assert "aime/py.typed" in packed
    assert any(name.endswith("licenses/LICENSE") for name in packed)
    assert not [name for name in packed if name.startswith(("tests", "bench", "kernels", "csrc"))]


def test_the_wheel_imports_from_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import aime, aime.kernels as k; print(aime.__file__, k.__file__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert run.stdout.split() == [str(tmp_path / "aime/__init__.py"), str(tmp_path / "aime/kernels/__init__.py")]


def test_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
    metadata = archive.read(name).decode()
    assert f"Version: {aime.__version__}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata
    for extra in ("test", "dev", "tracking", "torchjd"):
        assert f"Provides-Extra: {extra}\n" in metadata
    (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "aime = aime.cli:main" in archive.read(points).decode()


def test_the_build_asks_for_no_torch_and_the_constraints_fit_the_ranges() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = {Requirement(text).name for text in project["build-system"]["requires"]}
    assert {"setuptools", "wheel", "pybind11", "ninja", "mujoco"} <= build
    assert "torch" not in build
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    extras = project["project"]["optional-dependencies"]
    for text in [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *extras["test"],
        *extras["dev"],
    ]:
        requirement = Requirement(text)
        pinned = pins.get(requirement.name.lower().replace("_", "-"))
        assert pinned is not None, f"{requirement.name} is not pinned in constraints.txt"
        assert requirement.specifier.contains(pinned), f"{requirement} does not allow the pinned {pinned}"


def test_on_python_3_13_all_that_dm_control_needs_is_asked_for_but_labmaze() -> None:
    """labmaze has no wheel for it, so that dm_control itself is installed without what it asks for."""
    from packaging.requirements import Requirement

    pytest.importorskip("dm_control")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(texts: list[str], version: str) -> set[str]:
        made = [Requirement(text) for text in texts]
        here = {"python_version": version, "extra": ""}
        found = {one.name for one in made if one.marker is None or one.marker.evaluate(here)}
        return {name.lower().replace("_", "-") for name in found}

    needed = names(requires("dm_control") or [], "3.13")
    assert "labmaze" in needed
    assert needed - {"labmaze", "setuptools"} <= names(project["dependencies"], "3.13")
    assert "dm-control" not in names(project["dependencies"], "3.13")
    assert "dm-control" in names(project["dependencies"], "3.12")
