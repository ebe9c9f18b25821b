"""The training dictionary of the original AIME's documents as a `TrainConfig`."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from aime.training.config import ALIASES, TrainConfig
from aime.world_model.config import ALIASES as MODEL_ALIASES

EPOCHS = 400
"""Length of a run whose dictionary names none; `train(n_epochs)` says otherwise."""

WITHOUT_EFFECT = {
    "num_workers": "one background thread keeps up; see prefetch",
    "pin_memory": "batches are pinned on CUDA machines",
    "use_wandb": "metrics go to metrics.jsonl and TensorBoard",
    "wandb_project": "metrics go to metrics.jsonl and TensorBoard",
    "visualize_every": "call visualize_results, or read the report of aime evaluate",
    "frame_stack": "the model sees every frame of a sequence",
    "img_height": "frames are used at their stored size",
    "img_width": "frames are used at their stored size",
    "beta_eval": "validation uses beta_max",
    "lambda_gan": "the weight of the adversarial task is lambda_img",
}
"""Keys of the documented dictionaries that mean nothing here, and why; those of `TrainConfig` are not looked up."""


def config_from(values: Mapping[str, Any], model: Any) -> tuple[TrainConfig, float | None]:
    """A `TrainConfig` from a dictionary with the documents' keys, and the epochs of beta's warm-up where it names them.

    Keys that mean nothing, and the model's own that say otherwise than the model, are named in a warning.

    Args:
        values: the dictionary.
        model: what its constructor was told of training counts where the dictionary is silent.

    Raises:
        TypeError: an unknown key; near ones are listed.
    """
    known = {entry.name for entry in dataclasses.fields(TrainConfig)}
    given = {ALIASES.get(name, name) for name in values}
    told = {name: value for name, value in getattr(model, "training_options", {}).items() if name not in given}
    values = {**told, **values}
    if not values.get("use_wandb", True):  # the documents name a project all the same
        values.pop("wandb_project", None)
    elif "wandb_project" in known:
        values.pop("use_wandb", None)
    if "beta" in values and "beta_max" in values:  # the documents keep the annealed value of the moment in it
        values.pop("beta")
    warmup = values.pop("beta_warmup_epochs", values.pop("warmup_epochs", None))
    ignored, kept = [], {}
    for name, value in values.items():
        if name in known or name in ALIASES:
            kept[name] = value
        elif hasattr(model.config, field := MODEL_ALIASES.get(name, name)):
            own = getattr(model.config, field)
            if own != value:
                ignored.append(f"{name} (the model was made with {field}={own})")
        elif name in WITHOUT_EFFECT:
            ignored.append(f"{name} ({WITHOUT_EFFECT[name]})")
        else:
            kept[name] = value  # which TrainConfig refuses, with the near names
    if ignored:
        warnings.warn(f"training options without effect: {'; '.join(ignored)}", stacklevel=3)
    if not {ALIASES.get(name, name) for name in kept} & {"epochs", "steps", "seconds"}:
        kept["epochs"] = EPOCHS
    config = TrainConfig.from_names(**kept)
    if warmup is not None and config.epochs is not None:
        config = for_epochs(config, config.epochs, warmup)
    return config, warmup


def for_epochs(config: TrainConfig, epochs: float, warmup_epochs: float | None) -> TrainConfig:
    """The configuration for a run of so many epochs, in which beta rises during the first `warmup_epochs`."""
    values = {**config.to_dict(), "epochs": float(epochs), "steps": None, "seconds": None}
    if warmup_epochs is not None:
        values["beta_warmup_fraction"] = min(1.0, warmup_epochs / epochs)
    return TrainConfig(**values)
