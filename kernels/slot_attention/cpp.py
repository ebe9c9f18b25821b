"""The pass of slot attention over its inputs on CPU in C++: as many inputs at a time as a vector has lanes, in cache.

float32, bfloat16 and float16 inputs with any strides; results are float32. `instructions` names one of the extension's
instruction_sets(), "" takes the best. The same bits for any number of threads.
"""

import torch
from torch import Tensor

from ..extension import addresses, describe, describe_mask, load


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32)


def attend(
    inputs: Tensor,
    seen: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    eps: float,
    want_attention: bool,
    instructions: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums (B, S, C), totals (B, S), and attention (B, S, N), empty unless wanted; arguments as `attend_op`."""
    batch, count, channels = inputs.shape
    slots = seen.shape[1]
    sums, totals = _empty(batch, slots, channels), _empty(batch, slots)
    attention = _empty(batch, slots, count) if want_attention else None
    arguments = (*map(describe, (inputs, seen, offset)), describe_mask(mask))
    load().slot_attend(arguments, eps, addresses(sums, totals, attention), torch.get_num_threads(), instructions)
    return sums, totals, _empty(0) if attention is None else attention


def attend_backward(
    g_sums: Tensor,
    g_totals: Tensor,
    g_attention: Tensor | None,
    inputs: Tensor,
    seen: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    eps: float,
    instructions: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of inputs in their dtype, of seen and offset in float32."""
    gradients = _empty(*inputs.shape), _empty(*seen.shape), _empty(*offset.shape)
    arguments = (*map(describe, (inputs, seen, offset)), describe_mask(mask))
    upstream = tuple(map(describe, (g_sums, g_totals, g_attention)))
    threads = torch.get_num_threads()
    load().slot_attend_backward(arguments, eps, upstream, addresses(*gradients), threads, instructions)
    return gradients[0].to(inputs.dtype), *gradients[1:]
