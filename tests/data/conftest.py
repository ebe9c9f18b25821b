"""A small finished file, shared by the tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aime.data import EpisodeWriter
from tests.data.scripted import SPEC, scripted_episode

LENGTHS = (20, 33, 16, 47, 25)


@pytest.fixture(scope="session")
def episode_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five scripted episodes of different lengths, with masks and physics."""
    path = tmp_path_factory.mktemp("data") / "scripted.h5"
    with EpisodeWriter(path, SPEC, body_masks=True, split_seed=3) as writer:
        for number, length in enumerate(LENGTHS):
            writer.append(scripted_episode(number, length))
    return path
