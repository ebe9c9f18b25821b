"""Every task of the suite beside dm_control: the same seeds and actions, and how far the numbers are apart.

    python -m bench.alignment [--steps 1000] [--tasks walker/walk ...] [--out FILE]

Each task runs one whole episode of its own length (1000 control steps; lqr, which has no limit, 250) and then short
ones, until two environments have begun two more episodes each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aime.envs import ParallelEnvironment, TimeStep
from aime.envs.extension import load_suite


@dataclass
class Alignment:
    """The largest differences between our environments and dm_control's over a run."""

    task: str
    steps: int = 0  # control steps compared, over all environments
    resets: int = 0  # autoresets among them
    terminations: int = 0  # episodes that ended before their limit
    state: float = 0.0  # largest |difference| of qpos and qvel
    reward: float = 0.0
    observation: float = 0.0
    labels: int = 0  # step types and discounts that differ
    schema: str = ""  # the first difference of observation names or shapes

    def exact(self, tolerance: float) -> bool:
        """Whether states are equal bit for bit, and rewards and observations within `tolerance`."""
        return (
            self.state == 0.0
            and max(self.reward, self.observation) <= tolerance
            and self.labels == 0
            and not self.schema
        )

    def add(self, step: TimeStep, env: int, twin: Any, physics: Any) -> None:
        """Compare one environment's row with its twin's time step."""
        self.steps += 1
        self.resets += int(twin.first())
        discount = 1.0 if twin.discount is None else float(twin.discount)
        self.terminations += int(twin.last() and discount != 1.0)
        self.labels += int(step.step_type[env] != int(twin.step_type)) + int(step.discount[env] != discount)
        self.state = max(self.state, _gap(step.qpos[env], physics.data.qpos), _gap(step.qvel[env], physics.data.qvel))
        self.reward = max(self.reward, _gap(step.reward[env], 0.0 if twin.reward is None else twin.reward))
        ours = {name: value[env].shape for name, value in step.observation.items()}
        theirs = {name: np.shape(value) for name, value in twin.observation.items()}
        if list(ours.items()) != list(theirs.items()):
            self.schema = self.schema or f"{ours} instead of {theirs}"
            return
        for name, value in twin.observation.items():
            self.observation = max(self.observation, _gap(step.observation[name][env], value))


def _gap(ours: Any, theirs: Any) -> float:
    """The largest |difference|; infinite where one side is not finite and the other differs."""
    left, right = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if np.array_equal(left, right, equal_nan=True):
        return 0.0
    gap = float(np.max(np.abs(left - right), initial=0.0))
    return gap if np.isfinite(gap) else float("inf")


def compare(
    domain: str,
    task: str,
    *,
    seeds: tuple[int, ...],
    steps: int,
    episode_steps: int | None = None,
    bang_bang: bool = False,
) -> Alignment:
    """Step our environments and their dm_control twins with the same random actions.

    Args:
        domain: of the suite.
        task: of the domain.
        seeds: one for each environment.
        steps: control steps, those that begin a new episode included.
        episode_steps: control steps in an episode; None keeps the task's own limit. The limit in seconds is set half a
            step short, as dm_control's own limits need not be whole numbers of steps either.
        bang_bang: actions at their bounds instead of uniform between them. Bounds beyond 1 (lqr has none) count as 1.
    """
    suite = load_suite()
    time_limit: float | None = None
    if episode_steps is not None:
        time_limit = (episode_steps - 0.5) * float(suite.load(domain, task).control_timestep())
    options = {} if time_limit is None else {"time_limit": time_limit}
    twins = [suite.load(domain, task, task_kwargs={"random": seed, **options}) for seed in seeds]
    found = Alignment(f"{domain} {task}")
    generator = np.random.default_rng(0)
    with ParallelEnvironment(domain, task, len(seeds), num_threads=2, seed=seeds, time_limit=time_limit) as env:
        low, high = np.maximum(env.action_minimum, -1.0), np.minimum(env.action_maximum, 1.0)
        step = env.reset()
        for index, twin in enumerate(twins):
            found.add(step, index, twin.reset(), twin.physics)
        found.resets = 0  # those were no autoresets
        for _ in range(steps):
            actions = generator.uniform(low, high, (len(seeds), env.action_size))
            if bang_bang:
                actions = np.where(actions > (low + high) / 2, high, low)
            step = env.step(actions)
            for index, twin in enumerate(twins):
                found.add(step, index, twin.step(actions[index]), twin.physics)
    return found
