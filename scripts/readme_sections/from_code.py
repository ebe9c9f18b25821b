"""Sections that come from the code: options, presets, names, commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from aime import cli
from aime.documented_names import Becomes, Entry, Kept, Only, Retired
from aime.documented_tables import TABLES
from aime.evaluation.protocol import EvaluationConfig
from aime.legacy.names import MODULES
from aime.training import TrainConfig
from aime.training.cli import field_docs
from aime.training.config import PRESETS as TRAIN_PRESETS
from aime.world_model import WorldModelConfig
from aime.world_model.config import ALIASES, PRESETS
from readme_sections.parts import table


def plain(value: Any) -> str:
    """A value as it is written in a table."""
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(plain, value)) + ")"
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(entry)}" for name, entry in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def default_values(config: type[Any]) -> dict[str, Any]:
    """The default of every field of a configuration."""
    defaults = {}
    for entry in dataclasses.fields(config):
        made = entry.default_factory
        defaults[entry.name] = entry.default if made is dataclasses.MISSING else made()
    return defaults


def fields_table(config: type[Any]) -> str:
    """Every field of a configuration: name, default, meaning."""
    docs = field_docs(config)
    rows = [
        (f"`{name}`", plain(default), " ".join(docs[name].split())) for name, default in default_values(config).items()
    ]
    return table(("field", "default", "meaning"), rows, first_right=3)


def presets_table(config: type[Any], presets: dict[str, dict[str, Any]], unset: str) -> str:
    """The fields that some preset sets, one column a preset; the default where a preset leaves it."""
    defaults = {name: unset if value is None else plain(value) for name, value in default_values(config).items()}
    names = [name for name in defaults if any(name in preset for preset in presets.values())]
    rows = [
        (f"`{name}`", *(plain(preset[name]) if name in preset else defaults[name] for preset in presets.values()))
        for name in names
    ]
    return table(("field", *presets), rows)


def aliases_table() -> str:
    """The older constructor names, and the fields they mean."""
    return table(("older name", "field"), [(f"`{old}`", f"`{new}`") for old, new in ALIASES.items()], first_right=2)


def arguments_table() -> str:
    """The documented constructor arguments of every class, and what becomes of each."""
    rows = [
        (f"`{cls}`", f"`{name}`", fate(entry)) for cls, made in TABLES.items() for name, entry in made.entries.items()
    ]
    return table(("class", "argument", "here"), rows, first_right=3)


def fate(entry: Entry) -> str:
    """What becomes of a documented argument, in words."""
    if isinstance(entry, str):
        return f"`{entry}`"
    if isinstance(entry, Becomes):
        return entry.says
    if isinstance(entry, Kept):
        return f"for the trainer and `optimizer`: `{entry.option}`"
    if isinstance(entry, Only):
        return f"{plain(entry.value)} is what happens; anything else warns: {entry.advice}"
    if isinstance(entry, Retired):
        return f"warns: {entry.advice}"
    return "the module is moved there"


def old_paths_table() -> str:
    """The import paths of the older documents, and what they lead to."""
    rows = []
    for name, names in MODULES.items():
        targets = {names} if isinstance(names, str) else {target.partition(":")[0] for target in names.values()}
        what = "the whole of it" if isinstance(names, str) else ", ".join(f"`{entry}`" for entry in names)
        rows.append((f"`{name}`", what, ", ".join(sorted(targets))))
    return table(("module", "names", "from"), rows, first_right=3)


def commands_table() -> str:
    """The subcommands of `aime`."""
    rows = [(f"`aime {name}`", line) for name, (_, _, line) in cli.COMMANDS.items()]
    return table(("command", "what it does"), rows, first_right=2)


SECTIONS: dict[str, Callable[[], str]] = {
    "commands": commands_table,
    "world-model-config": lambda: fields_table(WorldModelConfig),
    "world-model-presets": lambda: presets_table(WorldModelConfig, PRESETS, ""),
    "world-model-aliases": aliases_table,
    "documented-arguments": arguments_table,
    "old-paths": old_paths_table,
    "train-config": lambda: fields_table(TrainConfig),
    "train-presets": lambda: presets_table(TrainConfig, TRAIN_PRESETS, "-"),
    "evaluation-config": lambda: fields_table(EvaluationConfig),
}
