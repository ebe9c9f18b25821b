"""Loading of the compiled extension and of the libraries it works with, with one clear error for what is missing."""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall -e .  (or, without a checkout: pip install --force-reinstall --no-deps aime)"
INSTALL_SIMULATOR = "pip install 'mujoco>=3.17,<4' dm_control"


def mujoco_library() -> Path:
    """The path of the library inside the installed mujoco wheel; imports mujoco, which loads it."""
    try:
        import mujoco
    except ImportError as error:
        raise ImportError(f"environments need MuJoCo ({error}): {INSTALL_SIMULATOR}") from error
    directory = Path(mujoco.__file__).parent
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
        raise ImportError(f"the C++ environments are not built ({error}). Build them: {REBUILD}") from error
    try:
        extension.load_mujoco(str(library))
    except RuntimeError as error:
        raise ImportError(f"the C++ environments do not fit this MuJoCo: {error}. Rebuild: {REBUILD}") from error
    return extension


@functools.cache
def load_suite() -> Any:
    """The module `dm_control.suite`.

    dm_control chooses its own GL backend at import; where MUJOCO_GL does not say which, its first try is GLFW, which
    warns on machines without a display. It is not used for rendering here, so the import is told to take EGL if this
    machine has it and none otherwise.
    """
    displays = load_extension().gl_displays()
    chosen = "MUJOCO_GL" in os.environ
    if not chosen:
        egl = any(name.startswith("EGL") for name in displays)
        os.environ["MUJOCO_GL"] = "egl" if egl else "osmesa" if displays else "off"
    try:
        return importlib.import_module("dm_control.suite")
    except ImportError as error:
        raise ImportError(f"environments need dm_control ({error}): {INSTALL_SIMULATOR}") from error
    finally:
        if not chosen:
            del os.environ["MUJOCO_GL"]
