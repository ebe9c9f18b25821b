"""What every gradient balancer shares: the interface, the per-task backward passes, and what a step reports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aime.multi_task_learning.gradient_matrix import GradientMatrix
from aime.ranks import Ranks
from aime.sharding import sum_and_divide

Losses = Mapping[str, Tensor] | Sequence[Tensor]


@dataclass(frozen=True)
class BalancedStep:
    """What one balanced backward pass found; every tensor is on the device and float64, nothing was synchronised.

    Attributes:
        task_names: names of the T tasks, in the order of the rows below.
        gram: (T, T) inner products of the raw task gradients.
        weights: (T + 1,) coefficients of [g_1 .. g_T, d] in the gradient that was written (before clipping).
        grad_norm: () norm of the gradient before clipping.
        clip_coefficient: () factor that clipping applied, 1 without clipping.
        finite: () bool, whether every task gradient is finite. If False the written gradient must not be used.
    """

    task_names: tuple[str, ...]
    gram: Tensor
    weights: Tensor
    grad_norm: Tensor
    clip_coefficient: Tensor
    finite: Tensor

    @property
    def task_norms(self) -> Tensor:
        """(T,) norms of the task gradients."""
        return self.gram.diagonal().clamp_min(0).sqrt()

    @property
    def cosines(self) -> Tensor:
        """(T, T) cosines between task gradients; 0 where a gradient is zero."""
        norms = self.task_norms
        scale = norms[:, None] * norms[None, :]
        return torch.where(scale > 0, self.gram / scale.clamp_min(torch.finfo(scale.dtype).tiny), 0.0)


class GradientBalancer(ABC):
    """Turns T losses into one gradient per shared parameter. LibMTL's attribute names are kept.

    Attributes:
        task_num: number of tasks T; None takes the number of losses of the first call.
        task_name: names of the tasks when losses come as a sequence.
        device: device of the balancer's state.
        rep_grad: whether balancing happens at a shared representation (see `backward`) instead of at the parameters.
        get_share_params: callable giving the shared parameters, used when `backward` is not handed any.
    """

    def __init__(
        self,
        *,
        task_num: int | None = None,
        device: torch.device | str = "cpu",
        rep_grad: bool = False,
        get_share_params: Callable[[], Iterable[Tensor]] | None = None,
        task_name: Sequence[str] | None = None,
    ) -> None:
        self.task_num = task_num
        self.device = torch.device(device)
        self.rep_grad = rep_grad
        self.get_share_params = get_share_params
        self.task_name = tuple(task_name) if task_name is not None else None
        self.matrix: GradientMatrix | None = None
        self.task_names: tuple[str, ...] = ()  # of the last call, in the order of the matrix's rows

    @abstractmethod
    def weigh(self, gram: Tensor, losses: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the combination from inner products alone, and advance the method's own state where `finite`.

        Args:
            gram: (T + 1, T + 1) float64 inner products of [g_1 .. g_T, d], d being the kept direction (0 at first).
            losses: (T,) float64 values of the losses.
            finite: () bool; when False no state may change.

        Returns:
            (T + 1,) coefficients of those rows in the gradient, and (T + 1,) in the next kept direction.
        """

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed run needs: tensors and plain numbers only."""
        return {}

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that `load_state_dict` could not restore; ValueError, and nothing is changed."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, found keys {sorted(state)}")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`; errors as in `check_state_dict`."""
        self.check_state_dict(state)

    def backward(
        self,
        losses: Losses,
        parameters: Iterable[Tensor] | None = None,
        *,
        representation: tuple[Tensor, Tensor] | None = None,
        max_norm: float | None = None,
        loss_scale: float | Tensor = 1.0,
        ranks: Ranks | None = None,
        shards: Sequence[Tensor] | None = None,
    ) -> BalancedStep:
        """Write the balanced gradient to `.grad` of every parameter that some task reaches.

        One `torch.autograd.grad` per task over the parameters: what a task does not reach costs nothing, and gradients
        of anything else (a critic, a teacher) are never touched. The graph is freed; put the largest task first.

        Args:
            losses: T scalar losses, by name or in order. A loss without a graph counts as a task of zero gradient.
            parameters: shared parameters; None calls `get_share_params`.
            representation: (source, leaf) when `rep_grad` is True: `source` is the encoder's output, `leaf` its
                detached copy that requires grad and from which the losses were computed. Balancing then happens on the
                gradients at `leaf`, one backward pass goes from `source` into the encoder, and parameters behind `leaf`
                (the tasks' heads) get the plain sum of their gradients.
            max_norm: clip the balanced gradient to this norm. Free here: the norm follows from the Gram matrix, so
                that clipping is a factor of the combination rather than two more passes over the parameters.
            loss_scale: factor already multiplied into the losses (fp16 loss scaling); gradients are divided by it.
            ranks: the processes of a distributed step, each with the means of its own part of the batch as losses. What
                is balanced are the tasks' gradients of the whole batch: they are summed over the ranks before anything
                is computed from them (the T x P matrix, or for a representation the T x T Gram matrix), so that every
                rank finds the same weights, and `.grad`, as one process would. Summing gradients that were balanced on
                each rank by itself, as DDP would, is another method: measured 48 % off.
            shards: what the ranks hold of the parameters, in the same order, where these are gathered ones of a divided
                model (see `aime.sharding`). Each rank then keeps its rows of the summed gradients alone, the T x T Gram
                matrix is summed over the ranks, and `.grad` is written to the shards.

        Raises:
            ValueError: wrong number of losses, a loss that is not a scalar, no parameters, or `representation` that
                does not agree with `rep_grad`, or comes with `shards`.
        """
        names, values = self._named(losses)
        shared = list(self._shared_parameters(parameters))
        if (representation is not None) != self.rep_grad:
            raise ValueError(
                f"expected `representation` exactly when rep_grad is True, found rep_grad={self.rep_grad} and "
                f"representation {'given' if representation is not None else 'missing'}"
            )
        if shards is not None and (ranks is None or representation is not None):
            raise ValueError("shards: expected ranks, and no balancing at a representation, beside them")
        if representation is not None:
            return self._backward_representation(names, values, shared, representation, max_norm, loss_scale, ranks)
        kept = shared if shards is None else list(shards)
        if self.matrix is None or not self.matrix.matches(kept, len(values)):
            self._bind(GradientMatrix(kept, len(values), ranks))
        assert self.matrix is not None
        # The first task, which is the largest, comes last: its backward pass frees the graph as it goes. Measured on
        # the laptop preset: peak memory 1,873 MiB, against 2,529 MiB in order.
        for task in reversed(range(len(values))):
            gradients = _gradients(values[task], shared, retain_graph=task > 0, ranks=ranks)
            if shards is not None and ranks is not None and gradients is not None:
                self.matrix.write(task, sum_and_divide(gradients, kept, ranks))
                continue
            self.matrix.write(task, gradients)
            if ranks is not None and shards is None:
                self.matrix.start_sum(task, ranks)
        return self._combine(self.matrix, names, values, max_norm, loss_scale, ranks)

    def _bind(self, matrix: GradientMatrix) -> None:
        """Adopt a matrix for a new list of parameters; methods with state override this to carry it over."""
        self.matrix = matrix

    def _combine(
        self,
        matrix: GradientMatrix,
        names: tuple[str, ...],
        losses: list[Tensor],
        max_norm: float | None,
        loss_scale: float | Tensor,
        ranks: Ranks | None,
    ) -> BalancedStep:
        task_num, self.task_names = len(names), names
        gram = matrix.gram()  # (T + 1, T + 1)
        if ranks is not None and self.rep_grad:
            # The representation's rows are those of each rank's samples: inner products add up over the ranks.
            ranks.sum_(gram)
        scale = torch.ones(task_num + 1, dtype=gram.dtype, device=gram.device)
        scale[:task_num] /= loss_scale
        gram = gram * scale[:, None] * scale[None, :]
        values = torch.stack([loss.detach().to(gram.device, torch.float64) for loss in losses]) / loss_scale
        values = values if ranks is None else ranks.mean(values)
        finite = torch.isfinite(gram).all() & torch.isfinite(values).all()
        gram = torch.where(finite, gram, torch.zeros_like(gram))
        with torch.no_grad():
            gradient, direction = self.weigh(gram, values, finite)
            if ranks is not None:  # methods draw at random, or solve to the last digit of a processor
                both = torch.stack([gradient, direction])  # (2, T + 1)
                ranks.copy_from_leader([both])
                gradient, direction = both.unbind()
            grad_norm = (gradient @ gram @ gradient).clamp_min(0).sqrt()
            clip = torch.ones_like(grad_norm)
            if max_norm is not None:
                clip = (max_norm / (grad_norm + 1e-6)).clamp_max(1.0)  # as torch.nn.utils.clip_grad_norm_
            matrix.combine(gradient * clip * scale, direction * scale, finite)
        tasks = gram[:task_num, :task_num]
        return BalancedStep(names, tasks, gradient, grad_norm, clip, finite)

    def _backward_representation(
        self,
        names: tuple[str, ...],
        losses: list[Tensor],
        shared: list[Tensor],
        representation: tuple[Tensor, Tensor],
        max_norm: float | None,
        loss_scale: float | Tensor,
        ranks: Ranks | None,
    ) -> BalancedStep:
        source, leaf = representation
        if leaf.grad_fn is not None or not leaf.requires_grad or leaf.shape != source.shape:
            raise ValueError(
                "expected a leaf that requires grad with the shape of the representation "
                f"{tuple(source.shape)}, found shape {tuple(leaf.shape)}, requires_grad={leaf.requires_grad}, "
                f"is_leaf={leaf.is_leaf}"
            )
        # A representation's rows belong to the samples of this batch, so no direction is carried to the next one.
        matrix = GradientMatrix([leaf], len(losses))
        heads: list[Tensor | None] = [None] * len(shared)
        for task, loss in enumerate(losses):
            gradients = _gradients(loss, [leaf, *shared], retain_graph=True, ranks=ranks)
            if gradients is None:
                matrix.write(task, None)
                continue
            matrix.write(task, gradients[:1])
            heads = [_add(total, grad) for total, grad in zip(heads, gradients[1:], strict=True)]
        step = self._combine(matrix, names, losses, max_norm, loss_scale, ranks)
        encoder = torch.autograd.grad(source, shared, grad_outputs=leaf.grad, allow_unused=True)
        for parameter, head, grad in zip(shared, heads, encoder, strict=True):
            parameter.grad = _add(grad, None if head is None else head / loss_scale)
        if ranks is not None:
            sum_gradients(shared, ranks)
        return step

    def _named(self, losses: Losses) -> tuple[tuple[str, ...], list[Tensor]]:
        if isinstance(losses, Mapping):
            names, values = tuple(losses.keys()), list(losses.values())
        else:
            values = list(losses)
            names = self.task_name or tuple(f"task_{index}" for index in range(len(values)))
        if self.task_num is None:
            self.task_num = len(values)
        if len(values) != self.task_num or len(names) != len(values) or not values:
            raise ValueError(f"expected {self.task_num} losses (task_num), found {len(values)}: {', '.join(names)}")
        for name, value in zip(names, values, strict=True):
            if value.dim() != 0:
                raise ValueError(f"expected scalar losses, found {name} of shape {tuple(value.shape)}")
        return names, values

    def _shared_parameters(self, parameters: Iterable[Tensor] | None) -> Iterable[Tensor]:
        if parameters is not None:
            return (parameter for parameter in parameters if parameter.requires_grad)
        if self.get_share_params is None:
            raise ValueError("expected parameters, or get_share_params to be set, found neither")
        return (parameter for parameter in self.get_share_params() if parameter.requires_grad)


def sum_gradients(parameters: Iterable[Tensor], ranks: Ranks) -> None:
    """Replace `.grad` of parameters by its sum over the ranks, through one flat buffer for each dtype."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = ranks.sum_(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, piece in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view(gradient.shape))


def _gradients(
    loss: Tensor, inputs: list[Tensor], *, retain_graph: bool, ranks: Ranks | None
) -> tuple[Tensor | None, ...] | None:
    """Gradients of this rank's share of the mean over all ranks."""
    if not loss.requires_grad:
        return None
    share = None if ranks is None else torch.full_like(loss, 1 / ranks.size)
    return torch.autograd.grad(loss, inputs, share, retain_graph=retain_graph, allow_unused=True)


def _add(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right
