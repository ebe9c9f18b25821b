"""`python -m aime.world_model.train --domain walker --task walk --seed 1`: train on a task's episodes, or evaluate.

The flags of the older documents' entry point; `aime train` has all options and more. Needs no tyro.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aime.command import INTERRUPTED, guarded
from aime.ranges import OptionError

if TYPE_CHECKING:
    from aime.training.outcome import TrainResult
    from aime.world_model.model import DPGMMVariationalRecurrentAutoencoder


def parser() -> argparse.ArgumentParser:
    """The flags; words may be joined by - or _."""
    flags = argparse.ArgumentParser(prog="python -m aime.world_model.train", description="Train a world model.")
    add = flags.add_argument
    add("--domain", default="walker", help="dm_control domain (default: %(default)s)")
    add("--task", default="walk", help="dm_control task (default: %(default)s)")
    add("--env", help="DOMAIN-TASK, such as humanoid-walk, instead of --domain and --task")
    add("--seed", type=int, default=1, help="seed of weights, windows and noise (default: %(default)s)")
    add(
        "--data",
        type=Path,
        default=Path(os.environ.get("AIME_DATA_PATH", "data")),
        help="episode file, or a directory with <domain>_<task>.h5 (default: $AIME_DATA_PATH, else data)",
    )
    add("--preset", default="pillars", help="laptop, pillars, tier1, tier2 or tier3 (default: %(default)s)")
    add("--num_epochs", "--num-epochs", type=float, help="passes over the data (default: the preset's)")
    add("--batch_size", "--batch-size", type=int, help="windows in a batch (default: the preset's)")
    add("--sequence_length", "--sequence-length", type=int, help="frames in a window (default: the preset's)")
    add("--learning_rate", "--learning-rate", type=float, help="peak rate (default: the preset's)")
    add("--steps", "--max-steps", "--max_steps", type=int, help="train for this many optimizer steps")
    add("--seconds", type=float, help="train for this much wall-clock time")
    add("--latent_dim", "--latent-dim", type=int, help="size of z (default: the preset's)")
    add("--max_components", "--max-components", type=int, help="components of the prior (default: the preset's)")
    add("--hidden_dim", "--hidden-dim", type=int, help="size of the recurrent state (default: the preset's)")
    add("--context_dim", "--context-dim", type=int, help="size of the context (default: the preset's)")
    add("--save_dir", "--save-dir", type=Path, help="run directory (default: runs/<domain>-<task>-seed-<seed>)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    add(
        "--load_checkpoint",
        "--load-checkpoint",
        type=Path,
        help="start from these weights: a run, an export, a step's checkpoint, or a state_dict that torch.save wrote",
    )
    add("--eval_only", "--eval-only", action="store_true", help="no training: losses on the held-out windows")
    add(
        "--visualize_attention",
        "--visualize-attention",
        action="store_true",
        help="then draw frames, attention and slots of a held-out window: RUN/visualizations/attention.png",
    )
    add(
        "--save_visualizations",
        "--save-visualizations",
        action="store_true",
        help="then draw held-out windows beside their reconstructions: RUN/visualizations/results.png",
    )
    add("--resume", action="store_true", help="continue the run in the run directory, if there is one")
    add("--overwrite", action="store_true", help="replace the run in the run directory")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; returns the exit status, with one line on stderr for what went wrong (see `aime.command.guarded`)."""
    flags = parser().parse_args(arguments)
    return guarded(lambda: run(flags))


def run(flags: argparse.Namespace) -> int:
    """Find the episodes, train or evaluate on them, and draw what was asked for."""
    # The trainer stands above the model; this module is an entry point that happens to live beside the model.
    from aime.training.run_directory import default_path

    if flags.env is not None:
        flags.domain, _, flags.task = flags.env.replace("-", "_").partition("_")
        if not flags.task:
            raise OptionError(f"--env: expected DOMAIN-TASK, such as humanoid-walk, found {flags.env!r}")
    if flags.eval_only and (flags.resume or flags.overwrite):
        raise OptionError("--eval-only: expected neither --resume nor --overwrite beside it, found one")
    data = episodes(flags)
    directory = flags.save_dir or default_path(flags.domain, flags.task, f"-seed-{flags.seed}")
    if flags.eval_only:
        model = evaluate(flags, data, directory)
        draw(flags, model, data, directory)
        return 0
    result = train(flags, data, directory)
    if result.finished:
        draw(flags, None, data, directory)
    return INTERRUPTED if result.stopped_by == "SIGINT" else 0


def episodes(flags: argparse.Namespace) -> Path:
    """The episode file; FileNotFoundError says how to make one."""
    from aime.training.dataset import find_episodes

    try:
        return find_episodes(flags.data, flags.domain, flags.task)
    except FileNotFoundError as error:
        collect = f"aime collect --domain {flags.domain} --task {flags.task}"
        raise FileNotFoundError(f"{error}; make it with: {collect} --out data/{flags.domain}_{flags.task}.h5") from None


def sizes(flags: argparse.Namespace) -> dict[str, Any]:
    """The model's sizes that were given."""
    names = ("latent_dim", "max_components", "hidden_dim", "context_dim")
    return {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}


def training(flags: argparse.Namespace) -> dict[str, Any]:
    """What was given of the training."""
    given = {
        "epochs": flags.num_epochs,
        "steps": flags.steps,
        "seconds": flags.seconds,
        "batch_size": flags.batch_size,
        "sequence_length": flags.sequence_length,
        "learning_rate": flags.learning_rate,
    }
    return {name: value for name, value in given.items() if value is not None}


def train(flags: argparse.Namespace, data: Path, directory: Path) -> TrainResult:
    """Train, from the weights of --load-checkpoint where they are given."""
    from aime.training.experiment import run_experiment

    return run_experiment(
        data,
        directory,
        preset=flags.preset,
        seed=flags.seed,
        device=flags.device,
        model=None if flags.load_checkpoint is None else loaded(flags, data),
        model_overrides=sizes(flags),
        train_overrides=training(flags),
        resume=flags.resume,
        overwrite=flags.overwrite,
    )


def loaded(flags: argparse.Namespace, data: Path) -> DPGMMVariationalRecurrentAutoencoder:
    """The model of --load-checkpoint; of a state_dict, that of preset and sizes with these weights."""
    from aime.data import open_source
    from aime.training.experiment import build_model
    from aime.training.step_weights import load_model
    from aime.world_model.pickled_weights import PICKLED, state_dict_of

    path = flags.load_checkpoint
    if path.suffix not in PICKLED:
        model = load_model(path)
        different = [name for name, value in sizes(flags).items() if getattr(model.config, name) != value]
        if different:
            said = ", ".join(f"{name} {getattr(model.config, name)}" for name in different)
            raise OptionError(
                f"--load-checkpoint: expected no other sizes than the checkpoint's ({said}), found others"
            )
        return model
    source = open_source(data, body_masks=False, physics=False)
    built: DPGMMVariationalRecurrentAutoencoder = build_model(flags.preset, source, flags.seed, sizes(flags))
    try:
        built.load_state_dict(state_dict_of(path))
    except RuntimeError as error:
        raise ValueError(f"{path}: expected the weights of this preset and these sizes, found: {error}") from None
    return built


def evaluate(flags: argparse.Namespace, data: Path, directory: Path) -> DPGMMVariationalRecurrentAutoencoder:
    """Print the losses on held-out windows -> the model."""
    from aime.devices import choose_device
    from aime.training.config import TrainConfig
    from aime.training.step_weights import load_model
    from aime.training.trainer import DMCVBTrainer

    model = load_model(directory) if flags.load_checkpoint is None else loaded(flags, data)
    config = TrainConfig.preset(flags.preset, seed=flags.seed, **training(flags))
    losses = DMCVBTrainer(model, data, config, choose_device(flags.device), directory).evaluate()
    for name, value in losses.items():
        print(f"{name:<28}{value:.6g}")
    return model


def draw(
    flags: argparse.Namespace, model: DPGMMVariationalRecurrentAutoencoder | None, data: Path, directory: Path
) -> None:
    """Write the pictures that were asked for, of the run's model where none is given, and say where they are."""
    from aime.data import open_source
    from aime.training.batches import validation_batches
    from aime.training.config import TrainConfig
    from aime.training.sheets import Picture, attention_sheet, look, results_sheet, write_png
    from aime.training.step_weights import load_model

    pictures: dict[str, Callable[[Mapping[str, Any]], Picture]] = {}
    if flags.visualize_attention:
        pictures["attention.png"] = attention_sheet
    if flags.save_visualizations:
        pictures["results.png"] = results_sheet
    if not pictures:
        return
    model = load_model(directory) if model is None else model
    config = TrainConfig.preset(flags.preset, seed=flags.seed, **training(flags))
    source = open_source(data, body_masks=False, physics=False)
    outputs = look(model, validation_batches(source, config, model.mean_image.device)[0])
    for name, picture in pictures.items():
        print(f"picture  {write_png(directory / 'visualizations' / name, picture(outputs))}")


if __name__ == "__main__":
    sys.exit(main())
