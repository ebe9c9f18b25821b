"""AdamW with orthogonalised steps for chosen matrices (Muon), as one optimizer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aime.nn import multiplies_bfloat16
from aime.sharding import divided, held, rows_of, whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: it takes singular values in (0, 1] to about 1 in five rounds (Jordan et al. 2024, Muon)."""
ROUNDS = 5
MOMENTUM = 0.95
"""Decay of the momentum, in Nesterov's form."""
RMS = 0.2
"""Root mean square of a step's entries over the learning rate: that of AdamW (Liu et al. 2025, Muon is scalable)."""


class OrthogonalAdamW(torch.optim.AdamW):
    """AdamW whose parameter groups marked ``orthogonal=True`` step along the orthogonal factor of their momentum.

    In a gradient of a weight a few directions outweigh all others by far, and Adam's division by each entry's own size
    keeps that; with all singular values made equal, rare directions are learned as fast as common ones. A weight of
    more than two axes (F, C, k, k) counts as the matrix (F, C k k). Of a divided weight (see `aime.sharding`) the
    matrix is gathered for it, one at a time, and every process takes its rows of the factor. Whoever sets ``found_inf``
    has a step skipped on the device, as with fused AdamW.

    Args:
        params: groups as for AdamW; ``orthogonal`` ones hold tensors of at least two axes.
        options: of AdamW.
    """

    found_inf: Tensor

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        hidden: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            if group.get("orthogonal"):
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_orthogonally(parameter, parameter.grad, group["lr"], group["weight_decay"])
                        hidden.append((parameter, parameter.grad))
                        parameter.grad = None  # AdamW passes over what has no gradient
        try:
            result: float | None = super().step(closure)
        finally:
            for parameter, gradient in hidden:
                parameter.grad = gradient
        return result

    def _step_orthogonally(self, parameter: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)  # as AdamW's own states do
            state["momentum_buffer"] = torch.zeros_like(parameter)
        found = getattr(self, "found_inf", None)
        own, own_gradient, own_momentum = held(parameter), held(gradient), held(state["momentum_buffer"])  # (m', n)
        momentum = own_momentum.lerp(own_gradient, 1.0 - MOMENTUM)
        matrix = whole(divided(own_gradient.lerp(momentum, MOMENTUM), parameter)).flatten(1)  # (m, n)
        direction = rows_of(orthogonal_factor(matrix).view(parameter.shape), parameter)
        size = RMS * max(matrix.shape) ** 0.5
        moved = own * (1.0 - rate * decay) - rate * size * direction
        if found is not None:
            moved = torch.where(found > 0, own, moved)
            momentum = torch.where(found > 0, own_momentum, momentum)
        state["step"] += 1.0 if found is None else 1.0 - found
        own.copy_(moved)
        own_momentum.copy_(momentum)


def orthogonal_factor(matrix: Tensor) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T of a matrix (m, n), singular values in [.7, 1.2].

    In bfloat16 where the device multiplies it: the iteration corrects its own rounding.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.mT  # (r, c), r <= c: the smaller product
    x = x / x.norm().clamp_min(1e-12)
    x = x.to(torch.bfloat16 if multiplies_bfloat16(matrix.device) else torch.float32)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.mT  # (r, r)
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrix.dtype)
