"""Every task of the suite beside dm_control: the same seeds and actions, and how far the numbers are apart.

    python -m bench.alignment [--tasks walker/walk ...] [--out FILE]

Each task runs two environments through one whole episode of its own length (lqr, which has no limit, 1000 control
steps) with actions at their bounds, and three environments through three episodes of 25 steps with random actions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
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

    def merge(self, other: Alignment) -> None:
        """Take in another run of the same task."""
        for name in ("steps", "resets", "terminations", "labels"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("state", "reward", "observation"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        self.schema = self.schema or other.schema


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


def run(pairs: Iterable[tuple[str, str]]) -> list[Alignment]:
    """Compare the tasks, one line of output for each."""
    results = []
    for domain, task in pairs:
        whole = 1000 if domain == "lqr" else None
        found = compare(domain, task, seeds=(1, 2), steps=1001, episode_steps=whole, bang_bang=True)
        found.merge(compare(domain, task, seeds=(3, 4, 5), steps=3 * 26, episode_steps=25))
        results.append(found)
        print(
            f"{found.task:24} {found.steps:6} steps {found.resets:3} autoresets  state {found.state:.1e}  "
            f"reward {found.reward:.1e}  observation {found.observation:.1e}  labels {found.labels}",
            flush=True,
        )
    return results


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", help="as domain/task; all of the suite by default")
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    options = parser.parse_args()
    chosen = [tuple(name.split("/", 1)) for name in options.tasks] if options.tasks else load_suite().ALL_TASKS
    results = run(chosen)
    print(
        f"{len(results)} tasks, {sum(found.steps for found in results)} steps: largest difference of states "
        f"{max(found.state for found in results):.1e}, rewards {max(found.reward for found in results):.1e}, "
        f"observations {max(found.observation for found in results):.1e}; "
        f"{sum(found.labels for found in results)} step types or discounts differ"
    )
    if options.out:
        options.out.write_text(json.dumps([asdict(found) for found in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
