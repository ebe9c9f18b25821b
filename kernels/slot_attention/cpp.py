"""Slot attention on CPU in C++: all iterations in one call each way.

float32, bfloat16 and float16 with any strides; everything is counted in float32. `instructions` names one of the
extension's instruction_sets(), "" takes the best. The same bits for any number of threads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import dispatch, extension
from ..autograd import watched
from ..shapes import cast

PADDING = 16  # of what is saved; kSlotPadding in csrc/kernels/slot_planes.hpp
UNKNOWN, NO_GRADIENT = -1, 0


def look(inputs: Tensor, slots: Tensor, weights: Sequence[Tensor | None]) -> int:
    """Whether the kernel takes the tensors as they are, in one call.

    1 if it does and one of them requires a gradient, NO_GRADIENT if none does; UNKNOWN where somebody watches the
    operators, a tensor is not plain or something does not fit together: the caller has to find out.
    """
    if watched() or not dispatch.EXTENSION_BUILT or not extension.reads_tensors():
        return UNKNOWN
    return extension.load().slot_check((inputs, slots, *weights))  # type: ignore[no-any-return]


def saved_shape(inputs: Tensor, slots: Tensor, hidden: int, iters: int) -> tuple[int, int]:
    """Of what the forward pass keeps for the gradients; contents in csrc/kernels/slot_planes.hpp."""
    c, d, f = (-(-size // PADDING) * PADDING for size in (inputs.shape[2], slots.shape[2], hidden))
    return iters, slots.shape[0] * slots.shape[1] * (7 * d + f + 2 * c + 1)


def _readable(tensor: Tensor | None) -> Tensor | extension.Description | None:
    """What the extension reads: the tensor itself, or a description where PyTorch lacks the means."""
    return tensor if tensor is None or extension.reads_tensors() else extension.describe(tensor)


def _arguments(
    inputs: Tensor, slots: Tensor, weights: Sequence[Tensor | None], mask: Tensor | None
) -> tuple[tuple[object, ...], object]:
    tensors = (inputs, slots, *weights)
    readable = tensors if extension.reads_tensors() else tuple(map(_readable, tensors))
    return readable, None if mask is None else extension.describe_mask(mask)


def forward(
    inputs: Tensor,
    slots: Tensor,
    weights: Sequence[Tensor | None],
    mask: Tensor | None,
    iters: int,
    eps: float,
    gelu: bool,
    save: bool,
    instructions: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """Slots (B, S, D) in their dtype, attention (B, S, N) float32, and what `backward` needs, empty unless `save`."""
    batch, count, width = slots.shape
    float32 = torch.float32
    out = torch.empty((batch, count, width), dtype=float32)
    attention = torch.empty((batch, count, inputs.shape[1]), dtype=float32)
    saved = None
    if save:
        saved = torch.empty(saved_shape(inputs, slots, len(weights[14]), iters), dtype=float32)  # type: ignore[arg-type]
    extension.load().slot_attention(
        *_arguments(inputs, slots, weights, mask),
        iters,
        eps,
        gelu,
        out.data_ptr(),
        attention.data_ptr(),
        0 if saved is None else saved.data_ptr(),
        torch.get_num_threads(),
        instructions,
    )
    return cast(out, slots.dtype), attention, torch.empty(0) if saved is None else saved


def backward(
    g_slots: Tensor,
    g_attention: Tensor | None,
    saved: Tensor,
    inputs: Tensor,
    slots: Tensor,
    weights: Sequence[Tensor | None],
    mask: Tensor | None,
    iters: int,
    eps: float,
    gelu: bool,
    implicit: bool,
    needed: Sequence[bool],
    instructions: str = "",
) -> list[Tensor]:
    """Gradients of inputs, slots and weights in their dtypes; empty for absent ones and where not `needed`."""
    leaves = (inputs, slots, *weights)
    gradients = [
        None if leaf is None or not need else torch.empty(leaf.shape, dtype=torch.float32)
        for leaf, need in zip(leaves, needed, strict=True)
    ]
    addresses = extension.addresses(*gradients)
    if implicit and gradients[1] is not None:
        gradients[1].zero_()
        addresses[1] = 0
    extension.load().slot_attention_backward(
        *_arguments(inputs, slots, weights, mask),
        iters,
        eps,
        gelu,
        _readable(g_slots),
        _readable(g_attention),
        saved.data_ptr(),
        implicit,
        addresses,
        torch.get_num_threads(),
        instructions,
    )
    return [
        (inputs if leaf is None else leaf).new_empty(0) if gradient is None else cast(gradient, leaf.dtype)  # type: ignore[union-attr]
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]
