"""What a training loop holds while it runs: how it is begun, put back to a checkpoint, saved and exported."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aime.allocator import keep_freed_memory
from aime.data import EpisodeSource
from aime.files import mode_of_new_files, naming, record_written, remove, temporary_beside
from aime.ranges import OptionError
from aime.ranks import Ranks
from aime.sharding import gathered, is_divided, shard, whole_state
from aime.training import schedule
from aime.training.averaging import WeightAverage
from aime.training.batches import TrainingData
from aime.training.checkpoint import Checkpoint, CheckpointDirectory
from aime.training.compiling import CompiledNetworks, make_compiled
from aime.training.config import TrainConfig
from aime.training.distributed import check_world
from aime.training.experiment_tracking import WeightsAndBiases
from aime.training.gradient_monitor import GradientMonitor
from aime.training.guard import FiniteGuard, RunningMeans, check_parameters
from aime.training.metric_log import FilmSink, MetricSink, open_sinks
from aime.training.pictures import draw
from aime.training.precision import autocast_dtype
from aime.training.progress import Progress, Silent
from aime.training.protocol import SequenceModel, optimizers_of, parameter_count, second_player_of
from aime.training.rehearsal import PosteriorMemory, Rehearsals, RehearsingModel
from aime.training.run_directory import RunDirectory
from aime.training.stepping import CapturedSteps, make_captured
from aime.training.training_state import Counters, TensorHolder, capture, restore


@dataclass
class Session:
    """What the loop holds while it runs."""

    model: SequenceModel
    config: TrainConfig
    data: TrainingData
    device: torch.device
    generator: torch.Generator
    peaks: list[list[float]]  # of each parameter group of each of `optimizers`
    guard: FiniteGuard
    counters: Counters = field(default_factory=Counters)
    means: RunningMeans = field(default_factory=RunningMeans)
    gradients: RunningMeans = field(default_factory=RunningMeans)
    sinks: list[MetricSink] = field(default_factory=list)
    checkpoints: CheckpointDirectory | None = None
    run: RunDirectory | None = None
    progress: Progress = field(default_factory=Silent)
    last: dict[str, float] = field(default_factory=dict)
    validated: int = -1  # step of the last validation
    average: WeightAverage | None = None
    rehearsals: Rehearsals | None = None
    captured: CapturedSteps | None = None
    compiled: CompiledNetworks | None = None
    ranks: Ranks | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes the run's files: the only one, or rank 0."""
        return self.ranks is None or self.ranks.leads

    @property
    def together(self) -> dict[str, Ranks]:
        """What a model's methods are told besides in a distributed run."""
        return {} if self.ranks is None else {"ranks": self.ranks}

    @property
    def kept(self) -> dict[str, TensorHolder]:
        """What a checkpoint holds besides the model and its optimizer, by prefix."""
        holders: dict[str, TensorHolder | None] = {
            "average": self.average,
            "memory": None if self.rehearsals is None else self.rehearsals.memory,
        }
        return {name: holder for name, holder in holders.items() if holder is not None}

    def averaged(self) -> AbstractContextManager[None]:
        """The model with its averaged weights, where they are averaged."""
        return nullcontext() if self.average is None else self.average.in_place()

    def show_pictures(self) -> None:
        """Draw held-out windows for those sinks that show films; nothing of the run changes by it."""
        sinks = [sink for sink in self.sinks if isinstance(sink, FilmSink)]
        if not sinks or not self.config.validation_films:
            return
        pictures = draw(self.model, self.data.validation[0], self.config.validation_films, self.config.seed)
        for sink in sinks:
            sink.show(self.counters.step, pictures)

    @cached_property
    def monitor(self) -> GradientMonitor:
        """What tasks do to parts of the model."""
        return GradientMonitor(self.model)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The model's and, where it has one, the second player's."""
        player = second_player_of(self.model)
        return [optimizers_of(self.model)[0], *([] if player is None else [player.optimizer])]

    def set_learning_rates(self, factor: float) -> None:
        """Every group of every player to its peak rate times the factor."""
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            schedule.set_learning_rate(optimizer, peaks, factor)

    @property
    def epochs(self) -> float:
        """Passes over the training frames so far."""
        return self.counters.step / self.data.steps_per_epoch(self.config)

    @property
    def fraction(self) -> float:
        """How much of the run is over, in [0, 1]."""
        return schedule.elapsed_fraction(
            self.config, steps=self.counters.step, seconds=self.counters.seconds, epochs=self.epochs
        )


def check_fit(model: SequenceModel, source: EpisodeSource) -> None:
    """Raise ValueError where the model's image or action size is not the data's."""
    spec = source.spec
    shape: tuple[int, ...] = tuple(getattr(model.config, "image_shape", spec.image_shape))
    size: int = getattr(model.config, "action_size", spec.action_size)
    if shape != tuple(spec.image_shape):
        raise ValueError(
            f"image_shape (C, H, W): the model expects {shape}, found {tuple(spec.image_shape)} in the data"
        )
    if size != spec.action_size:
        raise ValueError(f"action_size: the model expects {size}, found {spec.action_size} in the data")


def start_session(
    model: SequenceModel,
    source: EpisodeSource,
    config: TrainConfig,
    device: torch.device,
    ranks: Ranks | None = None,
) -> Session:
    """Seed, place the model, give it its optimizer and balancer, and open the data."""
    check_world(config, ranks)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    generator = torch.Generator(device).manual_seed(config.seed)
    model.to(device)
    if config.shard:
        divide_model(model, ranks)
    model.configure_optimizer(config.learning_rate, config.weight_decay, config.balancer, **config.balancer_options)
    if ranks is not None and second_player_of(model) is not None:
        raise OptionError(
            f"model: expected one without critics in a run of {ranks.size} processes, since each would train critics "
            "of its own; found one with them"
        )
    data = TrainingData.open(source, config, device, ranks)
    session = Session(model, config, data, device, generator, [], FiniteGuard(config.bad_steps_allowed, device))
    session.ranks, session.means = ranks, RunningMeans(ranks)
    session.peaks = [[float(group["lr"]) for group in entry.param_groups] for entry in session.optimizers]
    session.average = WeightAverage(model, config.weight_average) if config.weight_average else None
    session.rehearsals = make_rehearsals(session) if config.rehearsals else None
    session.compiled = make_compiled(model, config, device, ranks)
    session.captured = make_captured(model, session.optimizers, config, generator, ranks)
    return session


def divide_model(model: SequenceModel, ranks: Ranks | None) -> None:
    """Divide the model's parameters among the processes, rank 0's values; OptionError where that cannot be."""
    if ranks is None:
        raise OptionError("shard: expected several processes to divide the model among (torchrun), found one")
    if not isinstance(model, nn.Module):
        raise OptionError(f"shard: expected a model that is an nn.Module, found {type(model).__name__}")
    if any(hasattr(parameter, "manifold") for parameter in model.parameters()):
        raise OptionError(
            "shard: expected parameters that can be divided by rows, found some on a manifold, whose steps need whole "
            "matrices (orthogonal manifold): train without shard, or with another orthogonal"
        )
    ranks.copy_from_leader(list(model.state_dict().values()))
    shard(model, ranks)


def begin_session(
    session: Session, run: RunDirectory | None, *, resume: bool, overwrite: bool, initialise: bool
) -> int | None:
    """Bring model and counters to where the run stands, the same on every rank -> the step resumed from, if any.

    Args:
        session: as `start_session` made it.
        run: where it is written, None for nowhere.
        resume: continue from the newest whole checkpoint, if there is one.
        overwrite: remove the run that is there.
        initialise: show the model frames of the data once, where nothing is resumed.
    """
    step = None
    if run is not None:
        if overwrite and session.leads:  # only now, when nothing that the caller gave is wrong
            run.clear()
        session.run = run
        session.checkpoints = CheckpointDirectory(run.checkpoints, session.config.keep_checkpoints)
        step = resume_session(session) if resume else None
    if step is None and initialise:
        frames = session.data.initial_frames(session.config.initial_frames, session.config.seed)
        with gathered(session.model):
            session.model.initialise_from_data(frames, generator=session.generator)
    if session.ranks is not None:
        state = session.model.state_dict().values()
        session.ranks.copy_from_leader([tensor for tensor in state if not is_divided(tensor)])
    return step


def open_logs(session: Session, run: RunDirectory, step: int | None, held: ExitStack, *, tensorboard: bool) -> None:
    """Open what the run is reported to, continued after the step, and have it closed with the rest."""
    project = session.config.wandb_project
    tracked = [] if project is None else [WeightsAndBiases(project, run.path, step)]
    session.sinks = [*open_sinks(run.path, tensorboard=tensorboard, resume_step=step), *tracked]
    for sink in session.sinks:
        held.callback(sink.close)


def make_rehearsals(session: Session) -> Rehearsals:
    """Rehearsals with an empty memory of the training episodes; OptionError where the model cannot rehearse."""
    model, data, config = session.model, session.data, session.config
    if not isinstance(model, RehearsingModel):
        raise OptionError(
            f"rehearsals: expected 0, since {type(model).__name__} cannot rehearse (rehearse, "
            f"rehearsal_gradient, rehearsal_update), found {config.rehearsals}"
        )
    episodes, sizes = data.train_episodes, model.config
    lengths = data.source.lengths[episodes]
    memory = PosteriorMemory(
        episodes, lengths, sizes.latent_dim, sizes.action_size, session.device, config.seed, config.rehearsal_age
    )
    generator = None if session.device.type == "cpu" else session.generator
    return Rehearsals(model, memory, config, autocast_dtype(config, session.device), session.ranks, generator)


def resume_session(session: Session) -> int | None:
    """Put the session back to its newest whole checkpoint; its step, None where there is no checkpoint.

    Of a distributed run every rank reads the checkpoint that rank 0 chose: it holds the whole state, whatever the
    number of processes it was taken in.
    """
    assert session.checkpoints is not None
    session.checkpoints.best()  # a damaged best.json is said now, not at the first save
    checkpoint = session.checkpoints.newest() if session.leads else None
    if session.ranks is not None:
        step = session.ranks.from_leader(-1 if checkpoint is None else step_of(checkpoint))
        if not session.leads and step >= 0:
            checkpoint = session.checkpoints.load(step)
    if checkpoint is None:
        return None
    session.counters = restore(
        checkpoint, session.model, session.data.loader, session.guard, session.generator, session.kept
    )
    if session.leads:
        session.checkpoints.set_aside_after(session.counters.step)
    return session.counters.step


def step_of(checkpoint: Checkpoint) -> int:
    """The step that a checkpoint of a run was taken at."""
    return int(checkpoint.values["counters"]["step"])


def write_facts(session: Session, run: RunDirectory, provenance: dict[str, Any]) -> None:
    """Write config.json and run.json."""
    spec, config = session.data.source.spec, session.config
    task = f"{spec.domain}-{spec.task}"
    sections = {"model": session.model.config.to_dict(), "train": config.to_dict(), "task": task}
    run.write_configuration({**sections, "parameters": parameter_count(session.model)})
    facts = {"preset": None, "seed": config.seed, "task": task, "renderer": spec.drawn_by or None}
    run.write_provenance({**facts, **provenance})


def save(session: Session, *, best: bool = False) -> None:
    """Write a checkpoint of everything; NonFiniteError, and none is written, where parameters are not finite.

    Of a distributed run rank 0 writes, and the others go on; their state is the same, or handed to rank 0.
    """
    if session.checkpoints is None:
        return
    check_parameters(session.model, session.counters.step, session.config.learning_rate)
    if not (session.leads or session.config.shard):
        return
    state = capture(
        session.model,
        session.data.loader,
        session.counters,
        session.guard,
        session.generator,
        session.kept,
        session.ranks,
    )
    if not session.leads:
        return
    session.checkpoints.save(session.counters.step, state, best=best)


def export(session: Session) -> Path | None:
    """The model's weights into the run directory, by rank 0; None without one, and on other ranks."""
    with whole_state(session.model, session.ranks):
        if session.run is None or not session.leads:
            return None
        return export_weights(session.model, session.run)


def best_checkpoint(session: Session) -> int | None:
    """Step of the best checkpoint, None where there is none; the ranks wait until rank 0 has written it."""
    best = session.checkpoints.best() if session.checkpoints and session.leads else None
    if session.ranks is None:
        return best
    step = session.ranks.from_leader(-1 if best is None else best)
    return None if step < 0 else step


def export_weights(model: SequenceModel, run: RunDirectory) -> Path:
    """Write weights/ under a temporary name and rename it; a reader sees the old weights, the new ones, or none."""
    temporary = temporary_beside(run.weights)
    try:
        with naming(run.weights):
            temporary.mkdir()
            model.save_pretrained(temporary)
            record_written(temporary)
            mode = mode_of_new_files(temporary)
            for file in temporary.iterdir():
                file.chmod(mode)
            remove(run.weights)
            temporary.rename(run.weights)
    except BaseException:
        remove(temporary)
        raise
    return run.weights
