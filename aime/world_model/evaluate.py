"""``python -m aime.world_model.evaluate RUN --data episodes.h5``: ``aime evaluate``, for a step's checkpoint as well.

An entry point, so it may look up to the floor above; importing it loads little but the standard library. Of the older
documents' flags it takes ``--checkpoint``, ``--num_episodes``, ``--domain``, ``--task``, ``--save_videos`` and
``--video_dir``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from aime.command import guarded


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``aime evaluate`` with the given arguments (those of the command line by default) -> exit status."""
    return guarded(lambda: run(sys.argv[1:] if arguments is None else arguments))


def documented_flags() -> argparse.ArgumentParser:
    """The older flags that ``aime evaluate`` has under other names, or not."""
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--checkpoint", type=Path)
    flags.add_argument("--num_episodes", "--num-episodes")
    flags.add_argument("--domain")
    flags.add_argument("--task")
    flags.add_argument("--save_videos", "--save-videos", nargs="?", const="true", default="false")
    flags.add_argument("--video_dir", "--video-dir", type=Path)
    return flags


def run(arguments: Sequence[str]) -> int:
    """Export the step where a checkpoint is given, evaluate, and film where videos are asked for."""
    import tyro

    from aime.evaluation.cli import Evaluate, Imagine

    given, rest = documented_flags().parse_known_args(list(arguments))
    if given.checkpoint is None and rest and not rest[0].startswith("-"):
        given.checkpoint, rest = Path(rest[0]), rest[1:]
    if given.checkpoint is None:  # --help, or nothing: aime evaluate says what it wants
        return tyro.cli(Evaluate, prog="python -m aime.world_model.evaluate", args=rest).run()
    root, extra = evaluable(given.checkpoint)
    if "--data" not in rest:
        rest += extra if given.domain is None or given.task is None else data_of(given.domain, given.task)
    episodes = [] if given.num_episodes is None else ["--protocol.episodes", given.num_episodes]
    command = [str(root), *episodes, *rest]
    status: int = tyro.cli(Evaluate, prog="python -m aime.world_model.evaluate", args=command).run()
    if status == 0 and given.save_videos.lower() in ("true", "1", "yes"):
        out = (given.video_dir or root) / "imagination.gif"
        data = rest[rest.index("--data") : rest.index("--data") + 2] if "--data" in rest else []
        status = tyro.cli(Imagine, args=[str(root), *data, "--out", str(out)]).run()
    return status


def evaluable(path: Path) -> tuple[Path, list[str]]:
    """What ``aime evaluate`` takes for a run: the path itself, or the export of the step it names, with its data."""
    from aime.training.step_weights import find_step

    step = find_step(path)
    if step is None:
        return path, []
    data = step.run.path / "data.h5"
    return step.export(), ["--data", str(data)] if data.is_file() else []


def data_of(domain: str, task: str) -> list[str]:
    """The episodes of a task under $AIME_DATA_PATH, else data."""
    import os

    from aime.training.dataset import find_episodes

    return ["--data", str(find_episodes(os.environ.get("AIME_DATA_PATH", "data"), domain, task))]


if __name__ == "__main__":
    raise SystemExit(main())
