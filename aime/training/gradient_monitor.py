"""Which task pulls on which part of the model, and where tasks pull against each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from aime.multi_task_learning.gradient_matrix import GradientMatrix
from aime.training.protocol import SequenceModel

COMPONENTS: dict[str, str] = {
    "encoder.trunk": "trunk",
    "encoder": "posterior",
    "dynamics": "lstm",
    "reward_head": "heads",
    "continue_head": "heads",
    "persistence": "prior",
}
"""Beginnings of parameter names, and the component they belong to; any other is of the name before its first dot."""


class ScalarWriter(Protocol):
    """What TensorBoard's SummaryWriter offers."""

    def add_scalar(self, tag: str, value: float, step: int) -> Any:
        """Take a number."""
        ...


class GradientMonitor:
    """Norms of each task's gradient in each component of a model, and their cosines.

    It reads what the balancer's last backward pass left in its matrix, so that nothing is differentiated twice.

    Args:
        model: a model with a balancer.
        writer: where `log` writes to.
        components: beginnings of parameter names, and what they are called; longer ones win.

    Example:
        >>> monitor = GradientMonitor(model)  # doctest: +SKIP
        >>> model.training_step_sequence(frames, actions)  # doctest: +SKIP
        >>> monitor.measure()["gradients/decoder/norm/elbo"]  # doctest: +SKIP
    """

    def __init__(
        self, model: SequenceModel, writer: ScalarWriter | None = None, components: Mapping[str, str] = COMPONENTS
    ) -> None:
        self.model, self.writer = model, writer
        self._names = {id(parameter): component_of(name, components) for name, parameter in model.named_parameters()}

    def measure(self) -> dict[str, Tensor]:
        """Gradients of the last step, 0-d tensors on the device, nothing synchronised.

        Returns:
            gradients/COMPONENT/norm/TASK, and gradients/COMPONENT/cosine/TASK_TASK for those pairs of tasks that have a
            gradient there; empty before the first step, and where balancing happens at a representation.
        """
        balancer = self.model.rgb_optimizer
        if balancer is None or balancer.matrix is None or balancer.rep_grad:
            return {}
        names = balancer.task_names or tuple(f"task_{index}" for index in range(balancer.matrix.task_num))
        return measure(balancer.matrix, names, self._names)

    def log(self, step: int) -> None:
        """Write `measure` to the writer (synchronises the device); ValueError where there is none."""
        if self.writer is None:
            raise ValueError("writer: expected one with add_scalar, found None")
        for name, value in self.measure().items():
            self.writer.add_scalar(name, float(value), step)


def measure(matrix: GradientMatrix, tasks: tuple[str, ...], component: Mapping[int, str]) -> dict[str, Tensor]:
    """Norms and cosines of the matrix's tasks by component, given by `id` of the parameter."""
    members: dict[str, list[int]] = {}
    for index, parameter in enumerate(matrix.parameters):
        members.setdefault(component.get(id(parameter), "others"), []).append(index)
    found: dict[str, Tensor] = {}
    for name, indices in sorted(members.items()):
        reaching = [any(matrix.reach[index] >> task & 1 for index in indices) for task in range(len(tasks))]
        gram = matrix.gram_of(indices)  # (T, T)
        norms = gram.diagonal().clamp_min(0).sqrt()  # (T,)
        for i, task in enumerate(tasks):
            if not reaching[i]:
                continue
            found[f"gradients/{name}/norm/{task}"] = norms[i]
            for j in range(i):
                if reaching[j]:
                    scale = (norms[i] * norms[j]).clamp_min(torch.finfo(gram.dtype).tiny)
                    found[f"gradients/{name}/cosine/{tasks[j]}_{task}"] = gram[i, j] / scale
    return found


def component_of(name: str, components: Mapping[str, str] = COMPONENTS) -> str:
    """The component that a parameter of this name belongs to."""
    for prefix in sorted(components, key=len, reverse=True):
        if name == prefix or name.startswith(f"{prefix}."):
            return components[prefix]
    return name.partition(".")[0]
