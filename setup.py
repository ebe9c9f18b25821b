"""What pyproject.toml cannot say: kernels/ is the package aime.kernels, and how the C++ extensions are built.

Every extension is compiled by ninja, all files in parallel, with warnings as errors in this project's code (headers of
others are system headers). AIME_SKIP_EXTENSIONS=1 installs the Python part alone: training from files works without
the environments. CXX chooses the compiler; CXXFLAGS and LDFLAGS are added to its own options.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGES = [
    "aime",
    *(f"aime.{name}" for name in find_packages("aime")),
    "aime.kernels",
    *(f"aime.kernels.{name}" for name in find_packages("kernels")),
]
COMPILE_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]


def stop(lacks: list[str]) -> None:
    """End the build with one message that names everything that is missing and what installs it."""
    lines = ["", "AIME cannot build its C++ extensions:", *(f"  - {lack}" for lack in lacks)]
    lines.append("  AIME_SKIP_EXTENSIONS=1 installs without them (no environments, no C++ kernels).")
    raise SystemExit("\n".join(lines) + "\n")


def package_directory(name: str) -> Path | None:
    """The directory of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    locations = list(spec.submodule_search_locations or []) if spec else []
    return Path(locations[0]) if locations else None


def find_compiler() -> str | None:
    """The C++ compiler: CXX, or the first of the usual ones."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((name for name in candidates if shutil.which(shlex.split(name)[0])), None)


def sources(directory: str) -> list[str]:
    """All C++ files below csrc/`directory`, relative to the root, in a fixed order."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / directory).rglob("*.cpp"))


def headers(directory: str) -> list[str]:
    """What the sources of csrc/`directory` include; named so that a source distribution carries it."""
    found = [path for path in (ROOT / "csrc" / directory).rglob("*") if path.suffix in (".hpp", ".h", ".inl")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def extensions() -> list[Extension]:
    """One extension per directory of csrc that has sources; ninja adds the flags every one of them shares."""
    if os.environ.get("AIME_SKIP_EXTENSIONS") == "1":
        return []
    # Floating point stays as written: results must equal dm_control's, also where the compiler could use FMA.
    environment = Extension(
        "aime.envs._parallel_environment",
        sources("parallel_environment") + sources("raycaster"),
        depends=headers("parallel_environment") + headers("raycaster"),
        extra_compile_args=["-ffp-contract=off", "-pthread"],
        extra_link_args=["-ldl", "-pthread"],
    )
    kernels = Extension(
        "aime.kernels._cpu",
        sources("kernels"),
        depends=headers("kernels"),
        extra_compile_args=["-pthread"],
        extra_link_args=["-ldl", "-pthread"],
    )
    return [extension for extension in (environment, kernels) if extension.sources]


class NinjaBuild(build_ext):
    """Builds all extensions with one ninja file: parallel, and only what changed (headers included)."""

    def build_extensions(self) -> None:
        """Write the ninja file of all extensions and run it."""
        compiler, includes, ninja = self.requirements()
        directory = Path(self.build_temp).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        flags = [*COMPILE_FLAGS, *(f"-isystem {shlex.quote(str(path))}" for path in includes)]
        lines = [
            f"builddir = {directory}",
            f"cxx = {compiler}",
            f"flags = {' '.join(flags)} {os.environ.get('CXXFLAGS', '')}",
            "rule compile",
            "  command = $cxx $flags $extra -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = $cxx -shared $in $extra {os.environ.get('LDFLAGS', '')} -o $out",
        ]
        for extension in self.extensions:
            lines += self.rules(extension, directory)
        build_file = directory / "build.ninja"
        build_file.write_text("\n".join(lines) + "\n")
        command = [*ninja, "-f", str(build_file)]
        if self.parallel:
            command += ["-j", str(self.parallel)]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            raise SystemExit("AIME: the C++ extensions did not compile; the compiler's messages are above.")

    def rules(self, extension: Extension, directory: Path) -> list[str]:
        """The ninja statements of one extension."""
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        lines, objects = [], []
        for source in extension.sources:
            built = directory / extension.name / f"{source}.o"
            objects.append(escape(built))
            lines.append(f"build {escape(built)}: compile {escape(ROOT / source)}")
            lines.append(f"  extra = {' '.join(extension.extra_compile_args)}")
        lines.append(f"build {escape(target)}: link {' '.join(objects)}")
        lines.append(f"  extra = {' '.join(extension.extra_link_args)}")
        return lines

    def requirements(self) -> tuple[str, list[Path], list[str]]:
        """The compiler, the system include directories and the ninja command; one message if any is missing."""
        lacks: list[str] = []
        compiler = find_compiler()
        if compiler is None:
            lacks.append("no C++17 compiler (CXX, c++, g++, clang++): apt-get install g++")
        mujoco = package_directory("mujoco")
        if mujoco is None or not (mujoco / "include" / "mujoco" / "mujoco.h").exists():
            lacks.append("no MuJoCo headers: pip install 'mujoco>=3.17,<4' (the wheel carries them)")
        python_include = Path(sysconfig.get_path("include"))
        if not (python_include / "Python.h").exists():
            lacks.append(f"no Python headers in {python_include}: apt-get install python3-dev")
        pybind = package_directory("pybind11")
        if pybind is None:
            lacks.append("no pybind11: pip install pybind11")
        ninja = [sys.executable, "-m", "ninja"] if importlib.util.find_spec("ninja") else ["ninja"]
        if ninja == ["ninja"] and shutil.which("ninja") is None:
            lacks.append("no ninja: pip install ninja")
        if lacks or compiler is None or mujoco is None or pybind is None:
            stop(lacks)
            raise AssertionError("unreachable")
        return compiler, [python_include, pybind / "include", mujoco / "include"], ninja


def escape(path: Path) -> str:
    """A path as ninja reads it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(
    packages=PACKAGES,
    package_dir={"aime": "aime", "aime.kernels": "kernels"},
    ext_modules=extensions(),
    cmdclass={"build_ext": NinjaBuild},
)
