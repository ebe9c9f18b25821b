"""stick_log_weights, mixture_log_prob, mixture_kl: a stick-breaking mixture prior and the divergence from it."""

from typing import Literal, overload

import torch
from torch import Tensor

from ..dispatch import FLOAT32_AND_HALVES, Obstacle, choose_backend, extension_obstacle, triton_obstacle
from ..shapes import accumulation_dtype, alike, cast, check_floating, check_shape, constant
from .operators import direct_kl, direct_log_prob, direct_sticks, log_joint_op

TRITON_DTYPES = (*FLOAT32_AND_HALVES, torch.float64)
TRITON_WIDTH, TRITON_COMPONENTS, TRITON_SAMPLES = 512, 1024, 1024


def _triton_obstacle(sizes: dict[str, int], *tensors: Tensor) -> str | None:
    limits = {"D": TRITON_WIDTH, "K": TRITON_COMPONENTS, "K-1": TRITON_COMPONENTS - 1, "S": TRITON_SAMPLES}
    beyond = [
        f"{axis} up to {limits[axis]}, found {size}" for axis, size in sizes.items() if size > limits.get(axis, size)
    ]
    reason = triton_obstacle(*tensors, allowed=TRITON_DTYPES)
    return reason or (f"it takes {', '.join(beyond)}" if beyond else None)


def _obstacles(sizes: dict[str, int], *tensors: Tensor) -> dict[str, Obstacle]:
    """Backends of these ops and what is in their way."""
    return {
        "torch": None,
        "triton": lambda: _triton_obstacle(sizes, *tensors),
        "cpp": lambda: extension_obstacle(*tensors),
    }


def _common(dtype: torch.dtype, backend: str, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One dtype for PyTorch's kernels and for float64; Triton and C++ read half types themselves."""
    if backend != "torch" and dtype == torch.float32:
        return tensors
    return tuple([cast(tensor, dtype) for tensor in tensors])


def stick_log_weights(
    log_a: Tensor, log_b: Tensor, u: Tensor, *, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Break Kumaraswamy sticks into mixture weights, in log space.

    v_k ~ Kumaraswamy(a_k, b_k) by inversion, P(V > v) = (1 - v^a)^b = u, and pi_k = v_k prod_{j<k} (1 - v_j); the last
    weight is what remains. Finite and accurate in float32 for log a, log b in [-5, 5] (Wasserman and Mateos, 2024,
    "Stabilizing the Kumaraswamy distribution", for the log-space form).

    Args:
        log_a, log_b: (N, K - 1), K - 1 >= 0.
        u: (N, K - 1) uniform noise in (0, 1), clamped to [2^-26, 1 - 2^-24]; no gradient flows into it.
        backend: None, "torch", "cpp" (CPU, no float64) or "triton" (GPU).

    Returns:
        log_pi (N, K), whose exponentials sum to 1; log_v (N, K - 1); log_q_v (N, K - 1), the log density of v in nats.
        float32 (float64 if an input is). Note that log_pi[:, -1] = sum_k log(1 - v_k), so that
        sum_k log Beta(v_k; 1, alpha) = (K - 1) log alpha + (alpha - 1) log_pi[:, -1].

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, an unknown backend.
        RuntimeError: a backend that cannot run.
    """
    if not (alike(log_a, log_b, u) and log_a.dim() == 2 and log_a.shape == log_b.shape == u.shape):
        check_floating("stick_log_weights", log_a=log_a, log_b=log_b, u=u)
        met: dict[str, int] = {}
        for name, tensor in (("log_a", log_a), ("log_b", log_b), ("u", u)):
            check_shape("stick_log_weights", name, tensor, ("N", "K-1"), met)
    sizes = {"K-1": log_a.shape[1]}
    chosen = choose_backend("stick_log_weights", backend, log_a.device.type, _obstacles(sizes, log_a, log_b, u))
    dtype = accumulation_dtype(log_a, log_b, u)
    log_pi, log_v, log_q_v = direct_sticks(cast(log_a, dtype), cast(log_b, dtype), cast(constant(u), dtype), chosen)
    return log_pi, log_v, log_q_v


def _fits(z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor) -> bool:
    """Whether a mixture is one for samples (S, N, D), of at least one component and channel; names nothing."""
    if log_pi.dim() != 2 or means.shape != log_scales.shape:
        return False
    _, rows, width = z.shape
    count, components = log_pi.shape
    if count != rows or components == 0 or width == 0:
        return False
    return means.shape in {(rows, components, width), (components, width)}


def _check_mixture(op: str, log_pi: Tensor, means: Tensor, log_scales: Tensor, sizes: dict[str, int]) -> None:
    check_shape(op, "log_pi", log_pi, ("N", "K"), sizes)
    if sizes["K"] == 0 or sizes["D"] == 0:
        raise ValueError(f"{op}: expected at least one component and D >= 1, found K={sizes['K']}, D={sizes['D']}")
    component_axes = ("K", "D") if means.dim() == 2 else ("N", "K", "D")
    check_shape(op, "means", means, component_axes, sizes)
    check_shape(op, "log_scales", log_scales, component_axes, sizes)


@overload
def mixture_log_prob(
    z: Tensor,
    log_pi: Tensor,
    means: Tensor,
    log_scales: Tensor,
    *,
    return_responsibilities: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...


@overload
def mixture_log_prob(
    z: Tensor,
    log_pi: Tensor,
    means: Tensor,
    log_scales: Tensor,
    *,
    return_responsibilities: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def mixture_log_prob(
    z: Tensor,
    log_pi: Tensor,
    means: Tensor,
    log_scales: Tensor,
    *,
    return_responsibilities: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """log sum_k pi_k N(z; means_k, diag exp(log_scales_k)^2), in nats.

    Args:
        z: (S, N, D), S samples for each of N rows.
        log_pi: (N, K) log weights; need not be normalised, -inf switches a component off.
        means, log_scales: (N, K, D), or (K, D) shared by all rows; log of standard deviations.
        return_responsibilities: also the posterior of the components, p(k | z); costs another reading of them, and
            float32 numbers of S x N x K.
        backend: None, "torch", "cpp" (CPU, no float64) or "triton" (GPU).

    Returns:
        (S, N), float32 whatever the autocast state (float64 if an input is). NaN in a row stays in that row. With
        `return_responsibilities` a pair, the second (S, N, K), differentiable in all four, rows summing to 1; NaN where
        every component is switched off.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, an unknown backend.
        RuntimeError: a backend that cannot run.
    """
    op = "mixture_log_prob"
    tensors = (z, log_pi, means, log_scales)
    if not (alike(*tensors) and z.dim() == 3 and _fits(z, log_pi, means, log_scales)):
        check_floating(op, z=z, log_pi=log_pi, means=means, log_scales=log_scales)
        met: dict[str, int] = {}
        check_shape(op, "z", z, ("S", "N", "D"), met)
        _check_mixture(op, log_pi, means, log_scales, met)
    sizes = {"S": z.shape[0], "K": log_pi.shape[1], "D": z.shape[2]}
    chosen = choose_backend(op, backend, z.device.type, _obstacles(sizes, *tensors))
    common = _common(accumulation_dtype(*tensors), chosen, tensors)
    log_prob: Tensor = direct_log_prob(*common, chosen)
    return (log_prob, log_joint_op(*common, chosen).softmax(-1)) if return_responsibilities else log_prob


@overload
def mixture_kl(
    mean_q: Tensor,
    log_scale_q: Tensor,
    log_pi: Tensor,
    means: Tensor,
    log_scales: Tensor,
    eps: Tensor,
    *,
    return_responsibilities: Literal[False] = False,
    backend: str | None = None,
) -> Tensor: ...


@overload
def mixture_kl(
    mean_q: Tensor,
    log_scale_q: Tensor,
    log_pi: Tensor,
    means: Tensor,
    log_scales: Tensor,
    eps: Tensor,
    *,
    return_responsibilities: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def mixture_kl(
    mean_q: Tensor,
    log_scale_q: Tensor,
    log_pi: Tensor,
    means: Tensor,
    log_scales: Tensor,
    eps: Tensor,
    *,
    return_responsibilities: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Monte-Carlo KL(N(mean_q, diag scale_q^2) || mixture).

    The entropy of q is exact, the cross entropy a mean over z = mean_q + scale_q eps.

    Args:
        mean_q, log_scale_q: (N, D) of the posterior; log of standard deviations.
        log_pi, means, log_scales: the mixture, as in `mixture_log_prob`.
        eps: (S, N, D) standard normal noise, S >= 1; no gradient flows into it.
        return_responsibilities: also the posterior of the components at every sample, as in `mixture_log_prob`.
        backend: None, "torch", "cpp" (CPU, no float64) or "triton" (GPU).

    Returns:
        (N,) nats, float32 whatever the autocast state (float64 if an input is); unbiased, so single values may be
        negative. With `return_responsibilities` a pair, the second (S, N, K) at z = mean_q + scale_q eps; its mean over
        S estimates E_q[p(k | z)].

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, S = 0, an unknown backend.
        RuntimeError: a backend that cannot run.
    """
    op = "mixture_kl"
    usual = alike(mean_q, log_scale_q, log_pi, means, log_scales, eps) and eps.dim() == 3 and len(eps) > 0
    usual = usual and mean_q.shape == log_scale_q.shape == eps.shape[1:]
    if not (usual and _fits(eps, log_pi, means, log_scales)):
        check_floating(
            op, mean_q=mean_q, log_scale_q=log_scale_q, log_pi=log_pi, means=means, log_scales=log_scales, eps=eps
        )
        met: dict[str, int] = {}
        check_shape(op, "mean_q", mean_q, ("N", "D"), met)
        check_shape(op, "log_scale_q", log_scale_q, ("N", "D"), met)
        check_shape(op, "eps", eps, ("S", "N", "D"), met)
        if met["S"] == 0:
            raise ValueError(f"{op}: eps: expected at least one sample, found S=0")
        _check_mixture(op, log_pi, means, log_scales, met)
    sizes = {"S": eps.shape[0], "K": log_pi.shape[1], "D": eps.shape[2]}
    tensors = (mean_q, log_scale_q, log_pi, means, log_scales, constant(eps))
    chosen = choose_backend(op, backend, mean_q.device.type, _obstacles(sizes, *tensors))
    dtype = accumulation_dtype(*tensors)
    kl: Tensor = direct_kl(*_common(dtype, chosen, tensors), chosen)[0]
    if not return_responsibilities:
        return kl
    z = torch.addcmul(mean_q.to(dtype), log_scale_q.to(dtype).exp(), eps.detach().to(dtype))  # (S, N, D)
    mixture = _common(dtype, chosen, (log_pi, means, log_scales))
    return kl, log_joint_op(z, *mixture, chosen).softmax(-1)
