"""`aime doctor`: what this machine has, what each lack costs, and the command that mends it.

Nothing here fails: a check that cannot run is a finding. Every check runs on its own, so a broken library shows up in
its own line and not in the others.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

PIP = f"{sys.executable} -m pip install"
GL_PACKAGES = "libegl1 libgl1 libgl1-mesa-dri"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked for.
        present: whether it is there and works.
        found: what was found, or why it does not work.
        cost: what its lack costs; empty when present.
        mend: the exact command that mends it; empty when present, or when there is none (a GPU).
    """

    name: str
    present: bool
    found: str
    cost: str = ""
    mend: str = ""


@dataclass(frozen=True)
class Doctor:
    """Describe this machine: what AIME can use of it, what each lack costs, and the command that mends it."""

    json: bool = False
    """print JSON instead of text"""

    def run(self) -> int:
        """Print the report; 0 when everything that `make train` needs is there, 1 otherwise."""
        findings = report()
        if self.json:
            print(json.dumps([asdict(finding) for finding in findings], indent=2))
        else:
            print(render(findings))
        return 0 if all(finding.present for finding in findings if finding.name not in OPTIONAL) else 1


#: What `make train` runs without.
OPTIONAL = frozenset({"GPU", "Triton", "C++ compiler", "CPU kernels", "OpenGL", "OSMesa", "Gymnasium"})


def report() -> tuple[Finding, ...]:
    """Look at this machine; takes a few seconds, as it imports what it checks and makes one GL context."""
    checks: tuple[Callable[[], Finding], ...] = (
        python,
        torch,
        gpu,
        triton,
        mujoco,
        dm_control,
        compiler,
        environments,
        ray_caster,
        cpu_kernels,
        opengl,
        osmesa,
        gymnasium,
    )
    return tuple(check() for check in checks)


def render(findings: tuple[Finding, ...]) -> str:
    """The report as text: one line for each finding, and below a lack its cost and its command."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{'ok ' if finding.present else '-- '}{finding.name:<{width}}  {finding.found}")
        if finding.cost:
            lines.append(f"   {'':<{width}}  costs: {finding.cost}")
        if finding.mend:
            lines.append(f"   {'':<{width}}  mend:  {finding.mend}")
    return "\n".join(lines)


def python() -> Finding:
    """The interpreter and the cores it may use."""
    from aime.envs.tasks import usable_cores

    return Finding("Python", True, f"{platform.python_version()} on {platform.machine()}, {usable_cores()} CPU cores")


def torch() -> Finding:
    """PyTorch, which everything but data collection needs."""
    return _package("PyTorch", "torch", "no training, no evaluation", f"{PIP} 'torch>=2.11'")


def gpu() -> Finding:
    """A CUDA device that PyTorch can use."""
    name, cost = "GPU", "training on the CPU: the laptop preset in minutes, the larger tiers not in reasonable time"
    try:
        module = importlib.import_module("torch")
        if module.cuda.is_available():
            properties = module.cuda.get_device_properties(0)
            found = f"{module.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
            return Finding(name, True, f"{found}, CUDA {module.version.cuda}")
        if module.version.cuda is None and shutil.which("nvidia-smi"):
            reason, mend = (
                "a CPU-only build of PyTorch on a machine with an NVIDIA driver",
                f"{PIP} --force-reinstall torch",
            )
            return Finding(name, False, reason, cost, mend)
        return Finding(name, False, "none that PyTorch can use", cost)
    except Exception as error:  # noqa: BLE001 - a broken driver may raise anything, and is a finding
        return Finding(name, False, f"{type(error).__name__}: {error}", cost)


def triton() -> Finding:
    """Triton, for the fused GPU kernels."""
    return _package(
        "Triton",
        "triton",
        "kernels run on their plain PyTorch backend: slower on a GPU, the same on a CPU",
        f"{PIP} triton",
    )


def mujoco() -> Finding:
    """The MuJoCo wheel, in the range that dm_control works with."""
    cost, mend = "no environments: training from an episode file only", f"{PIP} 'mujoco>=3.17,<4'"
    finding = _package("MuJoCo", "mujoco", cost, mend)
    if finding.present:
        version = importlib.metadata.version("mujoco")
        major, minor = (int(part) for part in version.split(".")[:2])
        if not (major == 3 and minor >= 17):
            return Finding("MuJoCo", False, f"{version}; dm_control needs 3.17 or a later 3.x", cost, mend)
    return finding


def dm_control() -> Finding:
    """The suite, whose tasks the environments run."""
    return _package(
        "dm_control", "dm_control", "no environments: training from an episode file only", f"{PIP} dm_control"
    )


def compiler() -> Finding:
    """A C++ compiler: only needed to build from source."""
    command = os.environ.get("CXX") or next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if command is None:
        mend = _system_command("g++", "gcc-c++", "cxx-compiler")
        return Finding("C++ compiler", False, "none", "the extensions cannot be rebuilt from source", mend)
    done = subprocess.run([*command.split(), "--version"], capture_output=True, text=True, check=False)
    return Finding("C++ compiler", done.returncode == 0, (done.stdout or done.stderr).split("\n", 1)[0])


def environments() -> Finding:
    """The compiled environments: built, fitting the installed MuJoCo, and with a suite that loads."""
    from aime.envs.extension import load_extension, load_suite, rebuild_command

    cost = "no environments: training from an episode file only"
    try:
        extension = load_extension()
    except ImportError as error:
        return Finding("C++ environments", False, str(error).split(". ", 1)[0], cost, rebuild_command())
    try:
        load_suite()
    except ImportError as error:
        apart = "--no-deps " if sys.version_info >= (3, 13) else ""  # see INSTALL_SIMULATOR
        return Finding("C++ environments", False, str(error), cost, f"{PIP} --force-reinstall {apart}dm_control")
    parts = int(extension.MUJOCO_HEADER_VERSION)
    version = f"{parts // 1000000}.{parts // 1000 % 1000}.{parts % 1000}"
    return Finding("C++ environments", True, f"built for MuJoCo {version}, {len(extension.supported_tasks())} tasks")


def ray_caster() -> Finding:
    """The ray caster, which draws pixels without GL, and the instruction set that this CPU has for it."""
    cost = "no pixels from the environments: states only, or training from an episode file"
    try:
        from aime.envs.raycaster import instruction_sets

        best, *others = instruction_sets()
    except ImportError:
        return Finding("Ray caster", False, "cannot be tried without C++ environments", cost, "see C++ environments")
    also = f"; this CPU runs {' and '.join(others)} as well" if others else ""
    return Finding("Ray caster", True, f"built, uses {best}{also}")


def cpu_kernels() -> Finding:
    """The compiled CPU kernels."""
    from aime.envs.extension import rebuild_command

    try:
        importlib.import_module("aime.kernels._cpu")
    except ImportError as error:
        cost = "kernels run on their plain PyTorch backend on the CPU"
        return Finding("CPU kernels", False, f"not built ({error})", cost, rebuild_command())
    return Finding("CPU kernels", True, "built")


def opengl() -> Finding:
    """An offscreen OpenGL context, made on a thread of its own and dropped."""
    cost = "no pictures by MuJoCo's own renderer (renderer='gl'); the ray caster needs none of it"
    mend = _system_command(GL_PACKAGES, "mesa-libEGL mesa-dri-drivers", "libegl mesalib")
    try:
        from aime.envs.extension import gl_displays, probe_gl

        made = probe_gl()
    except ImportError:
        return Finding("OpenGL", False, "cannot be tried without the C++ environments", cost, "see C++ environments")
    except RuntimeError as error:
        return Finding("OpenGL", False, str(error), cost, mend)
    displays = gl_displays()
    found = f"context made on {made}; threads draw on {', '.join(displays)}"
    if all("(software)" in name for name in displays):
        found += f": software, up to {len(displays)} threads at once in a process"
    return Finding("OpenGL", True, found)


def osmesa() -> Finding:
    """The OSMesa library: what pixels fall back on where EGL is absent."""
    cost = "no pixels from OpenGL on a machine where EGL does not work either"
    for name in ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"):
        try:
            ctypes.CDLL(name)  # here only to see whether it loads; after the environments, whose order matters
        except OSError:
            continue
        return Finding("OSMesa", True, f"{name} loads")
    mend = _system_command("libosmesa6", "mesa-libOSMesa", "mesalib")
    return Finding("OSMesa", False, "not installed", cost, mend)


def gymnasium() -> Finding:
    """Gymnasium, for the faces of the environments that follow it."""
    cost, mend = "no Gymnasium faces of the environments; nothing else needs it", f"{PIP} 'gymnasium>=1.1'"
    finding = _package("Gymnasium", "gymnasium", cost, mend)
    if finding.present:
        try:
            importlib.import_module("aime.envs.faces.vector")
        except ImportError as error:
            return Finding("Gymnasium", False, f"{finding.found}, too old: {error}", cost, mend)
    return finding


def _package(name: str, module: str, cost: str, mend: str, distribution: str | None = None) -> Finding:
    try:
        importlib.import_module(module)
        return Finding(name, True, importlib.metadata.version(distribution or module))
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything, and is a finding
        return Finding(name, False, f"{type(error).__name__}: {error}", cost, mend)


def _system_command(apt: str, dnf: str, conda: str) -> str:
    sudo = "" if os.geteuid() == 0 else "sudo "
    if shutil.which("apt-get"):
        return f"{sudo}apt-get install -y {apt}"
    if shutil.which("dnf"):
        return f"{sudo}dnf install -y {dnf}"
    return f"conda install -c conda-forge {conda}"
