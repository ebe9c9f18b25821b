"""MPPI and iCEM with the exact simulator as their model: the upper bound of planning, and the test of the planners.

    python -m bench.planners [--planner mppi] [--task cartpole-swingup] [--episodes 2] [--out FILE]

Whole episodes of the Control Suite from the initial states of a seed. The return of an episode is at most 1000. A
decision's milliseconds are those of all episodes at once, wall clock and CPU (of the process, all threads together).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from aime.control.episodes import state_of
from aime.control.planner import ICEM, MPPI, ICEMConfig, MPPIConfig, Planner
from aime.control.planning import PlanningPolicy
from aime.control.playing import play
from aime.control.simulator import SimulatorModel
from aime.envs import ParallelEnvironment
from aime.evaluation.run_directory import device_name, installed_versions

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    """A task and how far ahead it is planned: ``action_repeat * horizon`` control steps."""

    domain: str
    task: str
    action_repeat: int
    horizon: int


CASES = {
    case.domain + "-" + case.task: case for case in (Case("cartpole", "swingup", 4, 25), Case("reacher", "easy", 4, 25))
}
"""One second of cartpole, two of reacher: without a value function a plan has to reach the reward."""


def make(name: str, action_size: int, horizon: int) -> Planner:
    """The planner at a size that two cores simulate in a fraction of a second a decision."""
    if name == "mppi":
        return MPPI(action_size, MPPIConfig(horizon=horizon, iterations=3, samples=64, elites=8))
    return ICEM(action_size, ICEMConfig(horizon=horizon, iterations=2, samples=64))


def measure(name: str, case: Case, episodes: int, seed: int, threads: int) -> dict[str, Any]:
    """Returns and times of one planner on one task."""
    begin, cpu = time.perf_counter(), time.process_time()
    with (
        ParallelEnvironment(
            case.domain, case.task, episodes, action_repeat=case.action_repeat, seed=seed, num_threads=1
        ) as environment,
        SimulatorModel(
            case.domain, case.task, 64 * episodes, action_repeat=case.action_repeat, num_threads=threads
        ) as model,
    ):
        planner = make(name, environment.action_size, case.horizon)
        policy = PlanningPolicy(model, planner, environment.action_minimum, environment.action_maximum, seed=seed)

        def say(step: int, returns: Any) -> None:
            if step % 50 == 0:
                print(f"{name} {case.domain} {case.task}: step {step}, returns {returns.round(0)}", flush=True)

        played = play(environment, policy, state_of, episodes, on_step=say)
    config: Any = planner.config  # type: ignore[attr-defined]
    return {
        "planner": name,
        **asdict(case),
        "settings": asdict(config),
        "seed": seed,
        **played.record(),
        "decision": policy.decisions.summary(),
        "wall_seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planner", choices=("mppi", "icem"), help="one of them; both by default")
    parser.add_argument("--task", choices=tuple(CASES), help="one of them; all by default")
    parser.add_argument("--episodes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="of the simulator; 0: one per core")
    parser.add_argument("--out", type=Path, default=RESULTS / "planners.json")
    options = parser.parse_args(arguments)
    rows = []
    for task in [options.task] if options.task else list(CASES):
        for name in [options.planner] if options.planner else ["mppi", "icem"]:
            rows.append(measure(name, CASES[task], options.episodes, options.seed, options.threads))
            record = {
                "benchmark": "planners",
                "device": device_name(torch.device("cpu")),
                "versions": installed_versions({}),
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "rows": rows,
            }
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(record, indent=2) + "\n")
            print(json.dumps({key: rows[-1][key] for key in ("planner", "domain", "returns", "mean", "decision")}))
    print(f"stored in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
