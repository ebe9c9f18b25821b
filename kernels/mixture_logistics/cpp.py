"""The mixture of logistics on CPU in C++: one pass over the parameters each way, two sums a pixel stored.

float32, bfloat16 and float16 with any strides; results are float32. `instructions` names one of the extension's
instruction_sets(), "" takes the best. The same bits for any number of threads.
"""

import torch
from torch import Tensor

from ..extension import addresses, describe, load


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32)


def mixture_logistics_nll(
    x: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    coefficients: Tensor,
    weights: Tensor | None,
    instructions: str = "",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """nll (B,), mean (B, 3, H, W), and log-sum-exps of joint and logits (B, H, W)."""
    batch, _, height, width = logits.shape
    pixels = (batch, height, width)
    results = _empty(batch), _empty(batch, 3, height, width), _empty(*pixels), _empty(*pixels)
    inputs = tuple(map(describe, (x, logits, means, log_scales, coefficients, weights)))
    load().mixture_logistics(inputs, addresses(*results), torch.get_num_threads(), instructions)
    return results


def mixture_logistics_nll_backward(
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
    instructions: str = "",
) -> tuple[Tensor, ...]:
    """Gradients of logits, means, log_scales and coefficients."""
    gradients = tuple(_empty(*tensor.shape) for tensor in (logits, means, log_scales, coefficients))
    inputs = tuple(map(describe, (x, logits, means, log_scales, coefficients, weights)))
    saved = tuple(map(describe, (g_nll, g_mean, mean, lse_joint, lse_logits)))
    load().mixture_logistics_backward(inputs, saved, addresses(*gradients), torch.get_num_threads(), instructions)
    return gradients
