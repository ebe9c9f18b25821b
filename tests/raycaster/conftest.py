"""The ray caster's tests need MuJoCo, dm_control and the compiled extension; those beside GL need EGL as well."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("mujoco")
pytest.importorskip("dm_env")
# dm_control reads this once, at its import: the pictures to compare with come from the same GL library everywhere.
os.environ.setdefault("MUJOCO_GL", "egl")
