"""`python -m aime.world_model.train --domain walker --task walk --seed 1`: train on a task's episodes.

The flags of the older entry point; `aime train` has all of them and more. Needs no tyro.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from aime.command import INTERRUPTED, guarded


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="python -m aime.world_model.train", description="Train a world model.")
    flags.add_argument("--domain", default="walker", help="dm_control domain (default: %(default)s)")
    flags.add_argument("--task", default="walk", help="dm_control task (default: %(default)s)")
    flags.add_argument("--seed", type=int, default=1, help="seed of weights, windows and noise (default: %(default)s)")
    flags.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("AIME_DATA_PATH", "data")),
        help="episode file, or a directory with <domain>_<task>.h5 (default: $AIME_DATA_PATH, else data)",
    )
    flags.add_argument("--preset", default="laptop", help="laptop, tier1, tier2 or tier3 (default: %(default)s)")
    flags.add_argument("--num_epochs", "--num-epochs", type=float, help="passes over the data (default: the preset's)")
    flags.add_argument("--batch_size", "--batch-size", type=int, help="windows in a batch (default: the preset's)")
    flags.add_argument("--learning_rate", "--learning-rate", type=float, help="peak rate (default: the preset's)")
    flags.add_argument("--steps", type=int, help="train for this many optimizer steps")
    flags.add_argument("--seconds", type=float, help="train for this much wall-clock time")
    flags.add_argument(
        "--save_dir", "--save-dir", type=Path, help="run directory (default: runs/<domain>-<task>-seed-<seed>)"
    )
    flags.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    flags.add_argument("--resume", action="store_true", help="continue the run in the run directory, if there is one")
    flags.add_argument("--overwrite", action="store_true", help="replace the run in the run directory")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; returns the exit status, with one line on stderr for what went wrong (see `aime.command.guarded`)."""
    flags = parser().parse_args(arguments)
    return guarded(lambda: run(flags))


def run(flags: argparse.Namespace) -> int:
    """Find the episodes and train on them."""
    # The trainer stands above the model; this module is an entry point that happens to live beside the model.
    from aime.training.dataset import find_episodes
    from aime.training.experiment import run_experiment
    from aime.training.run_directory import default_path

    train = {
        "epochs": flags.num_epochs,
        "steps": flags.steps,
        "seconds": flags.seconds,
        "batch_size": flags.batch_size,
        "learning_rate": flags.learning_rate,
    }
    try:
        data = find_episodes(flags.data, flags.domain, flags.task)
    except FileNotFoundError as error:
        collect = f"aime collect --domain {flags.domain} --task {flags.task}"
        raise FileNotFoundError(f"{error}; make it with: {collect} --out data/{flags.domain}_{flags.task}.h5") from None
    result = run_experiment(
        data,
        flags.save_dir or default_path(flags.domain, flags.task, f"-seed-{flags.seed}"),
        preset=flags.preset,
        seed=flags.seed,
        device=flags.device,
        train_overrides={name: value for name, value in train.items() if value is not None},
        resume=flags.resume,
        overwrite=flags.overwrite,
    )
    return INTERRUPTED if result.stopped_by == "SIGINT" else 0


if __name__ == "__main__":
    sys.exit(main())
