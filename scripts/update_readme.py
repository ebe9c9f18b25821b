"""Rewrite the sections of README.md and docs/ that come from the code and from stored measurements.

    python scripts/update_readme.py                 rewrite what is out of date
    python scripts/update_readme.py runs/NAME ...   first store the metrics.json of these runs in bench/results/
    python scripts/update_readme.py --check         change nothing; status 1 and the files' names if one would change

A section stands between `<!-- BEGIN name -->` and `<!-- END name -->`; its name is a key of SECTIONS. Figures come from
the JSON files of bench/results/ and nowhere else. A figure without a file is left out, and the section says so.

Each file of readme_sections/ holds the sections of one subject.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from readme_sections import control, environments, from_code, kernels, models, parts  # noqa: E402 - beside this file

FROM_CODE: dict[str, Callable[[], str]] = from_code.SECTIONS
FROM_MEASUREMENTS: dict[str, Callable[[], str]] = (
    models.SECTIONS | control.SECTIONS | environments.SECTIONS | kernels.SECTIONS
)
SECTIONS = FROM_MEASUREMENTS | FROM_CODE
MARKED = re.compile(r"<!-- BEGIN (?P<name>[\w-]+) -->\n.*?<!-- END (?P=name) -->", re.DOTALL)


def rewritten(text: str, sections: Mapping[str, Callable[[], str]] = SECTIONS) -> str:
    """The text with its marked sections, those among `sections`, made anew.

    Raises:
        ValueError: a marker names no section.
    """

    def section(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in SECTIONS:
            raise ValueError(f"section: expected one of {', '.join(SECTIONS)}, found {name!r}")
        if name not in sections:
            return match[0]
        return f"<!-- BEGIN {name} -->\n\n{sections[name]()}\n\n<!-- END {name} -->"

    return MARKED.sub(section, text)


def draw_charts() -> None:
    """Draw the environments' benchmark anew from its stored run."""
    sys.path.insert(0, str(ROOT))
    chart = importlib.import_module("bench.environments.chart").chart
    for _, record in parts.stored("env"):
        if "absent" in record:  # not a run of an older version
            parts.CHART.write_text(chart(record))


def pages() -> list[Path]:
    """The files that may have marked sections."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def store_run(run: Path) -> Path:
    """Copy a run's metrics.json to bench/results/ under a name that says what was trained."""
    record = json.loads((run / "metrics.json" if run.is_dir() else run).read_text())
    target = parts.RESULTS / f"run-{record['task']}-{record['preset']}-seed{record['seed']}.json"
    parts.RESULTS.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=2) + "\n")
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run directories, or metrics.json files, to store first")
    parser.add_argument("--check", action="store_true", help="change nothing, report what is out of date")
    options = parser.parse_args(arguments)
    for run in options.runs:
        print(f"stored {store_run(run).relative_to(ROOT)}")
    if not options.check:
        draw_charts()
    stale = [page for page in pages() if rewritten(page.read_text()) != page.read_text()]
    for page in stale:
        if not options.check:
            page.write_text(rewritten(page.read_text()))
        print(f"{page.relative_to(ROOT)}: {'out of date' if options.check else 'rewritten'}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
