"""The processes of a distributed run, as those who compute something across them see them.

Rank r of W holds rows r, r + W, r + 2 W, ... of every global batch. So the first n rows of the global batch, which some
losses look at alone, are the first n / W of each rank; and a mean over the global batch is the mean over the ranks of
their own means.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Work = Any
"""What an asynchronous collective returns; its `wait` lets the device's stream go on when the result is there."""


class RankLostError(RuntimeError):
    """A process of the job is gone or does not answer."""


@contextlib.contextmanager
def talking() -> Iterator[None]:
    """Whatever fails inside is the lack of an answer from another process; RankLostError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("Exception raised from")[0].strip().splitlines()
        raise RankLostError(
            "another process of the job ended or did not answer in time, so the job cannot go on: continue it from its "
            f"last checkpoint (--resume). What the connection said: {reason[0] if reason else type(error).__name__}"
        ) from error


@dataclass(frozen=True)
class Ranks:
    """The processes of a run on `torch.distributed`'s default group, and which of them this one is.

    Args:
        rank: of this process, from 0.
        size: W, how many processes there are.

    Every method but `own` and `leads` is a collective: all ranks have to call it, in the same order.

    Raises:
        RankLostError: from every collective, where another process is gone.
    """

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone writes files and speaks."""
        return self.rank == 0

    def own(self, rows: Tensor, dim: int = 0) -> Tensor:
        """Rows of this rank among those of the global batch: (..., B, ...) -> (..., B / W, ...)."""
        index = torch.arange(self.rank, rows.shape[dim], self.size, device=rows.device)
        return rows.index_select(dim, index)

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of every rank in the order of the global batch: (B / W, ...) -> (B, ...). The inverse of `own`."""
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with talking():
            dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)  # (B / W, W, ...) -> (B, ...)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace the tensor by its sum over the ranks, in place."""
        with talking():
            dist.all_reduce(tensor)
        return tensor

    def start_sum(self, tensor: Tensor) -> Work:
        """Begin `sum_`; the result is there after `finish`."""
        with talking():
            return dist.all_reduce(tensor, async_op=True)

    def finish(self, work: Work) -> None:
        """Wait for what `start_sum` began."""
        with talking():
            work.wait()

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over the ranks, a constant."""
        return self.sum_(tensor.detach().clone()) / self.size

    def mean_through(self, tensor: Tensor) -> Tensor:
        """The mean over the ranks, with the gradient of this rank's own part of it.

        A function f of a mean m = sum_r m_r / W has df = f'(m) sum_r dm_r / W. So where every rank computes f of this
        and gradients are averaged over the ranks, the gradient is that of one process, and nothing is communicated in
        the backward pass.
        """
        return tensor + (self.mean(tensor) - tensor.detach())

    def largest(self, values: list[float]) -> list[float]:
        """The largest of each number over the ranks, through the host."""
        tensor = torch.tensor(values, dtype=torch.float64)
        with talking():
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.tolist()

    def total(self, value: float) -> float:
        """The sum of a number over the ranks, through the host."""
        return float(self.sum_(torch.tensor([value], dtype=torch.float64)))

    def from_leader(self, value: int) -> int:
        """Rank 0's number."""
        tensor = torch.tensor([value], dtype=torch.int64)
        with talking():
            dist.broadcast(tensor, 0)
        return int(tensor)

    def copy_from_leader(self, tensors: list[Tensor]) -> None:
        """Replace tensors by rank 0's, in place."""
        with talking():
            for tensor in tensors:
                dist.broadcast(tensor, 0)
