"""`python -m aime.legacy old_script.py [arguments]`, or `-m module [arguments]`: old code with its old import paths."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from aime.command import guarded
from aime.legacy.names import PROGRAMS, canonical
from aime.ranges import OptionError

USAGE = "usage: python -m aime.legacy SCRIPT [ARGUMENTS], or python -m aime.legacy -m MODULE [ARGUMENTS]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a script or module as `python` would, with the old paths importable; its errors are its own."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2
    if words[0] == "-m":
        return module(words[1:])
    script = Path(words[0])
    name = ".".join(script.with_suffix("").parts)
    if not script.exists() and canonical(name) in PROGRAMS:  # the documents start this file by its path
        return module([name, *words[1:]])
    if not script.exists():
        return guarded(lambda: missing(script))
    sys.argv = words
    sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(str(script), run_name="__main__")
    return 0


def missing(script: Path) -> int:
    """Say that a script is not there."""
    raise FileNotFoundError(f"{script}: expected a script, found none")


def module(words: list[str]) -> int:
    """Run a module as `python -m` would."""
    if not words:
        return guarded(no_module)
    sys.argv = words
    sys.path.insert(0, str(Path.cwd()))
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    return 0


def no_module() -> int:
    """Say that a module is expected."""
    raise OptionError(f"-m: expected a module, found nothing; {USAGE}")


if __name__ == "__main__":
    sys.exit(main())
