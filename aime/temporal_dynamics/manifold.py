"""Recurrent blocks on the Stiefel manifold, through geoopt. Import this module only where geoopt is wanted.

An LSTM keeps the four recurrent blocks of a layer stacked in one (4 Hd, Hd) matrix. geoopt would read it as one tall
matrix with orthonormal columns; `GateStiefel` shows it the four square blocks instead, each of them orthogonal.
"""

from collections.abc import Callable, Iterable
from typing import Any

import geoopt
import torch
from geoopt.manifolds.base import Manifold
from torch import Tensor

GATES = 4
STABILIZE_EVERY = 10  # steps between exact projections: rounding drifts by about 1e-7 a step


class GateStiefel(Manifold):  # type: ignore[misc]  # geoopt has no annotations
    """Points (4 Hd, Hd) made of four orthogonal (Hd, Hd) blocks, canonical metric on each block."""

    name = "GateStiefel"
    ndim = 2
    reversible = True

    def __init__(self) -> None:
        super().__init__()
        self.block = geoopt.CanonicalStiefel()

    @staticmethod
    def _split(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-2], GATES, x.shape[-1], x.shape[-1])

    @staticmethod
    def _join(x: Tensor) -> Tensor:
        return x.flatten(-3, -2)

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if len(shape) < 2 or shape[-2] != GATES * shape[-1]:
            return False, f"{name}: expected (..., {GATES} * Hd, Hd), found {tuple(shape)}"
        return True, None

    def _check_point_on_manifold(self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5) -> Any:
        return self.block._check_point_on_manifold(self._split(x), atol=atol, rtol=rtol)

    def _check_vector_on_tangent(self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5) -> Any:
        return self.block._check_vector_on_tangent(self._split(x), self._split(u), atol=atol, rtol=rtol)

    def projx(self, x: Tensor) -> Tensor:
        """Nearest point on the manifold."""
        return self._join(self.block.projx(self._split(x)))

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """Tangent part of u at x."""
        return self._join(self.block.proju(self._split(x), self._split(u)))

    egrad2rgrad = proju

    def inner(self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False) -> Tensor:
        """Inner product of tangents u and v (u when None), summed over the gates."""
        blocks = self.block.inner(self._split(x), self._split(u), None if v is None else self._split(v), keepdim=True)
        total: Tensor = blocks.sum(-3)  # (..., 1, 1)
        return total if keepdim else total.squeeze(-1).squeeze(-1)

    def component_inner(self, x: Tensor, u: Tensor, v: Tensor | None = None) -> Tensor:
        """Inner product gate by gate, repeated over the entries of each."""
        # One squared length a gate: adaptive steps are scaled gate by gate, never inside a block.
        blocks = self.block.inner(self._split(x), self._split(u), None if v is None else self._split(v), keepdim=True)
        return self._join(blocks.expand_as(self._split(x)))

    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """Walk from x along u, by the Cayley transform."""
        return self._join(self.block.retr(self._split(x), self._split(u)))

    expmap = retr

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002 (geoopt's signature)
        """Tangent v at x, carried to y."""
        return self.proju(y, v)

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`retr(x, u)`, and v carried there."""
        point, vector = self.block.retr_transp(self._split(x), self._split(u), self._split(v))
        return self._join(point), self._join(vector)


def gate_orthogonal_parameter(weight: Tensor) -> torch.nn.Parameter:
    """A geoopt parameter that starts at `weight` (4 Hd, Hd) and that `riemannian_adam` keeps orthogonal by gate."""
    parameter: torch.nn.Parameter = geoopt.ManifoldParameter(weight.detach().clone(), manifold=GateStiefel())
    return parameter


class DecoupledRiemannianAdam(geoopt.optim.RiemannianAdam):  # type: ignore[misc]  # geoopt has no annotations
    """RiemannianAdam whose weight decay is AdamW's: a factor on ordinary parameters, none on those of a manifold.

    geoopt adds `weight_decay * point` to the gradient instead: an L2 penalty, which the second moment rescales, and
    which on an orthogonal block has no tangent part to act with.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        decays = [group["weight_decay"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                factor, group["weight_decay"] = 1 - group["lr"] * group["weight_decay"], 0.0
                for parameter in group["params"]:
                    if parameter.grad is not None and not isinstance(parameter, geoopt.ManifoldParameter):
                        parameter.mul_(factor)
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        return loss


def riemannian_adam(
    parameters: Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]], lr: float, **options: Any
) -> torch.optim.Optimizer:
    """RiemannianAdam (Becigneul and Ganea 2019) that re-projects onto the manifold every few steps.

    Ordinary parameters in the same groups get plain Adam with AdamW's decoupled weight decay (Loshchilov and Hutter
    2019), manifold parameters no decay at all, whatever their group says: it would pull off the manifold. `options` go
    to `geoopt.optim.RiemannianAdam`.
    """
    options = {"stabilize": STABILIZE_EVERY} | options
    optimizer: torch.optim.Optimizer = DecoupledRiemannianAdam(parameters, lr=lr, **options)
    return optimizer
