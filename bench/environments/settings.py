"""What a run measures, stored with its results."""

from __future__ import annotations

from dataclasses import dataclass

TASKS = (
    "cartpole/swingup",
    "reacher/easy",
    "walker/walk",
    "cheetah/run",
    "humanoid/walk",
    "hopper/hop",
    "finger/spin",
)


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths of a run.

    Attributes:
        rounds: times that every contestant of a task is measured.
        seconds: length of one measurement at most; a run that would pass its limit takes shorter ones.
        minutes: limit of the whole run; tasks that do not fit are left out, and named.
        num_envs: environments stepped at once, for control steps.
        pixel_envs: environments drawn at once, for pictures.
        threads: of each contestant that has threads.
        action_repeat: control steps for which an action is held; one picture after them.
        size: height and width of the pictures.
    """

    rounds: int = 3
    seconds: float = 0.8
    minutes: float = 5.5
    num_envs: int = 32
    pixel_envs: int = 8
    threads: int = 1
    action_repeat: int = 2
    size: int = 64
