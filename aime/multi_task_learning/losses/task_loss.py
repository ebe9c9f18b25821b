"""What a task's loss is: a name, the arithmetic over the model's outputs, and its place in the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

Outputs = Mapping[str, Any]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms inside the tasks. Between tasks, the balancer decides.

    Attributes:
        beta: weight of every KL divergence; number or 0-d tensor.
        entropy_weight: weight of the cluster entropy, which is subtracted.
        lambda_recon: weight of the reconstruction loss.
        lambda_att_dyn: weight of the attention's centre-motion loss.
        lambda_gram: weight of the encoder Gram loss against the teacher.
        lambda_diversity: weight of the slot diversity loss.
        lambda_context: weight of the context prediction loss.
        lambda_reward: weight of the reward loss.
        lambda_continue: weight of the continue loss.
        lambda_img: weight of the adversarial task.
    """

    beta: float | Tensor = 1.0
    entropy_weight: float | Tensor = 0.1
    lambda_recon: float | Tensor = 1.0
    lambda_att_dyn: float | Tensor = 0.1
    lambda_gram: float | Tensor = 0.05
    lambda_diversity: float | Tensor = 1.0
    lambda_context: float | Tensor = 1.0
    lambda_reward: float | Tensor = 1.0
    lambda_continue: float | Tensor = 1.0
    lambda_img: float | Tensor = 1.0


@dataclass(frozen=True)
class TaskLossValue:
    """A task's loss () and the terms to report, each ()."""

    total: Tensor
    terms: dict[str, Tensor]


class TaskLosses(dict[str, Tensor]):
    """Losses () by task, in the tasks' order; a number for a key gives that one of them, a slice a list."""

    @overload
    def __getitem__(self, key: str | int) -> Tensor: ...

    @overload
    def __getitem__(self, key: slice) -> list[Tensor]: ...

    def __getitem__(self, key: str | int | slice) -> Tensor | list[Tensor]:
        """The loss of that name, or of that place."""
        return super().__getitem__(key) if isinstance(key, str) else list(self.values())[key]


class TaskLoss(ABC):
    """One task of the multi-task objective.

    A new task is one subclass with a `name`, decorated with `register_loss`. Tasks are ordered by registration.
    """

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, outputs: Outputs, weights: LossWeights) -> TaskLossValue:
        """Compute the task's loss from the model's outputs."""

    def applies(self, outputs: Outputs) -> bool:
        """Whether the outputs hold this task at all; a task that does not apply is left out of the step.

        A model that lacks a part names the tasks that it cannot do in the entry ``absent_tasks``.
        """
        return self.name not in outputs.get("absent_tasks", ())


LOSSES: dict[str, TaskLoss] = {}


def register_loss(loss: type[TaskLoss]) -> type[TaskLoss]:
    """Class decorator: make a task part of every `LossAggregator` built afterwards."""
    if loss.name in LOSSES:
        raise ValueError(f"expected a new task name, found {loss.name!r}, which is {type(LOSSES[loss.name]).__name__}")
    LOSSES[loss.name] = loss()
    return loss


def time_mean(outputs: Outputs, key: str) -> Tensor:
    """Mean over time of an entry: a (T,) tensor, a scalar tensor, or a list of scalars. Missing or empty gives 0."""
    value = outputs.get(key)
    if isinstance(value, (list, tuple)):
        value = torch.stack(list(value)) if value else None
    if value is None or value.numel() == 0:
        return torch.zeros((), device=device_of(outputs))
    if value.dim() > 1:
        raise ValueError(
            f"expected {key} to be a scalar or to have one entry per frame (T,), found {tuple(value.shape)}"
        )
    return value.mean()


def device_of(outputs: Outputs) -> torch.device:
    """The outputs' device: the entry `device` if there, otherwise that of the first tensor."""
    if "device" in outputs:
        return torch.device(outputs["device"])
    for value in outputs.values():
        first = value[0] if isinstance(value, (list, tuple)) and value else value
        if isinstance(first, Tensor):
            return first.device
    return torch.device("cpu")
