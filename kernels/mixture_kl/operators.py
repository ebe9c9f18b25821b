"""stick_log_weights, mixture_log_prob and mixture_kl as torch.library operators with their gradients."""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from ..autograd import attach_gradient, direct, fake, operator
from ..shapes import cast
from . import eager


@functools.cache
def _backend(name: str) -> Any:
    return importlib.import_module(f"aime.kernels.mixture_kl.{'eager' if name == 'torch' else name}")


def _empty(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in tensors)


@operator("stick_log_weights")
def sticks_op(log_a: Tensor, log_b: Tensor, u: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """log_pi (N, K), log_v and log_q_v (N, K - 1); the three inputs (N, K - 1) have one dtype."""
    return _backend(backend).stick_log_weights(log_a, log_b, u)  # type: ignore[no-any-return]


@fake(sticks_op)
def _(log_a: Tensor, log_b: Tensor, u: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return log_a.new_empty(log_a.shape[0], log_a.shape[1] + 1), *_empty(log_a, log_a)  # type: ignore[return-value]


@operator("stick_log_weights_backward")
def sticks_backward_op(
    log_a: Tensor, log_b: Tensor, u: Tensor, g_pi: Tensor, g_v: Tensor, g_q: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """Gradients of log_a and log_b from those of the three results."""
    return _backend(backend).stick_log_weights_backward(log_a, log_b, u, g_pi, g_v, g_q)  # type: ignore[no-any-return]


@fake(sticks_backward_op)
def _(
    log_a: Tensor, log_b: Tensor, u: Tensor, g_pi: Tensor, g_v: Tensor, g_q: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return _empty(log_a, log_b)  # type: ignore[return-value]


def _sticks_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _sticks_backward(ctx: Any, g_pi: Tensor, g_v: Tensor, g_q: Tensor) -> tuple[Any, ...]:
    return *direct_sticks_backward(*ctx.saved_tensors, g_pi, g_v, g_q, ctx.backend), None, None


StickLogWeightsFunction = attach_gradient(sticks_op, _sticks_context, _sticks_backward)


@operator("mixture_log_prob")
def log_prob_op(z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor, backend: str) -> Tensor:
    """(S, N) log-density of z (S, N, D)."""
    if backend != "torch":
        return _backend(backend).mixture_log_prob(z, log_pi, means, log_scales)[0]  # type: ignore[no-any-return]
    return eager.mixture_log_prob(z, log_pi, means, log_scales)


@fake(log_prob_op)
def _(z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor, backend: str) -> Tensor:
    return z.new_empty(z.shape[:2], dtype=torch.promote_types(z.dtype, torch.float32))


@operator("mixture_log_prob_backward")
def log_prob_backward_op(
    gradient: Tensor, result: Tensor, z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of z, log_pi, means and log_scales, in the dtype of `result`."""
    function = _backend(backend).mixture_log_prob_backward
    return function(gradient, result, z, log_pi, means, log_scales)  # type: ignore[no-any-return]


@fake(log_prob_backward_op)
def _(
    gradient: Tensor, result: Tensor, z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors = (torch.empty(t.shape, dtype=result.dtype, device=t.device) for t in (z, log_pi, means, log_scales))
    return tuple(tensors)  # type: ignore[return-value]


def _log_prob_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(output, *tensors)


def _log_prob_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    result, *tensors = ctx.saved_tensors
    gradients = direct_log_prob_backward(gradient, result, *tensors, ctx.backend)
    return *(cast(g, tensor.dtype) for g, tensor in zip(gradients, tensors, strict=True)), None


MixtureLogProbFunction = attach_gradient(log_prob_op, _log_prob_context, _log_prob_backward)


@operator("mixture_log_joint")
def log_joint_op(z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor, backend: str) -> Tensor:
    """(S, N, K) log pi_k + log density of component k; its softmax over K are the responsibilities.

    In Triton forward only. "cpp" takes PyTorch's kernels too: on a CPU the cost is the (S, N, K, D) arithmetic on one
    sample at a time, and this is a result for inspection, not part of a training step.
    """
    function = (_backend(backend) if backend == "triton" else eager).mixture_log_joint
    return function(*_wide(z, log_pi, means, log_scales, keep=backend == "triton"))  # type: ignore[no-any-return]


def _wide(*tensors: Tensor, keep: bool = False) -> tuple[Tensor, ...]:
    """Half types as float32 for PyTorch's kernels; Triton reads them itself."""
    return tensors if keep else tuple(t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors)


@fake(log_joint_op)
def _(z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor, backend: str) -> Tensor:
    return z.new_empty(*z.shape[:2], log_pi.shape[1], dtype=torch.promote_types(z.dtype, torch.float32))


@operator("mixture_log_joint_backward")
def log_joint_backward_op(
    gradient: Tensor, z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of z, log_pi, means and log_scales in the dtype of `gradient`, on PyTorch's kernels."""
    return eager.mixture_log_joint_backward(gradient, *_wide(z, log_pi, means, log_scales))


@fake(log_joint_backward_op)
def _(
    gradient: Tensor, z: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors = (torch.empty(t.shape, dtype=gradient.dtype, device=t.device) for t in (z, log_pi, means, log_scales))
    return tuple(tensors)  # type: ignore[return-value]


def _log_joint_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1])


def _log_joint_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    gradients = log_joint_backward_op(gradient, *tensors)
    return *(cast(g, tensor.dtype) for g, tensor in zip(gradients, tensors, strict=True)), None


MixtureLogJointFunction = attach_gradient(log_joint_op, _log_joint_context, _log_joint_backward)


@operator("mixture_kl")
def kl_op(
    mean_q: Tensor, log_scale_q: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor, eps: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """KL (N,), and log-densities (S, N) of the samples, which the backward pass needs."""
    if backend != "torch":
        posterior = (mean_q, log_scale_q)
        log_prob, kl = _backend(backend).mixture_log_prob(eps, log_pi, means, log_scales, posterior)
        return kl, log_prob
    z = torch.addcmul(mean_q, log_scale_q.exp(), eps)  # (S, N, D)
    log_prob = eager.mixture_log_prob(z, log_pi, means, log_scales)
    entropy = log_scale_q.sum(-1) + 0.5 * (eager.LOG_2PI + 1) * mean_q.shape[-1]
    return -entropy - log_prob.mean(0), log_prob


@fake(kl_op)
def _(
    mean_q: Tensor, log_scale_q: Tensor, log_pi: Tensor, means: Tensor, log_scales: Tensor, eps: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(eps.dtype, torch.float32)
    return eps.new_empty(eps.shape[1], dtype=dtype), eps.new_empty(eps.shape[:2], dtype=dtype)


@operator("mixture_kl_backward")
def kl_backward_op(
    gradient: Tensor,
    log_prob: Tensor,
    mean_q: Tensor,
    log_scale_q: Tensor,
    log_pi: Tensor,
    means: Tensor,
    log_scales: Tensor,
    eps: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of mean_q, log_scale_q, log_pi, means and log_scales, in the dtype of `log_prob`."""
    if backend != "torch":
        function = _backend(backend).mixture_log_prob_backward
        posterior = (mean_q, log_scale_q)
        return function(gradient, log_prob, eps, log_pi, means, log_scales, posterior)  # type: ignore[no-any-return]
    spread = log_scale_q.exp() * eps
    upstream = (-gradient / eps.shape[0]).expand_as(log_prob)
    g_z, *rest = eager.mixture_log_prob_backward(upstream, log_prob, mean_q + spread, log_pi, means, log_scales)
    g_log_scale_q = (g_z * spread).sum(0) - gradient[:, None]
    return g_z.sum(0), g_log_scale_q, *rest  # type: ignore[return-value]


@fake(kl_backward_op)
def _(
    gradient: Tensor,
    log_prob: Tensor,
    mean_q: Tensor,
    log_scale_q: Tensor,
    log_pi: Tensor,
    means: Tensor,
    log_scales: Tensor,
    eps: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (mean_q, log_scale_q, log_pi, means, log_scales)
    empty = (torch.empty(t.shape, dtype=log_prob.dtype, device=t.device) for t in tensors)
    return tuple(empty)  # type: ignore[return-value]


def _kl_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *tensors)


def _kl_backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
    log_prob, *tensors = ctx.saved_tensors
    gradients = direct_kl_backward(gradient, log_prob, *tensors, ctx.backend)
    return *(cast(g, tensor.dtype) for g, tensor in zip(gradients, tensors[:-1], strict=True)), None, None


MixtureKLFunction = attach_gradient(kl_op, _kl_context, _kl_backward)


# past the dispatcher where nobody watches
direct_sticks, direct_sticks_backward = direct(sticks_op), direct(sticks_backward_op)
direct_log_prob, direct_log_prob_backward = direct(log_prob_op), direct(log_prob_backward_op)
direct_kl, direct_kl_backward = direct(kl_op), direct(kl_backward_op)
