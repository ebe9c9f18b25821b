"""The environments' tests need MuJoCo, dm_control and the compiled extension; the reference pictures need EGL."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("dm_env")
# dm_control reads this once, at its import: the reference pictures must come from the same GL library.
os.environ.setdefault("MUJOCO_GL", "egl")


@pytest.fixture
def generator() -> np.random.Generator:
    """Actions of a test."""
    return np.random.default_rng(0)
