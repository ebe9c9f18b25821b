"""The fused mixture_logistics_nll as a torch.library operator with its gradient."""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from ..autograd import attach_gradient, direct, fake, operator
from ..shapes import cast


@functools.cache
def _backend(name: str) -> Any:
    return importlib.import_module(f"aime.kernels.mixture_logistics.{name}")


@operator("mixture_logistics_nll")
def nll_op(
    x: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    coefficients: Tensor,
    weights: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """nll (B,), mean (B, 3, H, W), and log-sum-exps (B, H, W) of joint and logits, which the backward pass needs."""
    arguments = (x, logits, means, log_scales, coefficients, weights)
    return _backend(backend).mixture_logistics_nll(*arguments)  # type: ignore[no-any-return]


@fake(nll_op)
def _(
    x: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    coefficients: Tensor,
    weights: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, _, height, width = logits.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean = x.new_empty(batch, 3, height, width, dtype=dtype)
    joint, normaliser = (x.new_empty(batch, height, width, dtype=dtype) for _ in range(2))
    return x.new_empty(batch, dtype=dtype), mean, joint, normaliser


@operator("mixture_logistics_nll_backward")
def nll_backward_op(
    g_nll: Tensor,
    g_mean: Tensor,
    mean: Tensor,
    lse_joint: Tensor,
    lse_logits: Tensor,
    x: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    coefficients: Tensor,
    weights: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of logits, means, log_scales and coefficients, in the dtype of the mean."""
    saved = (mean, lse_joint, lse_logits)
    parameters = (logits, means, log_scales, coefficients)
    return _backend(backend).mixture_logistics_nll_backward(g_nll, g_mean, *saved, x, *parameters, weights)  # type: ignore[no-any-return]


@fake(nll_backward_op)
def _(
    g_nll: Tensor,
    g_mean: Tensor,
    mean: Tensor,
    lse_joint: Tensor,
    lse_logits: Tensor,
    x: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    coefficients: Tensor,
    weights: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parameters = (logits, means, log_scales, coefficients)
    empty = (torch.empty(t.shape, dtype=mean.dtype, device=t.device) for t in parameters)
    return tuple(empty)  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.backend = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*output[1:], *tensors)


def _backward(ctx: Any, g_nll: Tensor, g_mean: Tensor, *_: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    gradients = direct_nll_backward(g_nll, g_mean, *saved, ctx.backend)
    return None, *(cast(g, tensor.dtype) for g, tensor in zip(gradients, saved[4:8], strict=True)), None, None


MixtureLogisticsNLLFunction = attach_gradient(nll_op, _setup_context, _backward)

direct_nll, direct_nll_backward = direct(nll_op), direct(nll_backward_op)  # past the dispatcher where nobody watches
