"""dm_control, as the environments' tests compare with it."""

from __future__ import annotations

from typing import Any

from aime.envs.extension import load_suite

TASKS: tuple[tuple[str, str], ...] = load_suite().ALL_TASKS
# What tests of pictures, states and threads use.
ONE_TASK_PER_DOMAIN = (
    ("cartpole", "swingup"),
    ("cheetah", "run"),
    ("humanoid", "walk"),
    ("reacher", "easy"),
    ("walker", "walk"),
)


def suite_environment(domain: str, task: str, seed: int, **options: Any) -> Any:
    """The dm_control environment that a copy of ours must equal."""
    return load_suite().load(domain, task, task_kwargs={"random": seed, **options})
