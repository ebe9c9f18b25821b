"""RGB, rotation-based gradient balancing, in Gram form.

Each task gradient g_i is normalised to gbar_i. A consensus direction d follows the mean of the gbar_i by an exponential
moving average, and each gbar_i is rotated toward d by an angle alpha_i: r_i = cos(alpha_i) gbar_i + sin(alpha_i) w_i,
w_i being the unit residual of d against gbar_i. A few steps of gradient descent on

    J(alpha) = 1/(T(T-1)) sum_{i<j} (1 - r_i . r_j) + lambda/(4T) sum_i ||r_i - gbar_i||^2

trade agreement between tasks against staying close to each task's own gradient; the result is the mean of the r_i.

Everything lies in the span of [gbar_1 .. gbar_T, d], so a step needs the (T + 1, T + 1) Gram matrix, arithmetic on
T + 1 coefficients, and one linear combination. No vector of the parameters' size appears in the inner loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from aime.documented_tables import accepts_documented_names
from aime.multi_task_learning.balancer import GradientBalancer
from aime.multi_task_learning.gradient_matrix import GradientMatrix
from aime.ranges import OptionError, Range, check_arguments

Rescale = Literal["unit", "mean_norm", "sum_norm"]

# Squared residual 1 - p^2 below which the plane of (gbar_i, d) is float32 noise of the Gram matrix (about 1e-7).
DEGENERATE = 1e-6
LARGEST_ANGLE = math.pi / 2 - 1e-6
LARGEST_TASK_NUM = 62  # which tasks reach a parameter is kept as bits of an int64


@accepts_documented_names()
class RGB(GradientBalancer):
    """Rotation-based gradient balancing.

    Args:
        mu: decay of the consensus direction d.
        lambd: weight lambda of staying close to the task's own gradient.
        alpha_steps: descent steps on the angles per solve.
        lr_inner: rate of that descent.
        update_interval: solve on every n-th call; the others return the mean of the normalised gradients.
        eps: norm below which a task's gradient counts as zero; such a task is left out of the step.
        align_threshold: a task with gbar_i . d above this is already aligned and keeps angle 0. An opposed task
            (negative product) always rotates.
        rescale: length of the result. "unit": the mean of the r_i as it is, at most 1. "mean_norm": that mean times the
            mean norm of the task gradients, so that loss weights and clipping keep a meaning. "sum_norm":
            sum_i ||g_i|| r_i, which is the plain sum of gradients when nothing rotates.
        use_adaptive_steps: solve longer when the tasks' losses change unevenly: alpha_min + (alpha_max - alpha_min)
            s / (s + k_std) steps, s being the standard deviation over tasks of the relative loss change.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> losses = {"left": weight[0] ** 2, "right": 100 * weight[1] ** 2}
        >>> step = RGB(rescale="unit").backward(losses, [weight])
        >>> weight.grad  # both tasks count alike although their gradients differ by a factor of 100
        tensor([0.6174, 0.6174])
    """

    def __init__(
        self,
        *,
        mu: Annotated[float, Range(0, below=1)] = 0.9,
        lambd: Annotated[float, Range(0)] = 1.0,
        alpha_steps: Annotated[int, Range(0, 1000)] = 3,
        lr_inner: Annotated[float, Range(0)] = 0.2,
        update_interval: Annotated[int, Range(1)] = 1,
        eps: Annotated[float, Range(above=0)] = 1e-8,
        align_threshold: Annotated[float, Range(-1, 1)] = 0.999,
        rescale: Rescale = "mean_norm",
        use_adaptive_steps: bool = False,
        alpha_min: Annotated[int, Range(0, 1000)] = 1,
        alpha_max: Annotated[int, Range(0, 1000)] = 10,
        k_std: Annotated[float, Range(above=0)] = 1.0,
        task_num: Annotated[int, Range(1, LARGEST_TASK_NUM)] | None = None,
        device: torch.device | str = "cpu",
        rep_grad: bool = False,
        get_share_params: Callable[[], Iterable[Tensor]] | None = None,
        task_name: Sequence[str] | None = None,
    ) -> None:
        check_arguments(RGB.__init__, locals())
        super().__init__(
            task_num=task_num,
            device=device,
            rep_grad=rep_grad,
            get_share_params=get_share_params,
            task_name=task_name,
        )
        if alpha_max < alpha_min:
            raise OptionError(f"alpha_max: expected at least alpha_min ({alpha_min}), found {alpha_max}")
        self.mu = mu
        self.lambd = lambd
        self.alpha_steps = alpha_steps
        self.lr_inner = lr_inner
        self.update_interval = update_interval
        self.eps = eps
        self.align_threshold = align_threshold
        self.rescale: Rescale = rescale
        self.use_adaptive_steps = use_adaptive_steps
        self.alpha_min = alpha_min
        self.alpha_max = alpha_max
        self.k_std = k_std
        self.alpha_state = torch.zeros(0, dtype=torch.float64, device=self.device)  # (T,) angles in radians
        self.prev_losses = torch.zeros(0, dtype=torch.float64, device=self.device)  # (T,)
        self.step_count = torch.zeros((), dtype=torch.int64, device=self.device)
        self._pending: Mapping[str, Any] | None = None  # loaded before the parameters were known

    @property
    def ema_direction(self) -> Tensor | None:
        """The consensus direction d (P,) in parameter order, None before the first call."""
        return None if self.matrix is None else self.matrix.direction()

    def weigh(self, gram: Tensor, losses: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
        """See `GradientBalancer.weigh`; steps 1 to 7 of the method on coefficients of [g_1 .. g_T, d]."""
        task_num = losses.shape[0]
        self._place(task_num, gram.device)
        norms = gram.diagonal()[:task_num].clamp_min(0).sqrt()  # (T,)
        active = norms > self.eps
        count = active.sum().to(gram.dtype)
        inverse = torch.where(active, 1 / norms.clamp_min(self.eps), 0.0)
        units = torch.diag(torch.cat([inverse, inverse.new_ones(1)]))  # rows: gbar_1 .. gbar_T, d in raw coordinates
        direction = self._direction(units, gram, count)
        basis = torch.cat([units[:task_num], direction[None]])  # gbar_1 .. gbar_T and the new d
        inner = basis @ gram @ basis.T  # (T + 1, T + 1)
        helpers, rotates = self._helpers(inner, active, count)
        count_after = torch.where(finite, self.step_count + 1, self.step_count)
        solve = (count_after % self.update_interval == 0) & (count > 1)
        start = torch.where(rotates, self.alpha_state.clamp(0, LARGEST_ANGLE), 0.0)
        angles = torch.where(solve, self._solve(start, helpers, inner, rotates, count, losses), 0.0)
        rotated = angles.cos()[:, None] * torch.eye(task_num, task_num + 1, dtype=gram.dtype, device=gram.device)
        rotated = (rotated + angles.sin()[:, None] * helpers) * active[:, None]  # (T, T + 1) in [gbar .. d]
        share = 1 / count.clamp_min(1)
        if self.rescale == "sum_norm":
            gradient = norms @ rotated
        else:
            length = share * norms.sum() if self.rescale == "mean_norm" else torch.ones_like(share)
            gradient = length * share * rotated.sum(0)
        # in place, where a captured step reads it the next time
        self.alpha_state.copy_(torch.where(finite & solve, angles, self.alpha_state))
        self.prev_losses.copy_(torch.where(finite, losses, self.prev_losses))
        self.step_count.copy_(count_after)
        return gradient @ basis, direction

    def _place(self, task_num: int, device: torch.device) -> None:
        """Bring the state to the gradients' device, and to T tasks when their number changed."""
        if self.alpha_state.shape[0] != task_num:
            self.alpha_state = torch.zeros(task_num, dtype=torch.float64, device=device)
            self.prev_losses = torch.zeros(task_num, dtype=torch.float64, device=device)
        if self.step_count.device != device:
            self.alpha_state = self.alpha_state.to(device)
            self.prev_losses = self.prev_losses.to(device)
            self.step_count = self.step_count.to(device)
            self.device = device

    def _direction(self, units: Tensor, gram: Tensor, count: Tensor) -> Tensor:
        """The new consensus d as (T + 1,) raw coefficients: normalise(mu d + (1 - mu) y), or y where there is no d."""
        task_num = units.shape[0] - 1
        old = units[task_num]
        mean = units[:task_num].sum(0) / count.clamp_min(1)
        mean_norm = (mean @ gram @ mean).clamp_min(0).sqrt()
        known = gram[task_num, task_num] > 0.25  # d is a unit vector once it exists, and zero before
        mean = torch.where(mean_norm > self.eps, mean / mean_norm.clamp_min(self.eps), 0.0)
        mixed = torch.where(known, self.mu * old + (1 - self.mu) * mean, mean)
        norm = (mixed @ gram @ mixed).clamp_min(0).sqrt()
        return torch.where(norm > self.eps, mixed / norm.clamp_min(self.eps), old)

    def _helpers(self, inner: Tensor, active: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """The unit directions w_i toward which tasks rotate, as (T, T + 1) rows in [gbar .. d], and which tasks rotate.

        Where d is parallel to gbar_i the plane of rotation is undefined. An exactly opposed task (gbar_i = -d) then
        takes the residual of the tasks' mean against gbar_i: it leaves the opposition instead of freezing in it.
        """
        task_num = inner.shape[0] - 1
        own = torch.eye(task_num, task_num + 1, dtype=inner.dtype, device=inner.device)
        consensus = torch.zeros(task_num + 1, dtype=inner.dtype, device=inner.device)
        consensus[task_num].fill_(1.0)
        mean = active.to(inner.dtype) / count.clamp_min(1)
        mean = torch.cat([mean, mean.new_zeros(1)])
        p = inner[:task_num, task_num]  # (T,) gbar_i . d
        toward_consensus = consensus - p[:, None] * own
        toward_mean = mean - (inner[:task_num] @ mean)[:, None] * own
        consensus_square = ((toward_consensus @ inner) * toward_consensus).sum(-1)  # (T,) = 1 - p^2
        mean_square = ((toward_mean @ inner) * toward_mean).sum(-1)
        defined = consensus_square > DEGENERATE
        square = torch.where(defined, consensus_square, mean_square)
        residual = torch.where(defined[:, None], toward_consensus, toward_mean)
        exists = inner[task_num, task_num] > 0.25
        rotates = active & exists & (p <= self.align_threshold) & (square > DEGENERATE)
        return residual / square.clamp_min(DEGENERATE).sqrt()[:, None], rotates

    def _solve(
        self, start: Tensor, helpers: Tensor, inner: Tensor, rotates: Tensor, count: Tensor, losses: Tensor
    ) -> Tensor:
        """Gradient descent on J(alpha) from `start`, with the exact derivative."""
        task_num = start.shape[0]
        own = torch.eye(task_num, task_num + 1, dtype=inner.dtype, device=inner.device)
        active = (inner.diagonal()[:task_num] > 0.25).to(inner.dtype)  # gbar_i is a unit vector, or zero
        pairs = (count * (count - 1)).clamp_min(1)
        steps = self._adaptive_steps(losses) if self.use_adaptive_steps else None
        angles = start
        for step in range(self.alpha_max if self.use_adaptive_steps else self.alpha_steps):
            sine, cosine = angles.sin()[:, None], angles.cos()[:, None]
            total = (active[:, None] * (cosine * own + sine * helpers)).sum(0)  # sum_j r_j
            tangent = cosine * helpers - sine * own  # r'_i; r'_i . r_i = 0, so r_i may stay in the sum
            slope = -(tangent @ inner @ total) / pairs + self.lambd * angles.sin() / (2 * count.clamp_min(1))
            moved = (angles - self.lr_inner * slope).clamp(0, LARGEST_ANGLE)
            if steps is not None:
                moved = torch.where(step < steps, moved, angles)
            angles = torch.where(rotates, moved, angles)
        return angles

    def _adaptive_steps(self, losses: Tensor) -> Tensor:
        change = (losses - self.prev_losses).abs() / self.prev_losses.abs().clamp_min(self.eps)
        known = (self.step_count > 0).to(losses.dtype)
        spread = change.std(unbiased=False) * known
        return (self.alpha_min + (self.alpha_max - self.alpha_min) * spread / (spread + self.k_std)).round()

    def state_dict(self) -> dict[str, Any]:
        """Angles, counters, the consensus direction in parameter order, and which task reaches which parameter."""
        if self._pending is not None:
            return dict(self._pending)
        state = {"alpha_state": self.alpha_state, "prev_losses": self.prev_losses, "step_count": self.step_count}
        if self.matrix is not None:
            state["ema_direction"] = self.matrix.direction()
            state["reach"] = torch.tensor(self.matrix.reach)
        return {name: tensor.clone() for name, tensor in state.items()}

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuse a state with other keys, shapes or dtypes, NaN, or a direction of other parameters; ValueError."""
        required, optional = {"alpha_state", "prev_losses", "step_count"}, {"ema_direction", "reach"}
        if not (state.keys() == required or state.keys() == required | optional):
            raise ValueError(f"expected keys {sorted(required)} [ema_direction, reach], found {sorted(state)}")
        alpha = state["alpha_state"]
        tasks = alpha.shape[0] if isinstance(alpha, Tensor) and alpha.dim() == 1 else 0
        if tasks > LARGEST_TASK_NUM or (self.task_num is not None and tasks not in (0, self.task_num)):
            raise ValueError(f"alpha_state: expected angles of {self.task_num or 'fewer'} tasks, found {tasks}")
        shapes: dict[str, tuple[tuple[int, ...] | None, bool]] = {
            "alpha_state": ((tasks,), True),
            "prev_losses": ((tasks,), True),
            "step_count": ((), False),
            "ema_direction": (None, True),
            "reach": (None, False),
        }
        if self.get_share_params is not None:
            shared = list(self._shared_parameters(None))
            shapes["ema_direction"] = ((sum(parameter.numel() for parameter in shared),), True)
            shapes["reach"] = ((len(shared),), False)
        for name, value in state.items():
            _check_state_tensor(name, value, *shapes[name])
        if int(state["step_count"]) < 0:
            raise ValueError(f"step_count: expected at least 0, found {int(state['step_count'])}")
        if "reach" in state and not bool(((state["reach"] >= 0) & (state["reach"] < 1 << tasks)).all()):
            raise ValueError(f"reach: expected sets of {tasks} tasks as bit masks from 0 to {(1 << tasks) - 1}")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`; the direction is placed at the next `backward`, when the parameters are known.

        Errors as in `check_state_dict`.
        """
        self.check_state_dict(state)
        self.alpha_state = state["alpha_state"].to(self.device, torch.float64, copy=True)
        self.prev_losses = state["prev_losses"].to(self.device, torch.float64, copy=True)
        self.step_count = state["step_count"].to(self.device, torch.int64, copy=True)
        self.matrix = None
        self._pending = {name: tensor.clone() for name, tensor in state.items()}

    def _bind(self, matrix: GradientMatrix) -> None:
        if self._pending is not None and "ema_direction" in self._pending:
            matrix.set_direction(self._pending["ema_direction"])
            matrix.set_reach(self._pending["reach"].tolist())
        self._pending = None
        self.matrix = matrix


def _check_state_tensor(name: str, value: Any, shape: tuple[int, ...] | None, floating: bool) -> None:
    """A finite tensor of this shape (None: any vector), of floating point or of int64."""
    kind = "floating point" if floating else "int64"
    wanted = f"a tensor of {kind} of shape {'(P,)' if shape is None else shape}"
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected {wanted}, found {type(value).__name__}")  # noqa: TRY004 - one kind of error
    right = value.is_floating_point() if floating else value.dtype == torch.int64
    if not right or (value.dim() != 1 if shape is None else tuple(value.shape) != shape):
        raise ValueError(f"{name}: expected {wanted}, found {value.dtype} of shape {tuple(value.shape)}")
    if floating and not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name}: expected finite values, found NaN or infinity")
