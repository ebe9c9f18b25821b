"""DMCVBTrainer: the documented object around the functional core."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from aime.data import Batch, EpisodeSource, open_source
from aime.multi_task_learning import LossAggregator, Sum
from aime.multi_task_learning.losses.task_loss import LossWeights
from aime.ranges import show
from aime.training.batches import validation_batches
from aime.training.checkpoint import CheckpointDirectory
from aime.training.config import TrainConfig
from aime.training.dataset import DMCVBDataset, Item, find_episodes
from aime.training.documented_options import config_from, for_epochs
from aime.training.loop import held_out_losses, step_once, train
from aime.training.outcome import TrainResult
from aime.training.protocol import SequenceModel
from aime.training.run_directory import NAME, RunDirectory, default_path
from aime.training.schedule import beta
from aime.training.session import Session, check_fit, save, start_session, write_facts
from aime.training.sheets import look, results_sheet, write_png


class DMCVBTrainer:
    """Trains a model on the episodes of one task.

    `train` is a whole run, with everything that a run writes. `train_epoch`, `evaluate` and `save_checkpoint` are the
    pieces for a loop of one's own.

    Args:
        model: see `SequenceModel`. What its constructor was told of training (learning_rate, grad_clip, ...) counts
            where the configuration is silent.
        data_dir: an episode file or a directory with one.
        config: a `TrainConfig`, or a dictionary with its fields (aliases and the older documents' keys are accepted):
            domain_name, task_name and policy_level choose the file, experiment_name names the run directory.
        device: where to train.
        run_directory: where to write; runs/<experiment_name> by default.
        train_dataset, val_dataset: instead of `data_dir`: windows of the splits of one file.
        **options: entries of the dictionary, by name.

    Raises:
        TypeError: an unknown option; near names are listed.
        ValueError: the data do not fit the model, or the two datasets are of two files.

    Example:
        >>> trainer = DMCVBTrainer(model, "data/cartpole.h5", TrainConfig(steps=100))  # doctest: +SKIP
        >>> trainer.train().metrics["total_loss"]  # doctest: +SKIP
    """

    def __init__(
        self,
        model: SequenceModel,
        data_dir: str | Path | None = None,
        config: TrainConfig | Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
        run_directory: str | Path | None = None,
        *,
        train_dataset: DMCVBDataset | None = None,
        val_dataset: DMCVBDataset | None = None,
        **options: Any,
    ) -> None:
        values: dict[str, Any] = {} if config is None or isinstance(config, TrainConfig) else dict(config)
        values |= options
        names = {name: values.pop(name, None) for name in ("domain_name", "task_name", "policy_level")}
        experiment = values.pop("experiment_name", None)
        if isinstance(config, TrainConfig) and values:
            raise TypeError(f"expected either a TrainConfig or options, found both, {', '.join(sorted(values))}")
        if train_dataset is not None and val_dataset is not None and train_dataset.path != val_dataset.path:
            raise ValueError(
                f"val_dataset: expected a split of {train_dataset.path}, found one of {val_dataset.path}: training and "
                "validation are disjoint splits of one file"
            )
        place = data_dir if train_dataset is None else train_dataset.path
        if place is None:
            raise TypeError("expected data_dir, or train_dataset, found neither")
        self.path = find_episodes(place, **names)
        self.source: EpisodeSource = open_source(self.path, body_masks=False, physics=False)
        self.warmup_epochs: float | None = None
        if isinstance(config, TrainConfig):
            self.config = config
        else:
            self.config, self.warmup_epochs = config_from(values, model)
        self.model = model
        self.device = torch.device(device)
        self.run_directory = self._named_directory(run_directory, experiment)
        self.metrics_history: list[dict[str, float]] = []
        self._session: Session | None = None
        check_fit(model, self.source)

    def _named_directory(self, given: str | Path | None, experiment: Any) -> Path:
        spec = self.source.spec
        if given is not None:
            return Path(given)
        if experiment is None:
            return default_path(spec.domain, spec.task)
        if not NAME.fullmatch(str(experiment)):
            raise ValueError(f"experiment_name: expected letters, digits, '_', '-' and '.', found {show(experiment)}")
        return Path("runs") / str(experiment)

    # ------------------------------------------------------------------ what it trains on

    @functools.cached_property
    def train_dataset(self) -> DMCVBDataset:
        """Windows of the training split."""
        return self._dataset("train")

    @functools.cached_property
    def eval_dataset(self) -> DMCVBDataset:
        """Windows of the validation split."""
        return self._dataset("validation")

    @property
    def train_loader(self) -> DataLoader[Item]:
        """Shuffled batches of the training split. Training itself reads windows without this detour."""
        return DataLoader(self.train_dataset, batch_size=self.config.batch_size, shuffle=True)

    @property
    def eval_loader(self) -> DataLoader[Item]:
        """Batches of the validation split, in order."""
        return DataLoader(self.eval_dataset, batch_size=self.config.batch_size)

    def _dataset(self, split: str) -> DMCVBDataset:
        length, seed = self.config.sequence_length, self.config.seed
        return DMCVBDataset(self.path, split=split, sequence_length=length, seed=seed)

    # ------------------------------------------------------------------ a whole run

    @property
    def best_eval_loss(self) -> float | None:
        """Lowest held-out loss of any `train` or `evaluate` call so far."""
        name = f"validation/{self.config.best_metric}"
        return min((record[name] for record in self.metrics_history if name in record), default=None)

    def anneal_beta(self, epoch: float) -> float:
        """Weight of the KL terms after this many epochs; ValueError where the run is not counted in epochs."""
        if self.config.epochs is None:
            raise ValueError("expected a run that is counted in epochs, found epochs None in its configuration")
        return beta(self.config, min(1.0, epoch / self.config.epochs))

    def train(
        self, n_epochs: float | None = None, *, num_epochs: float | None = None, resume: bool = False, **options: Any
    ) -> TrainResult:
        """Train to the configuration's end, or for `n_epochs` (also called `num_epochs`); options as in `train`."""
        epochs = n_epochs if num_epochs is None else num_epochs
        if epochs is not None:
            self.config = for_epochs(self.config, epochs, self.warmup_epochs)
        self._session = None  # a run begins with an optimizer of its own
        result = train(
            self.model, self.source, self.config, self.run_directory, device=self.device, resume=resume, **options
        )
        self.metrics_history.append(result.metrics)
        return result

    # ------------------------------------------------------------------ its pieces

    def train_epoch(self) -> dict[str, float]:
        """As many steps as there are batches in the training frames, at the run's schedules -> mean losses."""
        session = self._opened()
        self.model.train()
        with session.data.loader:
            for _ in range(session.data.steps_per_epoch(session.config)):
                batch = next(session.data.loader)
                step_once(session, batch)
                session.guard.check(batch, session.run.path if session.run else None, session.counters.step)
        record = session.means.read()
        self.metrics_history.append(record)
        return record

    def evaluate(self) -> dict[str, float]:
        """Losses of the model as it is on held-out windows, and the PSNR in dB of its reconstructions of some."""
        self.model.to(self.device)
        losses = held_out_losses(self.model, self._held_out, self.config, self.device)
        outputs = look(self.model, self._held_out[0])
        if "reconstructions" in outputs and "observations" in outputs:
            error = (outputs["reconstructions"].clamp(-1, 1) - outputs["observations"]).square().mean()
            losses["psnr"] = float(10 * torch.log10(4 / error))  # the range of [-1, 1], squared, is 4
        self.metrics_history.append({f"validation/{name}": value for name, value in losses.items()})
        return losses

    def save_checkpoint(self, *, best: bool = False) -> Path:
        """Write a checkpoint of everything, as a run does -> its directory.

        Raises:
            ValueError: the run directory holds an earlier run.
        """
        session = self._opened()
        run = RunDirectory(self.run_directory)
        if session.checkpoints is None:
            if run.holds_a_run():
                raise ValueError(f"{run.path}: expected an empty run directory, found an earlier run")
            run.path.mkdir(parents=True, exist_ok=True)
            session.run, session.checkpoints = run, CheckpointDirectory(run.checkpoints, self.config.keep_checkpoints)
            write_facts(session, run, {})
        with run.locked():
            save(session, best=best)
        return session.checkpoints.directory(session.counters.step)

    def run_grad_diag(self) -> dict[str, float]:
        """Norm of each task's gradient and the cosines between them, on one held-out window; gradients are cleared."""
        self.model.to(self.device)
        mode = self.model.training
        self.model.eval()  # nothing but gradients may come of it
        one = _first(self._held_out[0])
        inputs = one.observations, one.actions, one.rewards, one.continues
        _, outputs = self.model.compute_total_loss(*inputs, beta=self.config.beta_max, **self.config.loss_weights())
        aggregator = getattr(self.model, "loss_aggregator", None) or LossAggregator()
        _, tasks = aggregator.weigh(outputs, LossWeights(beta=self.config.beta_max, **self.config.loss_weights()))
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        step = Sum().backward(tasks, parameters)
        for parameter in parameters:
            parameter.grad = None
        self.model.train(mode)
        found = {f"grad_norm/{name}": float(step.task_norms[i]) for i, name in enumerate(step.task_names)}
        for i, name in enumerate(step.task_names):
            for j in range(i):
                found[f"grad_cosine/{step.task_names[j]}_{name}"] = float(step.cosines[i, j])
        return found

    def visualize_results(self, path: str | Path | None = None, windows: int = 4) -> Path:
        """Draw held-out windows, reconstructed and attended to -> the PNG, by default below the run directory."""
        step = 0 if self._session is None else self._session.counters.step
        target = Path(path) if path is not None else self.run_directory / "visualizations" / f"step_{step:08d}.png"
        self.model.to(self.device)
        return write_png(target, results_sheet(look(self.model, self._held_out[0]), windows))

    def _opened(self) -> Session:
        if self._session is None:
            session = start_session(self.model, self.source, self.config, self.device)
            frames = session.data.initial_frames(self.config.initial_frames, self.config.seed)
            self.model.initialise_from_data(frames, generator=session.generator)
            self._session = session
        return self._session

    @functools.cached_property
    def _held_out(self) -> list[Batch]:
        return validation_batches(self.source, self.config, self.device)


def _first(batch: Batch) -> Batch:
    """The first window of a batch, (1, T, ...)."""
    values = {entry.name: getattr(batch, entry.name) for entry in dataclasses.fields(batch)}
    return Batch(**{name: value[:1] if isinstance(value, Tensor) else value for name, value in values.items()})
