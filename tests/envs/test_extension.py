"""Loading: what does not fit is refused with a command, and the build stops with one message."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aime.envs import extension as loading

ROOT = Path(__file__).parents[2]


def test_a_library_that_is_not_mujoco_is_refused() -> None:
    extension = loading.load_extension()
    with pytest.raises(RuntimeError, match="cannot load MuJoCo"):
        extension.load_mujoco("/nonexistent/libmujoco.so")
    library = next(path for path in Path("/proc/self/maps").read_text().split() if "libc.so" in path or "libc-" in path)
    with pytest.raises(RuntimeError, match="has no function mj_version"):
        extension.load_mujoco(library)


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_another_version_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "fake.c"
    source.write_text("int mj_version(void) { return 3099000; }\n")
    library = tmp_path / "libmujoco.so"
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    with pytest.raises(RuntimeError, match=r"built for MuJoCo 3\.\d+\.\d+, but version 3\.99\.0 is installed"):
        loading.load_extension().load_mujoco(str(library))
    # The refusal leaves the library in use as it was.
    assert loading.load_extension().mujoco_version() // 1000000 == 3


def test_a_build_without_its_requirements_ends_with_one_message(tmp_path: Path) -> None:
    if not (ROOT / "setup.py").exists():
        pytest.skip("needs the sources")
    done = subprocess.run(
        # -S: no site-packages, hence neither mujoco nor pybind11; setuptools alone is put back.
        [sys.executable, "-S", "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path), "-t", str(tmp_path)],
        cwd=ROOT,
        env={"PATH": str(tmp_path), "PYTHONPATH": str(_setuptools_alone(tmp_path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    message = done.stderr[done.stderr.index("AIME cannot build") :]
    for lack in ("no C++17 compiler", "no MuJoCo headers: pip install 'mujoco>=3.17,<4'", "no pybind11", "no ninja"):
        assert lack in message
    assert "Traceback" not in done.stderr


def _setuptools_alone(directory: Path) -> Path:
    import setuptools

    site = directory / "site"
    site.mkdir()
    packages = Path(str(setuptools.__file__)).parents[1]
    for name in ("setuptools", "_distutils_hack", "pkg_resources"):
        if (packages / name).exists():
            (site / name).symlink_to(packages / name)
    return site
