"""What every section is made of: tables, figures with their errors, stored results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
CHART = ROOT / "docs" / "benchmark_environments.svg"

Row = Sequence[str]


def table(header: Row, rows: Iterable[Row], first_right: int = 1) -> str:
    """A Markdown table; columns from `first_right` on are aligned to the right."""
    rule = ["---" if index < first_right else "---:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def result_files(pattern: str) -> list[Path]:
    """Result files by pattern, in order of their names."""
    return sorted(RESULTS.glob(pattern))


def stored(benchmark: str) -> list[tuple[str, Any]]:
    """Name and contents of the result files of one benchmark, in order of their names."""
    records = [(path.name, json.loads(path.read_text())) for path in result_files("*.json")]
    return [
        (name, record) for name, record in records if isinstance(record, dict) and record.get("benchmark") == benchmark
    ]


def missing(what: str, command: str) -> str:
    """What stands in the place of figures that were not measured."""
    return f"Not measured yet: {what}. `{command}` measures it."


def estimate(value: float | None, error: float | None, digits: int = 2) -> str:
    """A figure and its standard error; a hyphen where it was not computed."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
