"""DMCVBTrainer: the documented object around the functional core."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aime.data import EpisodeSource, open_source
from aime.ranges import show
from aime.training.batches import validation_batches
from aime.training.config import TrainConfig
from aime.training.dataset import find_episodes
from aime.training.loop import TrainResult, held_out_losses, train
from aime.training.protocol import SequenceModel
from aime.training.run_directory import NAME, default_path
from aime.training.schedule import beta
from aime.training.session import check_fit

# Keys of the older configuration dictionaries that mean nothing here, and why.
WITHOUT_EFFECT = {
    "num_workers": "one background thread keeps up; see prefetch",
    "use_wandb": "metrics go to metrics.jsonl and TensorBoard",
    "wandb_project": "metrics go to metrics.jsonl and TensorBoard",
    "visualize_every": "the evaluation draws pictures",
    "frame_stack": "the model sees every frame of a sequence",
    "img_height": "frames are used at their stored size",
    "img_width": "frames are used at their stored size",
    "beta_eval": "validation uses beta_max",
}


class DMCVBTrainer:
    """Trains a model on the episodes of one task.

    Args:
        model: see `SequenceModel`.
        data_dir: an episode file or a directory with one.
        config: a `TrainConfig`, or a dictionary with its fields (aliases and the older documents' keys are accepted):
            domain_name, task_name and policy_level choose the file, experiment_name names the run directory.
        device: where to train.
        run_directory: where to write; runs/<experiment_name> by default.

    Example:
        >>> trainer = DMCVBTrainer(model, "data/cartpole.h5", TrainConfig(steps=100))  # doctest: +SKIP
        >>> trainer.train().metrics["total_loss"]  # doctest: +SKIP
    """

    def __init__(
        self,
        model: SequenceModel,
        data_dir: str | Path,
        config: TrainConfig | Mapping[str, Any],
        device: torch.device | str = "cpu",
        run_directory: str | Path | None = None,
    ) -> None:
        values = {} if isinstance(config, TrainConfig) else dict(config)
        names = {name: values.pop(name, None) for name in ("domain_name", "task_name", "policy_level")}
        experiment = values.pop("experiment_name", None)
        self.path = find_episodes(data_dir, **names)
        self.source: EpisodeSource = open_source(self.path, body_masks=False, physics=False)
        self.config = config if isinstance(config, TrainConfig) else config_from(values)
        self.model = model
        self.device = torch.device(device)
        spec = self.source.spec
        if run_directory is None and experiment is not None and not NAME.fullmatch(str(experiment)):
            raise ValueError(f"experiment_name: expected letters, digits, '_', '-' and '.', found {show(experiment)}")
        named = Path("runs") / str(experiment) if experiment else None
        self.run_directory = Path(run_directory or named or default_path(spec.domain, spec.task))
        self.metrics_history: list[dict[str, float]] = []
        check_fit(model, self.source)

    @property
    def best_eval_loss(self) -> float | None:
        """Lowest held-out loss at the end of any `train` call so far."""
        name = f"validation/{self.config.best_metric}"
        return min((record[name] for record in self.metrics_history if name in record), default=None)

    def anneal_beta(self, epoch: float) -> float:
        """Weight of the KL terms after this many epochs; ValueError where the run is not counted in epochs."""
        if self.config.epochs is None:
            raise ValueError("expected a run that is counted in epochs, found epochs None in its configuration")
        return beta(self.config, min(1.0, epoch / self.config.epochs))

    def train(self, n_epochs: float | None = None, *, resume: bool = False, **options: Any) -> TrainResult:
        """Train to the configuration's end, or for `n_epochs`; options as in `aime.training.train`."""
        config = self.config
        if n_epochs is not None:
            config = TrainConfig(**{**config.to_dict(), "epochs": n_epochs, "steps": None, "seconds": None})
        result = train(
            self.model, self.source, config, self.run_directory, device=self.device, resume=resume, **options
        )
        self.metrics_history.append(result.metrics)
        return result

    def evaluate(self) -> dict[str, float]:
        """Losses of the model as it is on held-out windows."""
        self.model.to(self.device)
        batches = validation_batches(self.source, self.config, self.device)
        return held_out_losses(self.model, batches, self.config, self.device)


def config_from(values: Mapping[str, Any]) -> TrainConfig:
    """A `TrainConfig` from a dictionary with the older documents' keys; keys without effect are named in a warning."""
    ignored = [name for name in values if name in WITHOUT_EFFECT]
    if ignored:
        reasons = "; ".join(f"{name} ({WITHOUT_EFFECT[name]})" for name in ignored)
        warnings.warn(f"training options without effect: {reasons}", stacklevel=3)
    kept = {name: value for name, value in values.items() if name not in WITHOUT_EFFECT}
    warmup = kept.pop("beta_warmup_epochs", kept.pop("warmup_epochs", None))
    if warmup is not None:
        epochs = next((kept[name] for name in ("epochs", "num_epochs", "n_epochs", "max_epochs") if name in kept), None)
        if epochs is None:
            raise ValueError("beta_warmup_epochs: expected the run's epochs beside it, found none")
        kept["beta_warmup_fraction"] = min(1.0, warmup / epochs)
    return TrainConfig.from_names(**kept)
