"""The floors of the house: who may import whom, and what `import aime` may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PILLARS = {
    "perceiver_io",
    "generative_prior",
    "encoder_decoder",
    "temporal_dynamics",
    "attention_schema",
    "multi_task_learning",
    "adversarial",
}
#: at the bottom of the house, known to every room
BOTTOM = {
    "command",
    "devices",
    "documented_names",
    "documented_tables",
    "files",
    "locking",
    "ranges",
    "ranks",
    "tensor_files",
    "terminal",
    "threads",
}
#: room -> rooms that it may import (itself always)
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "terminal": set(),
    "locking": {"terminal"},
    "files": {"terminal"},
    "tensor_files": {"files", "terminal"},
    "devices": {"ranges"},
    "command": {"files", "ranges", "terminal"},
    "documented_names": set(),
    "documented_tables": {"documented_names"},
    "nn": {"kernels"},
    "allocator": set(),
    "kernels": set(),
    "ranges": set(),
    "ranks": set(),
    "threads": set(),
    **{pillar: {"nn", "kernels", *BOTTOM} for pillar in PILLARS},
    "world_model": {*PILLARS, "nn", "kernels", *BOTTOM},
    "envs": {"documented_tables"},
    "data": {"envs", *BOTTOM},
    "training": {"world_model", *PILLARS, "nn", "kernels", "data", "envs", "allocator", *BOTTOM},
    "evaluation": {"world_model", *PILLARS, "nn", "kernels", "data", "envs", "allocator", *BOTTOM},
    "control": {"training", "evaluation", "world_model", *PILLARS, "nn", "kernels", "data", "envs", *BOTTOM},
    "watch": {"training", "evaluation", "world_model", "data", *BOTTOM},
    "doctor": {"envs", "kernels", *BOTTOM},
    "models": {"adversarial", "nn"},
    "legacy": {*PILLARS, "world_model", "training", "control", "envs", "models", *BOTTOM},
    "bench": set(),  # the benchmarks themselves are not part of the package
    "cli": {"training", "evaluation", "watch", "control", "world_model", "data", "envs", "doctor", "bench", *BOTTOM},
}
#: `python -m aime.world_model.train` and `.evaluate` are entry points that live in the room they are named after
ENTRY_POINTS = {
    "world_model.train": {"training", "data", "envs"},
    "world_model.evaluate": {"evaluation", "training", "data", "envs"},
}
#: third parties that only the named rooms may import; data and envs hold no model, kernels nothing but torch
HEAVY = {
    "mujoco": {"envs", "doctor"},
    "dm_control": {"envs", "doctor"},
    "dm_env": {"envs"},
    "gymnasium": {"envs", "doctor"},
    "triton": {"kernels", "doctor"},
    "matplotlib": {"evaluation", "training"},
    "tensorboard": {"training"},
    "tyro": {"cli", "bench", "data", "training", "evaluation", "control", "watch", "world_model"},
    "h5py": {"data", "doctor"},
}


def _modules() -> Iterator[tuple[str, Path]]:
    """(dotted name below aime, file) of every module; kernels/ is aime.kernels."""
    for directory, prefix in ((ROOT / "aime", ""), (ROOT / "kernels", "kernels.")):
        for file in sorted(directory.rglob("*.py")):
            parts = file.relative_to(directory).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            yield (prefix + name).rstrip(".") or "__init__", file


def _imports(name: str, file: Path) -> Iterator[str]:
    """Absolute dotted names that a module imports, wherever in it (under `if TYPE_CHECKING` too)."""
    package = ["aime", *name.split(".")] if name != "__init__" else ["aime"]
    if file.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from aime import nn` names the module in its alias
            yield from (f"{module}.{alias.name}" if module == "aime" else module for alias in node.names)


def _room(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def test_arrows_point_down() -> None:
    wrong, seen = [], 0
    for name, file in _modules():
        room = _room(name)
        assert room in ALLOWED, f"{file.relative_to(ROOT)}: a room the house does not have; add its floor here"
        allowed = {room, "__init__", "__version__"} | ALLOWED[room] | ENTRY_POINTS.get(name, set())
        for imported in _imports(name, file):
            if imported.split(".")[0] == "aime":
                seen += 1
                target = imported.split(".")[1] if "." in imported else "__init__"
                if target not in allowed:
                    wrong.append(f"{file.relative_to(ROOT)} imports {imported}")
    assert seen > 100, "the scan found hardly any imports: it is broken"
    assert not wrong, "\n".join(wrong)


def test_the_files_of_data_import_each_other_in_one_direction() -> None:
    """Protocol at the bottom, readers above it, the registry of formats on top; imports for types are imports."""
    files = {f"aime.{name}": set(_imports(name, file)) for name, file in _modules() if name.startswith("data.")}
    assert len(files) > 10
    assert not [name for name, imported in files.items() if "aime.data" in imported], "the package imports them all"
    while leaves := {name for name, imported in files.items() if not imported & set(files)}:
        files = {name: imported for name, imported in files.items() if name not in leaves}
    assert not files, f"a circle among {', '.join(files)}"


def _file_imports() -> dict[str, set[str]]:
    """module -> modules of the project that it imports, anywhere in the file (under `if TYPE_CHECKING` too)."""
    names = {name for name, _ in _modules()}
    graph: dict[str, set[str]] = {}
    for name, file in _modules():
        package = ["aime", *name.split(".")] if name != "__init__" else ["aime"]
        if file.name != "__init__.py":
            package = package[:-1]
        found: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(), str(file))):
            dotted: list[str] = []
            if isinstance(node, ast.Import):
                dotted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                dotted = [f"{module}.{alias.name}" for alias in node.names]
            for target in dotted:
                parts = target.split(".")
                if parts[0] != "aime":
                    continue
                # the longest prefix that is a file: the name after it is something in that file
                while len(parts) > 1 and ".".join(parts[1:]) not in names:
                    parts.pop()
                found.add(".".join(parts[1:]) or "__init__")
        graph[name] = found - {name}
    return graph


def test_no_circle_among_the_files() -> None:
    """Every file can be read after those that it names; a package's __init__ only gathers what its own files define."""
    graph = _file_imports()
    packages = {name for name, file in _modules() if file.name == "__init__.py"}
    # A file that reads its own room through the room's __init__ would make every room a circle; between rooms the
    # floors hold, so an __init__ stands for the room there.
    edges = {
        name: {target for target in targets if not (target in packages and (name + ".").startswith(target + "."))}
        for name, targets in graph.items()
    }
    state: dict[str, int] = {}
    circles: list[str] = []

    def visit(name: str, path: list[str]) -> None:
        state[name] = 1
        for target in sorted(edges.get(name, ())):
            if state.get(target) == 1:
                circles.append(" -> ".join([*path[path.index(target) :], target]))
            elif target not in state:
                visit(target, [*path, target])
        state[name] = 2

    for name in sorted(edges):
        if name not in state:
            visit(name, [name])
    assert sum(len(targets) for targets in edges.values()) > 200, "the scan found hardly any imports: it is broken"
    assert not circles, "\n".join(circles)


def test_third_parties_stay_in_their_rooms() -> None:
    wrong = []
    for name, file in _modules():
        for imported in _imports(name, file):
            top = imported.split(".")[0]
            # a command of the CLI may stand in any room and speaks tyro
            if _room(name) not in HEAVY.get(top, {_room(name)}) and not (top == "tyro" and name == "data.collect"):
                wrong.append(f"{file.relative_to(ROOT)} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_the_kernels_know_torch_triton_and_numpy_only() -> None:
    allowed = {"torch", "triton", "numpy", "aime"} | set(sys.stdlib_module_names)
    kernels = [(name, file) for name, file in _modules() if _room(name) == "kernels"]
    found = {imported.split(".")[0] for name, file in kernels for imported in _imports(name, file)}
    assert "torch" in found
    assert found <= allowed


ABSENT = (
    *("dm_control", "dm_env", "geoopt", "gymnasium", "imageio", "matplotlib", "mujoco", "PIL", "rich", "safetensors"),
    *("tensorboard", "torchmetrics", "triton", "tyro"),
)
LEAN_MACHINE = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.split(".")[0] in {absent!r} else find(name, *rest)
import {packages}
"""


def test_a_machine_with_torch_einops_and_h5py_alone_can_train_from_a_file() -> None:
    packages = "aime.data, aime.envs, aime.kernels, aime.world_model, aime.training"
    code = LEAN_MACHINE.format(absent=ABSENT, packages=packages)
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


LIGHT = {
    "aime": ("torch", "h5py", "mujoco", "dm_control", "matplotlib", "tensorboard", "triton", "tyro", "rich"),
    "aime.data": ("mujoco", "dm_control", "matplotlib", "tensorboard", "tyro", "rich", "aime.world_model"),
    "aime.envs": ("mujoco", "dm_control", "matplotlib", "tensorboard", "torch", "aime.envs._parallel_environment"),
    "aime.kernels": ("mujoco", "h5py", "einops", "aime.world_model", "aime.nn"),
    "aime.world_model": ("mujoco", "dm_control", "matplotlib", "tensorboard", "tyro", "rich", "h5py", "torchmetrics"),
    "aime.training": ("mujoco", "dm_control", "matplotlib", "tensorboard", "tyro", "rich"),
    "aime.evaluation": ("mujoco", "dm_control", "matplotlib", "tensorboard", "tyro", "rich", "imageio"),
    "aime.cli": ("torch", "mujoco", "dm_control", "tyro"),
}


@pytest.mark.parametrize("package", LIGHT)
def test_imports_are_light(package: str) -> None:
    code = f"import sys, {package}; print('\\n'.join(name for name in {LIGHT[package]!r} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == []


def test_files_and_functions_stay_readable() -> None:
    """A file past 400 lines and a function past 60 want a second look; half as much again is too much."""
    long = []
    for _, file in _modules():
        text = file.read_text()
        if (lines := text.count("\n")) > 600:
            long.append(f"{file.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > 90:
                    long.append(f"{file.relative_to(ROOT)}: {node.name} has {size} lines")
    assert not long, "\n".join(long)
