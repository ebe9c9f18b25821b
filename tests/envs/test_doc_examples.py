"""The examples of docs/environment.md run as they stand."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "environment.md"


def examples() -> list[str]:
    """The indented blocks that import something."""
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", PAGE.read_text(), re.MULTILINE)
    sources = [re.sub(r"^    ", "", block, flags=re.MULTILINE).strip() + "\n" for block in blocks]
    return [source for source in sources if re.search(r"^(?:import|from) ", source, re.MULTILINE)]


def test_there_are_examples_of_every_face() -> None:
    text = "".join(examples())
    for name in ("ParallelEnvironment", "gymnasium.make_vec", "gymnasium.make(", "DmEnvironment", "torchrl"):
        assert name in text


@pytest.mark.parametrize("source", examples(), ids=lambda source: source.splitlines()[0])
def test_the_example_runs(source: str) -> None:
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in [*names, *([node.module or ""] if isinstance(node, ast.ImportFrom) else [])]:
            package = name.split(".")[0]
            if importlib.util.find_spec(package) is None:
                pytest.skip(f"needs {package}: pip install {package}")
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
