"""`aime train`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import tyro

from aime.command import INTERRUPTED
from aime.ranges import SEED, OptionError, Range, check_ranges
from aime.training.config import TrainConfig
from aime.world_model import WorldModelConfig

OF_THE_COMMAND = ("seed", "epochs", "steps", "seconds")  # fields of TrainConfig that are flags of their own


def field_docs(config: type[Any]) -> dict[str, str]:
    """The string under each field of a dataclass: its manual."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for node, after in itertools.pairwise(body.body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
            docs[node.target.id] = str(ast.literal_eval(after.value))
    return docs


def overrides_of(config: type[Any], name: str, leave_out: tuple[str, ...] = ()) -> type[Any]:
    """A dataclass with every field of a configuration, optional: what is None keeps the preset's value."""
    hints, docs = get_type_hints(config), field_docs(config)
    entries: list[tuple[str, Any, Any]] = []
    for entry in dataclasses.fields(config):
        if entry.name in leave_out:
            continue
        # Options of a balancer have types of their own: taken as text and read as JSON where they are.
        kind = dict[str, str] if hints[entry.name] == dict[str, Any] else hints[entry.name]
        kind = Annotated[kind | None, tyro.conf.arg(help=docs[entry.name])]
        entries.append((entry.name, kind, dataclasses.field(default=None)))
    made = dataclasses.make_dataclass(name, entries, frozen=True)
    made.__doc__ = f"Fields of {config.__name__}; the preset's values where not given."
    return made


if TYPE_CHECKING:
    ModelOverrides = Any
    TrainOverrides = Any
else:
    ModelOverrides = overrides_of(WorldModelConfig, "ModelOverrides")
    TrainOverrides = overrides_of(TrainConfig, "TrainOverrides", OF_THE_COMMAND)


def given(overrides: Any) -> dict[str, Any]:
    """The fields that were given."""
    values = {entry.name: getattr(overrides, entry.name) for entry in dataclasses.fields(overrides)}
    return {name: value for name, value in values.items() if value is not None}


@dataclass
class Train:
    """Train a world model on an episode file.

    The run directory holds config.json, metrics.jsonl (a line per logged step), tensorboard/, checkpoints/,
    timing.json, and at the end weights/. SIGTERM, SIGHUP or SIGUSR1 saves and exits with status 0, Ctrl-C likewise with
    130; --resume continues exactly.
    Where a --model or --train option is None, the preset decides.
    """

    data: Path
    """Episode file (HDF5), as `aime collect` writes it."""
    preset: Literal["laptop", "pillars", "tier1", "tier2", "tier3"] = "laptop"
    """Sizes of model and training."""
    out: Path | None = None
    """Run directory. Default: runs/<domain>-<task>-<preset>-seed<seed>."""
    seed: Annotated[int, SEED] = 1
    """Seed of weights, windows and noise."""
    seconds: Annotated[float, Range(above=0)] | None = None
    """Train for this much wall-clock time."""
    minutes: Annotated[float, Range(above=0)] | None = None
    """The same in minutes."""
    epochs: Annotated[float, Range(above=0)] | None = None
    """Train for this many passes over the training frames."""
    steps: Annotated[int, Range(1, 10**12)] | None = None
    """Train for this many optimizer steps. The first limit that is reached ends the run; by default the preset's."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, cuda:1, ..."""
    resume: bool = False
    """Continue the run in the run directory, if there is one."""
    overwrite: bool = False
    """Replace the run in the run directory."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    progress: bool = True
    """Show progress."""
    model: ModelOverrides = field(default_factory=ModelOverrides)
    """Sizes and switches of the model, instead of the preset's."""
    train: TrainOverrides = field(default_factory=TrainOverrides)
    """Everything about training, instead of the preset's."""

    def run(self) -> int:
        """Train; returns 0, also when a signal stopped the run after saving, but 130 after Ctrl-C."""
        from aime.training.experiment import run_experiment

        check_ranges(self)
        if self.seconds is not None and self.minutes is not None:
            raise OptionError(f"expected one of --seconds and --minutes, found {self.seconds} and {self.minutes}")
        train = given(self.train)
        if "balancer_options" in train:
            train["balancer_options"] = {name: _value(text) for name, text in train["balancer_options"].items()}
        seconds = self.minutes * 60 if self.minutes is not None else self.seconds
        limits = {"seconds": seconds, "epochs": self.epochs, "steps": self.steps}
        train.update({name: limit for name, limit in limits.items() if limit is not None})
        result = run_experiment(
            self.data,
            self.out,
            preset=self.preset,
            seed=self.seed,
            device=self.device,
            model_overrides=given(self.model),
            train_overrides=train,
            resume=self.resume,
            overwrite=self.overwrite,
            tensorboard=self.tensorboard,
            progress=self.progress,
        )
        return INTERRUPTED if result.stopped_by == "SIGINT" else 0


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
