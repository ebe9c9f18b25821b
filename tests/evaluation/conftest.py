"""Fixtures of the evaluation tests."""

import pytest

from tests.evaluation.ring_world import RingWorld


@pytest.fixture(scope="session")
def ring() -> RingWorld:
    """Ten episodes of forty frames."""
    return RingWorld()
