"""Loading of the compiled extension and of the libraries it works with, with one clear error for what is missing."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# MuJoCo and dm_control import PyOpenGL, which without a GL library fails with any of these.
_BROKEN = (ImportError, AttributeError, RuntimeError)
INSTALL_SIMULATOR = "pip install 'mujoco>=3.17,<4' dm_control"
if sys.version_info >= (3, 13):  # labmaze, which dm_control asks for, has no wheel; nothing here needs it
    INSTALL_SIMULATOR = "pip install 'mujoco>=3.17,<4' && pip install --no-deps dm_control"


def rebuild_command() -> str:
    """The command that compiles the extension against the MuJoCo that this interpreter has.

    Without build isolation: an isolated build would take the newest MuJoCo's headers instead of the installed one's.
    """
    root = Path(__file__).parents[2]
    source = f"-e {root}" if (root / "setup.py").exists() else "--force-reinstall --no-cache-dir AIME_SOURCE_DIRECTORY"
    pip = f"{sys.executable} -m pip install"
    return f"{pip} 'setuptools>=77' wheel pybind11 ninja && {pip} --no-build-isolation --no-deps {source}"


def mujoco_library() -> Path:
    """The path of the library inside the installed mujoco wheel; imports mujoco, which loads it."""
    try:
        mujoco = importlib.import_module("mujoco")
    except _BROKEN as error:
        raise ImportError(f"environments need MuJoCo ({_reason(error)}): {INSTALL_SIMULATOR}") from error
    directory = Path(str(mujoco.__file__)).parent
    found = sorted([*directory.glob("libmujoco.so*"), *directory.glob("libmujoco*.dylib")])
    if not found:
        raise ImportError(f"no MuJoCo library in {directory}: {INSTALL_SIMULATOR}")
    return found[0]


@functools.cache
def load_extension() -> Any:
    """The module `aime.envs._parallel_environment`, bound to the MuJoCo library of this interpreter.

    Raises:
        ImportError: the extension is not built, or was built for another MuJoCo; the message has the command.
    """
    library = mujoco_library()
    try:
        extension: ModuleType = importlib.import_module("aime.envs._parallel_environment")
    except ImportError as error:
        raise ImportError(f"the C++ environments are not built ({error}). Build them: {rebuild_command()}") from error
    try:
        extension.load_mujoco(str(library))
    except RuntimeError as error:
        raise ImportError(
            f"the C++ environments do not fit this MuJoCo: {error}. Rebuild: {rebuild_command()}"
        ) from error
    return extension


@functools.cache
def shield_triton() -> None:
    """Load Triton's library, where it is installed, before a GL library is.

    Mesa loads its LLVM with globally visible symbols. A Triton that is loaded afterwards binds its own LLVM's functions
    to that one and crashes the process; `import torch._dynamo` is enough to load it. Loaded first (90 ms), Triton keeps
    its own. dm_control's EGL import has the same effect as a context of ours.
    """
    spec = importlib.util.find_spec("triton") if "triton" not in sys.modules else None
    for directory in (spec.submodule_search_locations or []) if spec else []:
        library = Path(directory) / "_C" / "libtriton.so"
        if library.exists():
            ctypes.CDLL(str(library))  # RTLD_NOW | RTLD_LOCAL: everything is bound here, nothing is given to others


def gl_displays() -> list[str]:
    """The GL displays that threads draw on in turn; empty when this machine cannot render offscreen."""
    shield_triton()
    return [str(name) for name in load_extension().gl_displays()]


def probe_gl() -> str:
    """Make an offscreen GL context, drop it, and say where it was.

    Raises:
        RuntimeError: this machine cannot; the message says what was tried and what to install.
    """
    shield_triton()
    return str(load_extension().probe_gl())


@functools.cache
def load_suite(gl: bool = True) -> Any:
    """The module `dm_control.suite`.

    dm_control chooses its own GL backend at import; where MUJOCO_GL does not say which, its first try is GLFW, which
    warns on machines without a display. Pictures here do not go through it, so its import is told to take EGL where
    this machine has that (so that `physics.render` works too) and none otherwise. `gl=False` does not look for EGL:
    then no GL library is loaded, and `physics.render` works only where MUJOCO_GL asks for it.
    """
    shield_triton()
    if "MUJOCO_GL" in os.environ:
        return _import_suite()
    choices = ["off"]
    if gl and any(name.startswith("EGL") for name in gl_displays()):
        choices.insert(0, "egl")
    try:
        for backend in choices:
            os.environ["MUJOCO_GL"] = backend
            try:
                return _import_suite()
            except ImportError:
                if backend == choices[-1]:
                    raise
    finally:
        del os.environ["MUJOCO_GL"]
    raise AssertionError("unreachable")


def _import_suite() -> Any:
    try:
        return importlib.import_module("dm_control.suite")
    except _BROKEN as error:
        raise ImportError(f"environments need dm_control ({_reason(error)}): {INSTALL_SIMULATOR}") from error


def _reason(error: Exception) -> str:
    backend = os.environ.get("MUJOCO_GL")
    return f"{error}; MUJOCO_GL is {backend!r}: is that library installed?" if backend else str(error)
