"""Sticks and mixture densities on CPU in C++: a row at a time in cache, every gradient written once.

float32, bfloat16 and float16 with any strides; results are float32. `instructions` names one of the extension's
instruction_sets(), "" takes the best. The same bits for any number of threads.
"""

import torch
from torch import Tensor

from ..extension import addresses, describe, load


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32)


def stick_log_weights(log_a: Tensor, log_b: Tensor, u: Tensor, instructions: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """(N, K - 1) sticks to log_pi (N, K), log_v and log_q_v (N, K - 1)."""
    rows, sticks = u.shape
    results = _empty(rows, sticks + 1), _empty(rows, sticks), _empty(rows, sticks)
    inputs = tuple(map(describe, (log_a, log_b, u)))
    load().stick_log_weights(inputs, addresses(*results), torch.get_num_threads(), instructions)
    return results


def stick_log_weights_backward(
    log_a: Tensor, log_b: Tensor, u: Tensor, g_pi: Tensor, g_v: Tensor, g_q: Tensor, instructions: str = ""
) -> tuple[Tensor, Tensor]:
    """Gradients of log_a and log_b."""
    gradients = _empty(*u.shape), _empty(*u.shape)
    inputs, upstream = tuple(map(describe, (log_a, log_b, u))), tuple(map(describe, (g_pi, g_v, g_q)))
    threads = torch.get_num_threads()
    load().stick_log_weights_backward(inputs, upstream, addresses(*gradients), threads, instructions)
    return gradients


def mixture_log_prob(
    z: Tensor,
    log_pi: Tensor,
    means: Tensor,
    log_scales: Tensor,
    posterior: tuple[Tensor, Tensor] | None = None,
    instructions: str = "",
) -> tuple[Tensor, Tensor | None]:
    """Log-densities (S, N) of z (S, N, D); with a posterior, z is its noise, and the divergence (N,) comes too."""
    log_prob = _empty(*z.shape[:2])
    kl = None if posterior is None else _empty(z.shape[1])
    inputs = (*map(describe, (z, log_pi, means, log_scales)), *map(describe, posterior or (None, None)))
    load().mixture_density(inputs, addresses(log_prob, kl), torch.get_num_threads(), instructions)
    return log_prob, kl


def mixture_log_prob_backward(
    gradient: Tensor,
    log_prob: Tensor,
    z: Tensor,
    log_pi: Tensor,
    means: Tensor,
    log_scales: Tensor,
    posterior: tuple[Tensor, Tensor] | None = None,
    instructions: str = "",
) -> tuple[Tensor, ...]:
    """Gradients of z, or of the posterior's two tensors, then of log_pi, means and log_scales.

    `gradient` is that of the log-densities (S, N), with a posterior that of the divergence (N,).
    """
    mixture = tuple(_empty(*tensor.shape) for tensor in (log_pi, means, log_scales))
    first = (z,) if posterior is None else posterior
    front = tuple(_empty(*tensor.shape) for tensor in first)
    inputs = (*map(describe, (z, log_pi, means, log_scales)), *map(describe, posterior or (None, None)))
    saved = describe(gradient), describe(log_prob)
    slots = (*front, None, None) if posterior is None else (None, *front)
    load().mixture_density_backward(inputs, saved, addresses(*slots, *mixture), torch.get_num_threads(), instructions)
    return *front, *mixture
