"""A model whose parameters are divided among the processes of a run, by PyTorch's `fully_shard` (FSDP2).

Between steps each process holds rows of every parameter, as a DTensor, and of all that goes with it: task gradients,
the optimizer's moments, averages. For a pass they are gathered (`gathered`), and freed after it. A tensor is called
whole where it has all rows, and held where it has those of this process; every function takes tensors of undivided
models as well and then does nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aime.ranks import Ranks, talking

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

BUCKET = 2**24
"""Numbers that are summed over the processes at a time, 64 MB: what a task's gradient takes twice meanwhile."""


def is_divided(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether other processes hold the rest of it."""
    return hasattr(tensor, "placements")


def shard(model: nn.Module, ranks: Ranks) -> None:
    """Divide every parameter of a model along its first axis; all ranks call it with the same values.

    Parameters become contiguous on the way: `fully_shard` knows no other layout.

    Raises:
        ValueError: a parameter without axes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(model.parameters()).device
    for name, parameter in model.named_parameters():
        if parameter.dim() == 0:
            raise ValueError(f"{name}: expected parameters with an axis to divide them along, found one of shape ()")
        parameter.data = parameter.data.contiguous()
    # One group: the parts of a world model call each other in the middle, and its recurrence comes back to its weights
    # at every frame, so that nothing could be freed before the pass is over.
    fully_shard(model, mesh=init_device_mesh(device.type, (ranks.size,)), reshard_after_forward=False)


@contextlib.contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Inside, the model's parameters are whole; a collective. Nothing may be changed in them."""
    if not any(is_divided(parameter) for parameter in model.parameters()):
        yield
        return
    with talking():
        model.unshard()
    try:
        yield
    finally:
        model.reshard()


def held(tensor: Tensor) -> Tensor:
    """The rows that this process holds, in the same memory."""
    with torch.no_grad():
        return tensor.to_local() if is_divided(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All rows, on every process; a collective."""
    with torch.no_grad(), talking():
        return tensor.full_tensor() if is_divided(tensor) else tensor


def whole_to_leader(tensor: Tensor, ranks: Ranks | None) -> Tensor:
    """All rows in the host's memory of rank 0, on the others only their shape; a collective."""
    if ranks is None or not is_divided(tensor):
        return tensor
    everything = whole(tensor)
    return everything.cpu() if ranks.leads else everything.to("meta")


def rows_of(everything: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor those rows that this process holds of `like`, a view; the tensor itself where that is whole."""
    if not is_divided(like):
        return everything
    mesh = like.device_mesh
    first = min(mesh.get_local_rank() * _share(like.shape[0], mesh.size()), like.shape[0])
    return everything.narrow(0, first, held(like).shape[0])


def divided(rows: Tensor, like: Tensor) -> Tensor:
    """Rows of this process as the tensor that they are a part of, divided as `like` is, in the same memory."""
    if not is_divided(like):
        return rows
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        rows, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def divide(everything: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, divided as `like` is, on its device; itself where that is whole."""
    if not is_divided(like):
        return everything
    return divided(rows_of(everything, like).to(like.device, copy=True).contiguous(), like)


def load_whole_state(model: Any, state: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors."""
    now = model.state_dict()
    model.load_state_dict({name: divide(tensor, now[name]) for name, tensor in state.items()})


@contextlib.contextmanager
def whole_state(model: Any, ranks: Ranks | None) -> Iterator[None]:
    """Inside, `state_dict` gives rank 0 whole tensors in the host's memory, others only shapes; a collective."""
    divided_state = {name: tensor for name, tensor in model.state_dict().items() if is_divided(tensor)}
    if not divided_state:
        yield
        return
    found = {name: whole_to_leader(tensor, ranks) for name, tensor in divided_state.items()}
    handle = model.register_state_dict_post_hook(lambda _module, state, _prefix, _metadata: state.update(found))
    try:
        yield
    finally:
        handle.remove()


def sum_and_divide(
    gradients: Sequence[Tensor | None], parameters: Sequence[Tensor], ranks: Ranks
) -> list[Tensor | None]:
    """Gradients of whole parameters, summed over the ranks: the rows of them that this process holds.

    Args:
        gradients: of the whole parameters; None, on all ranks alike, where there is none.
        parameters: the divided parameters, in the same order.
        ranks: the processes; a collective.
    """
    found: list[Tensor | None] = [None] * len(parameters)
    bucket: list[int] = []
    for index, gradient in enumerate(gradients):
        if gradient is None:
            continue
        if bucket and sum(parameters[i].numel() for i in [*bucket, index]) > BUCKET:
            _sum_bucket(bucket, gradients, parameters, ranks, found)
            bucket = []
        bucket.append(index)
    if bucket:
        _sum_bucket(bucket, gradients, parameters, ranks, found)
    return found


def clip(parameters: Sequence[Tensor], largest: float, ranks: Ranks) -> Tensor:
    """Clip the norm of all gradients of divided parameters together; the norm () before, the same on every rank."""
    gradients = [held(parameter.grad) for parameter in parameters if parameter.grad is not None]
    squares = torch.stack([gradient.double().square().sum() for gradient in gradients]).sum()
    norm = ranks.sum_(squares).sqrt()
    factor = (largest / (norm + 1e-6)).clamp_max(1.0)
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.dtype))
    return norm


def _share(rows: int, size: int) -> int:
    """Rows of the first process, and of every one that is not among the last: as `torch.chunk` divides."""
    return -(-rows // size)


def _sum_bucket(
    bucket: Sequence[int],
    gradients: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    ranks: Ranks,
    found: list[Tensor | None],
) -> None:
    """Sum some gradients, and put this process's rows into `found`."""
    size, pieces, widths = ranks.size, [], []
    for index in bucket:
        gradient = gradients[index]
        assert gradient is not None
        flat = gradient.reshape(gradient.shape[0], -1)  # (n, m)
        share = _share(flat.shape[0], size)
        padded = flat.new_zeros(share * size, flat.shape[1])  # (W s, m): every process has equally many rows
        padded[: flat.shape[0]] = flat
        pieces.append(padded.reshape(size, -1))  # (W, s m)
        widths.append(share * flat.shape[1])
    buffer = torch.cat(pieces, 1)  # (W, sum of s m)
    own = buffer.new_empty(buffer.shape[1])
    with talking():
        _reduce_scatter()(own, buffer.reshape(-1))
    for index, piece in zip(bucket, own.split(widths), strict=True):
        shape = held(parameters[index]).shape
        found[index] = piece[: shape.numel()].view(shape)


def _reduce_scatter() -> Callable[[Tensor, Tensor], Any]:
    """By the name that this torch has for it: before 2.13 it was another."""
    found: Callable[[Tensor, Tensor], Any] = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    return found
