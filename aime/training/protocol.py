"""What the trainer asks of a model: the world model has it, and so does any model that wants to be trained here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from aime.multi_task_learning import GradientBalancer


class SequenceModel(Protocol):
    """A model trained on windows of frames, actions, rewards and continues."""

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """Moves the parameters; what `configure_optimizer` made."""
        ...

    @property
    def rgb_optimizer(self) -> GradientBalancer | None:
        """Turns the tasks' gradients into one; what `configure_optimizer` made."""
        ...

    @property
    def config(self) -> Any:
        """A configuration with `to_dict`."""
        ...

    @property
    def training_step_sequence(self) -> Callable[..., dict[str, Tensor]]:
        """One optimizer step on (B, T, ...) tensors -> 0-d tensors, among them total_loss, grad_norm and finite."""
        ...

    @property
    def compute_total_loss(self) -> Callable[..., tuple[dict[str, Tensor], Any]]:
        """Losses by name, and the outputs they came from."""
        ...

    def configure_optimizer(self, learning_rate: float, weight_decay: float, balancer: str, **options: Any) -> None:
        """Create `optimizer` and `rgb_optimizer`."""
        ...

    def initialise_from_data(self, frames: Tensor, generator: torch.Generator | None = None) -> None:
        """See uint8 frames (N, C, H, W) of the training split once, before training."""
        ...

    def save_pretrained(self, directory: str | Path) -> None:
        """Export weights and configuration."""
        ...

    # What nn.Module gives.
    training: bool

    def train(self, mode: bool = True) -> Any:
        """Training mode."""
        ...

    def eval(self) -> Any:
        """Evaluation mode."""
        ...

    def to(self, device: torch.device) -> Any:
        """Move to a device."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All parameters and buffers."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """Restore `state_dict`."""
        ...

    @property
    def named_parameters(self) -> Callable[..., Any]:
        """Parameters by name."""
        ...

    @property
    def parameters(self) -> Callable[..., Any]:
        """Parameters."""
        ...


class SecondPlayer(Protocol):
    """Who learns against the model, with an optimizer of its own, over parameters that the model holds.

    The model steps it within `training_step_sequence`; the loop gives it the schedule of the learning rate and keeps
    the optimizer's state in checkpoints, as it does for the model's own.
    """

    optimizer: torch.optim.Optimizer


def second_player_of(model: SequenceModel) -> SecondPlayer | None:
    """The model's `opponent`, if it has one."""
    player: SecondPlayer | None = getattr(model, "opponent", None)
    return player


def optimizers_of(model: SequenceModel) -> tuple[torch.optim.Optimizer, GradientBalancer]:
    """The model's optimizer and balancer; RuntimeError before `configure_optimizer`."""
    if model.optimizer is None or model.rgb_optimizer is None:
        raise RuntimeError("expected a model with an optimizer and a balancer: call configure_optimizer first")
    return model.optimizer, model.rgb_optimizer


def parameter_count(model: nn.Module | SequenceModel) -> int:
    """Number of trained scalars."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
