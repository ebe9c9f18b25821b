"""Plugin of pytest for parallel processes without pytest-xdist: every n-th test, and a line a test as it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the plugin."""
    parser.addoption("--shard", default="0/1", help="I/N: of the chosen tests number I, I + N, ...")
    parser.addoption("--record", type=Path, default=None, help="file that gets a JSON line for every test")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep this process's share, after marks have chosen."""
    index, count = (int(part) for part in config.getoption("--shard").split("/"))
    config.hook.pytest_deselected(items=[item for place, item in enumerate(items) if place % count != index])
    items[:] = items[index::count]


class Recorder:
    """Writes a test's outcome the moment it is known, so that a killed process loses the running test alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def _write(self, **line: object) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has run, or failed or was skipped on the way to it."""
        if report.when == "call" or not report.passed:
            text = {} if report.passed else {"text": str(report.longrepr)[-4000:]}
            self._write(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 3), **text)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that could not be collected is a failure."""
        if report.failed:
            self._write(test=report.nodeid, outcome="not collected", seconds=0.0, text=str(report.longrepr)[-4000:])


def pytest_configure(config: pytest.Config) -> None:
    """Record where a file is named."""
    path = config.getoption("--record")
    if path is not None:
        config.pluginmanager.register(Recorder(path), "gpu-recorder")
