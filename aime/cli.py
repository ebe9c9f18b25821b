"""The `aime` command. Each subcommand is a typed dataclass with a `run` method; only the chosen one is imported."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from aime.command import TRACEBACK, guarded, refuse_empty, wants_traceback
from aime.ranges import OptionError, show

#: subcommand -> (module, class, one line for the overview)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "collect": ("aime.data.collect", "Collect", "play episodes of a task and store them in a file"),
    "convert": ("aime.data.convert", "Convert", "turn episodes of any known format into our file"),
    "data": ("aime.data.convert", "Info", "show what an episode file holds: `aime data info FILE`"),
    "train": ("aime.training.cli", "Train", "train a world model on episodes"),
    "evaluate": ("aime.evaluation.cli", "Evaluate", "score a trained model on held-out episodes and write the report"),
    "watch": ("aime.watch.cli", "Watch", "follow a run in the browser: live curves, films and attention maps"),
    "imagine": ("aime.evaluation.cli", "Imagine", "roll a model out open loop and draw it beside the truth"),
    "control": ("aime.control.cli", "Control", "train an agent that learns to act in the world model's imagination"),
    "play": ("aime.control.play", "Play", "play episodes with a trained agent, or by planning with a world model"),
    "bench": ("aime.bench", "Bench", "measure environments, kernels or the training step (from a source checkout)"),
    "doctor": ("aime.doctor", "Doctor", "what this machine has, and what each lack costs"),
}


def usage() -> str:
    """The overview that `aime --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, (_, _, line) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: aime COMMAND [--help] [--traceback] [OPTIONS]",
            "",
            "commands:",
            *lines,
            "",
            "`aime COMMAND --help` is its manual. An error is one line; --traceback shows where it arose.",
        ]
    )


def load(name: str) -> type[Any]:
    """The dataclass of a subcommand, importing its module alone."""
    module, cls, _ = COMMANDS[name]
    command: type[Any] = getattr(importlib.import_module(module), cls)
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `aime` with the given arguments (those of the process by default); returns the exit status.

    What goes wrong is one line on stderr: status 2 for a command or option that makes no sense, 1 for anything else.
    With `--traceback` anywhere, or AIME_TRACEBACK=1 in the environment, it is a traceback.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with_traceback = wants_traceback(arguments)
    arguments = [argument for argument in arguments if argument != TRACEBACK]
    return guarded(lambda: _run(arguments), with_traceback=with_traceback)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        import aime

        print(f"aime {aime.__version__}")
        return 0
    refuse_empty(arguments)
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise OptionError(f"expected a command among {', '.join(COMMANDS)}, found {show(name)}{hint}")
    import tyro

    status = tyro.cli(load(name), prog=f"aime {name}", args=rest).run()
    return 0 if status is None else int(status)


if __name__ == "__main__":
    sys.exit(main())
