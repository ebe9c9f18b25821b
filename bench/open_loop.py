"""The open-loop benchmark's four files, made from seeds and known by their digests; docs/benchmark.md has the rules.

    python -m bench.open_loop --make [--directory data/open_loop] [--task cartpole-swingup]
    python -m bench.open_loop --check FILE ...        whether files are those of the benchmark

Digests are SHA-256 of the actions, rewards and physics of all episodes, and of their frames; they stand in
bench/results/open-loop-files.json. Physics is MuJoCo's, so another version of it may move the last bit of a state;
frames are the ray caster's, whose vector instructions may round another way on another processor. Where a digest
differs the file is as hard to forecast, but figures compare with the table only up to that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from aime.data import HDF5Source, open_source
from aime.data.collect import Collect
from aime.evaluation.run_directory import installed_versions

RESULTS = Path(__file__).parent / "results" / "open-loop-files.json"
TASKS = ("cartpole-swingup", "reacher-easy", "cheetah-run", "walker-walk")
EPISODES, STEPS, SEED = 150, 150, 1
ENVIRONMENTS = 8  # environment i draws its episodes from seed + i: another number of them gives other episodes


def make(task: str, directory: Path) -> Path:
    """Collect the file of a task, as `make train` does on two cores; one that is there already is kept."""
    domain, _, name = task.partition("-")
    path = directory / f"{task}.h5"
    if not path.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        Collect(
            domain=domain, task=name, episodes=EPISODES, steps=STEPS, seed=SEED, num_envs=ENVIRONMENTS, out=path
        ).run()
    return path


def digests(path: Path) -> dict[str, Any]:
    """What identifies a file, whatever its compression."""
    source = open_source(path)
    if not isinstance(source, HDF5Source):
        raise ValueError(f"{path}: expected an episode file of this project, found a {type(source).__name__}")  # noqa: TRY004
    motion, frames = hashlib.sha256(), hashlib.sha256()
    for episode, length in enumerate(source.lengths.tolist()):
        window = source.window(episode, 0, length)
        physics = np.ascontiguousarray(source.physics(episode), np.float64)
        for values in (window.actions, window.rewards, physics):
            motion.update(np.ascontiguousarray(values).tobytes())
        frames.update(np.ascontiguousarray(window.observations).tobytes())
    spec = source.spec
    return {
        "task": f"{spec.domain}-{spec.task}",
        "episodes": len(source.lengths),
        "frames": int(source.lengths.sum()),
        "drawn_by": spec.drawn_by,
        "motion_sha256": motion.hexdigest(),
        "frames_sha256": frames.hexdigest(),
    }


def stored() -> dict[str, Any]:
    """The digests of the benchmark, by task."""
    return dict(json.loads(RESULTS.read_text())["files"]) if RESULTS.is_file() else {}


def compare(found: dict[str, Any], known: dict[str, Any]) -> str:
    """One line: whether a file is the benchmark's."""
    expected = known.get(found["task"])
    if expected is None:
        return f"{found['task']}: no digest is stored"
    words = {
        part: "the same" if found[f"{part}_sha256"] == expected[f"{part}_sha256"] else "DIFFERENT"
        for part in ("motion", "frames")
    }
    return f"{found['task']}: actions, rewards and physics {words['motion']}, frames {words['frames']}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; status 1 where a checked file is not the benchmark's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", action="store_true", help="collect the files")
    parser.add_argument("--check", nargs="+", type=Path, default=[], help="files to compare with the stored digests")
    parser.add_argument("--directory", type=Path, default=Path("data/open_loop"))
    parser.add_argument("--task", choices=TASKS, help="one of them; all by default")
    parser.add_argument("--store", action="store_true", help="store the digests of what was made")
    options = parser.parse_args(arguments)
    if not (options.make or options.check):
        parser.error("expected --make or --check")
    known, lines = stored(), []
    if options.make:
        for task in [options.task] if options.task else TASKS:
            found = digests(make(task, options.directory))
            if options.store:
                known[task] = found
            lines.append(compare(found, known))
    if options.store:
        RESULTS.write_text(
            json.dumps({"benchmark": "open-loop-files", "versions": installed_versions({}), "files": known}, indent=2)
            + "\n"
        )
    lines += [compare(digests(path), known) for path in options.check]
    print("\n".join(lines))
    return 1 if any("DIFFERENT" in line or "no digest" in line for line in lines) else 0


if __name__ == "__main__":
    raise SystemExit(main())
