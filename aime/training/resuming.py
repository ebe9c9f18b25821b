"""Going on with a run under other settings than it was begun with, and with one that is at its end already."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from aime.files import DamagedFileError, read_json
from aime.ranges import OptionError, show
from aime.training.config import TrainConfig
from aime.training.run_directory import RunDirectory
from aime.training.session import Session

FIXED = ("batch_size", "sequence_length", "consecutive", "seed", "balancer")
"""Training settings that the state of a run is made of: its windows and splits, and the balancer's memory."""
SWITCHES = ("weight_average", "rehearsals")
"""Settings that may change but neither be switched on nor off: what they keep is in the checkpoint, or is not."""


def changed_settings(
    run: RunDirectory, model: Mapping[str, Any], config: TrainConfig, provenance: Mapping[str, Any]
) -> str | None:
    """What is set otherwise than in the run's config.json, as one line; None where nothing is.

    Args:
        run: whose config.json and run.json are read.
        model: the model's configuration as it is now.
        config: the training configuration as it is now.
        provenance: what run.json is going to hold; of it the preset is compared.

    Raises:
        OptionError: a setting that cannot change is another; each is named with its option.
    """
    before = read(run, "config.json")
    pairs = list(_different(before.get("model"), model, "model."))
    pairs += _different(before.get("train"), config.to_dict(), "")
    presets = read(run, "run.json").get("preset"), provenance.get("preset")
    if None not in presets and presets[0] != presets[1]:
        pairs.insert(0, ("preset", *presets))
    refused = [(name, old, new) for name, old, new in pairs if _is_fixed(name, old, new)]
    if refused:
        asked = ", ".join(f"{option(name)} {show(old)} (now {show(new)})" for name, old, new in refused)
        raise OptionError(
            f"{run.path}: a resumed run keeps its preset, model, windows and balancer: expected {asked}. Give the "
            "settings that the run was begun with, or begin another run (--out)"
        )
    if not pairs:
        return None
    changes = ", ".join(f"{name} {_word(old)} -> {_word(new)}" for name, old, new in pairs)
    return f"resumed with other settings: {changes}"


def option(name: str) -> str:
    """The flag of `aime train` that sets a field."""
    plain = name in ("preset", "seed", "steps", "epochs", "seconds")
    return "--" + (name if plain or name.startswith("model.") else f"train.{name}").replace("_", "-")


def read(run: RunDirectory, name: str) -> dict[str, Any]:
    """A file of settings; {} with a warning where it cannot be read: the checkpoint holds all that a run needs."""
    try:
        return read_json(run.path / name)
    except (DamagedFileError, FileNotFoundError) as error:
        warnings.warn(f"the settings are not compared with those before: {error}", stacklevel=3)
        return {}


def has_ended(session: Session) -> bool:
    """Whether the run that was resumed is at its end and its weights are exported, so that nothing is left to do."""
    done = session.fraction >= 1.0
    if done and session.leads:
        run = session.run
        done = run is not None and (run.weights / "config.json").is_file() and _exported(run) == session.counters.frames
    return done if session.ranks is None else bool(session.ranks.from_leader(int(done)))


def _exported(run: RunDirectory) -> Any:
    """Frames that the exported weights were trained on."""
    file = run.path / "timing.json"
    timing = read_json(file) if file.is_file() else {}
    return timing.get("frames_exported", timing.get("frames_trained"))  # the second of runs before there was the first


def _different(before: Any, now: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Names, old and new values of the settings that both have."""
    if not isinstance(before, dict):
        return
    for name, value in json.loads(json.dumps(dict(now))).items():
        if name in before and before[name] != value:
            yield prefix + name, before[name], value


def _is_fixed(name: str, old: Any, new: Any) -> bool:
    if name in SWITCHES:
        return bool(old) != bool(new)
    return name in FIXED or name == "preset" or name.startswith("model.")


def _word(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
