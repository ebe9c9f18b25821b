"""Balancers of torchjd by name, on the Gram matrix of the task gradients: no (T, P) matrix is copied.

torchjd (Quinton and Rey 2024, arXiv:2406.16232) has each of these methods as a map from a Jacobian (T, P) to one
gradient, and most of them also from its Gram matrix (T, T) to weights of its rows, which is what is used here. Methods
that solve on the host wait for the device once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from aime.multi_task_learning.balancer import GradientBalancer
from aime.ranges import OptionError, Range, check_arguments

EXTRA = "pip install 'aime[torchjd]'"


class TorchJDBalancer(GradientBalancer):
    """What the methods share: torchjd's own object, asked for weights once a step; no state but torch's random one.

    Options of every method are those of `GradientBalancer`; a method's own stand in its constructor.

    Raises:
        OptionError: torchjd is not installed; the message names the extra.
    """

    method: ClassVar[str]
    """Name of the class in `torchjd.aggregation`."""

    def __init__(
        self,
        *,
        task_num: Annotated[int, Range(1, 62)] | None = None,
        device: torch.device | str = "cpu",
        rep_grad: bool = False,
        get_share_params: Callable[[], Iterable[Tensor]] | None = None,
        task_name: Sequence[str] | None = None,
        **method_options: Any,
    ) -> None:
        super().__init__(
            task_num=task_num,
            device=device,
            rep_grad=rep_grad,
            get_share_params=get_share_params,
            task_name=task_name,
        )
        self._solve: Callable[[Tensor], Tensor] = self._make(**method_options)

    def _make(self, **options: Any) -> Callable[[Tensor], Tensor]:
        try:
            from torchjd import aggregation

            made: Callable[[Tensor], Tensor] = getattr(aggregation, self.method)(**options)
        except ImportError as error:
            raise _absent(self, error) from error
        return made

    def task_weights(self, gram: Tensor) -> Tensor:
        """Weights (T,) of the task gradients from their inner products (T, T), float64."""
        return self._solve(gram)

    def weigh(self, gram: Tensor, losses: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """See `GradientBalancer.weigh`."""
        weights = self.task_weights(gram[:-1, :-1]).to(gram)  # (T,)
        return torch.cat([weights, weights.new_zeros(1)]), gram.new_zeros(gram.shape[0])


def _absent(balancer: TorchJDBalancer, error: ImportError) -> OptionError:
    return OptionError(f"balancer {type(balancer).__name__}: expected torchjd, found it missing ({error}): {EXTRA}")


class UPGrad(TorchJDBalancer):
    """Mean of the task gradients, each projected onto the cone of directions that worsen no task (2406.16232).

    Args:
        reg_eps: added to the diagonal of the Gram matrix, whose trace is scaled to 1: a task whose gradient is shorter
            than about the root of this, relative to all of them, is not protected. torchjd's default.
        options: those of `GradientBalancer`.
    """

    method = "UPGradWeighting"

    def __init__(self, *, reg_eps: Annotated[float, Range(0, 1)] = 1e-4, **options: Any) -> None:
        check_arguments(UPGrad.__init__, locals())
        super().__init__(reg_eps=reg_eps, **options)

    def _make(self, **options: Any) -> Callable[[Tensor], Tensor]:
        try:
            from torchjd.linalg import QuadprogProjector

            return super()._make(projector=QuadprogProjector(reg_eps=options["reg_eps"]))
        except ImportError as error:
            raise _absent(self, error) from error


class MGDA(TorchJDBalancer):
    """The shortest convex combination of the task gradients (Désidéri 2012; Frank-Wolfe of Sener and Koltun 2018).

    Args:
        epsilon: step length below which the solver stops.
        max_iters: of the solver.
        options: those of `GradientBalancer`.
    """

    method = "MGDAWeighting"

    def __init__(
        self,
        *,
        epsilon: Annotated[float, Range(above=0, to=1)] = 1e-3,
        max_iters: Annotated[int, Range(1, 10**6)] = 100,
        **options: Any,
    ) -> None:
        check_arguments(MGDA.__init__, locals())
        super().__init__(epsilon=epsilon, max_iters=max_iters, **options)


class PCGrad(TorchJDBalancer):
    """Each gradient loses its component against every other that opposes it, in random order (Yu et al. 2020)."""

    method = "PCGradWeighting"


class AlignedMTL(TorchJDBalancer):
    """Task gradients made orthogonal and of one length by the Gram matrix's root (Senushkin et al. 2023).

    Args:
        scale_mode: which eigenvalue gives the length.
        options: those of `GradientBalancer`.
    """

    method = "AlignedMTLWeighting"

    def __init__(self, *, scale_mode: Literal["min", "median", "rmse"] = "min", **options: Any) -> None:
        check_arguments(AlignedMTL.__init__, locals())
        super().__init__(scale_mode=scale_mode, **options)


class IMTLG(TorchJDBalancer):
    """The combination whose projections on all unit task gradients are equal (Liu et al. 2021)."""

    method = "IMTLGWeighting"


class ConFIG(TorchJDBalancer):
    """The direction at equal angles to all task gradients, as long as their projections together (Liu et al. 2025).

    torchjd has it for Jacobians alone. It commutes with isometries, so that it is given a square root (T, T) of the
    Gram matrix in the Jacobian's place, and the weights are read back from what it answers.
    """

    method = "ConFIG"

    def task_weights(self, gram: Tensor) -> Tensor:
        """See `TorchJDBalancer.task_weights`."""
        eigenvalues, vectors = torch.linalg.eigh(gram)
        known = eigenvalues > eigenvalues[-1] * len(gram) * torch.finfo(gram.dtype).eps
        root = torch.where(known, eigenvalues.clamp_min(0), 0.0).sqrt()  # (T,)
        answer = self._solve(vectors * root)  # (T,) = root V^T weights
        inverse = torch.where(known, 1 / root.clamp_min(torch.finfo(gram.dtype).tiny), 0.0)
        weights: Tensor = vectors @ (inverse * answer)  # (T,)
        return weights


TORCHJD_BALANCERS: dict[str, type[TorchJDBalancer]] = {
    "upgrad": UPGrad,
    "mgda": MGDA,
    "pcgrad": PCGrad,
    "aligned_mtl": AlignedMTL,
    "imtl_g": IMTLG,
    "config": ConFIG,
}
"""By the names that `make_balancer` and `--train.balancer` take."""
