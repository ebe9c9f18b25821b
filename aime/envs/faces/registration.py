"""Gymnasium ids for the tasks of the suite: `aime/cartpole-swingup-v0` for ("cartpole", "swingup")."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator

NAMESPACE = "aime"
#: The tasks of dm_control.suite.ALL_TASKS, written out because registration must not import dm_control.
SUITE: dict[str, tuple[str, ...]] = {
    "acrobot": ("swingup", "swingup_sparse"),
    "ball_in_cup": ("catch",),
    "cartpole": ("balance", "balance_sparse", "swingup", "swingup_sparse", "two_poles", "three_poles"),
    "cheetah": ("run",),
    "dog": ("stand", "walk", "trot", "run", "fetch"),
    "finger": ("spin", "turn_easy", "turn_hard"),
    "fish": ("upright", "swim"),
    "hopper": ("stand", "hop"),
    "humanoid": ("stand", "walk", "run", "run_pure_state"),
    "humanoid_CMU": ("stand", "walk", "run"),
    "lqr": ("lqr_2_1", "lqr_6_2"),
    "manipulator": ("bring_ball", "bring_peg", "insert_ball", "insert_peg"),
    "pendulum": ("swingup",),
    "point_mass": ("easy", "hard"),
    "quadruped": ("walk", "run", "escape", "fetch"),
    "reacher": ("easy", "hard"),
    "stacker": ("stack_2", "stack_4"),
    "swimmer": ("swimmer6", "swimmer15"),
    "walker": ("stand", "walk", "run"),
}


def gymnasium_id(domain: str, task: str) -> str:
    """The id under which Gymnasium makes a task."""
    return f"{NAMESPACE}/{domain}-{task}-v0"


def pairs() -> Iterator[tuple[str, str]]:
    """Every (domain, task) that has an id."""
    return ((domain, task) for domain, tasks in SUITE.items() for task in tasks)


def register() -> None:
    """Give Gymnasium an id for every task; does nothing where Gymnasium is absent or has the ids already.

    `import aime.envs` calls this. Gymnasium 1.x has no plugin entry points: a package registers when it is imported,
    which `gymnasium.make("aime.envs:aime/cartpole-swingup-v0")` also does by itself.
    """
    if importlib.util.find_spec("gymnasium") is None:
        return
    gymnasium = importlib.import_module("gymnasium")
    for domain, task in pairs():
        name = gymnasium_id(domain, task)
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point="aime.envs.faces.single:GymnasiumEnvironment",
                vector_entry_point="aime.envs.faces.vector:GymnasiumVectorEnvironment",
                kwargs={"domain": domain, "task": task},
            )
