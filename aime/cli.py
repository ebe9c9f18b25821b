"""The `aime` command. Each subcommand is a typed dataclass with a `run` method; only the chosen one is imported."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

#: subcommand -> (module, class, one line for the overview)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "collect": ("aime.data.collect", "Collect", "play episodes of a task and store them in a file"),
    "train": ("aime.training.cli", "Train", "train a world model on episodes"),
    "evaluate": ("aime.evaluation.cli", "Evaluate", "score a trained model on held-out episodes and write the report"),
    "imagine": ("aime.evaluation.cli", "Imagine", "roll a model out open loop and draw it beside the truth"),
    "bench": ("aime.bench", "Bench", "measure environments, kernels or the training step (from a source checkout)"),
    "doctor": ("aime.doctor", "Doctor", "what this machine has, and what each lack costs"),
}

USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, IsADirectoryError, PermissionError, ImportError)


def usage() -> str:
    """The overview that `aime --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, (_, _, line) in COMMANDS.items()]
    return "\n".join(
        ["usage: aime COMMAND [--help] [OPTIONS]", "", "commands:", *lines, "", "`aime COMMAND --help` is its manual."]
    )


def load(name: str) -> type[Any]:
    """The dataclass of a subcommand, importing its module alone."""
    module, cls, _ = COMMANDS[name]
    command: type[Any] = getattr(importlib.import_module(module), cls)
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `aime` with the given arguments (those of the process by default); returns the exit status.

    A mistake of the user (a wrong flag, a missing file, bad data) is one line and status 2; with AIME_TRACEBACK=1 in
    the environment it is a traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        import aime

        print(f"aime {aime.__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"error: expected a command among {', '.join(COMMANDS)}, found {name!r}{hint}", file=sys.stderr)
        return 2
    try:
        return _run(name, rest)
    except KeyboardInterrupt:
        return 130
    except USER_ERRORS as error:
        if os.environ.get("AIME_TRACEBACK") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(name: str, arguments: list[str]) -> int:
    import tyro

    status = tyro.cli(load(name), prog=f"aime {name}", args=arguments).run()
    return 0 if status is None else int(status)


if __name__ == "__main__":
    sys.exit(main())
