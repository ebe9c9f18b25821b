"""The original's import paths, and its retired arguments, in every test of this directory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from aime import legacy
from aime.documented_names import RetiredArgumentWarning


@pytest.fixture(autouse=True)
def _old_paths() -> Iterator[None]:
    legacy.install()
    yield
    legacy.remove()


@pytest.fixture(autouse=True)
def _retired_arguments_are_no_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RetiredArgumentWarning)
        yield
