"""``python -m aime.world_model.evaluate <run directory> --data episodes.h5``: the same as ``aime evaluate``.

An entry point, so it may look up to the floor above; importing it loads little but the standard library.
"""

from __future__ import annotations

from collections.abc import Sequence

from aime.command import guarded


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``aime evaluate`` with the given arguments (those of the command line by default) -> exit status."""
    return guarded(lambda: run(arguments))


def run(arguments: Sequence[str] | None) -> int:
    """Evaluate."""
    import tyro

    from aime.evaluation.cli import Evaluate

    return tyro.cli(Evaluate, prog="python -m aime.world_model.evaluate", args=arguments).run()


if __name__ == "__main__":
    raise SystemExit(main())
