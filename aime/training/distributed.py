"""One run on several processes: how they find each other, agree on when to stop, and end together.

`torchrun` (or anything that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT) starts them; what they
compute together is in `aime.ranks`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from aime.command import SaidElsewhereError
from aime.ranges import OptionError
from aime.ranks import Ranks, talking
from aime.training.config import TrainConfig

if TYPE_CHECKING:  # a torch without distribution has no such module
    from torch._C._distributed_c10d import Store


def device_of_rank(name: str) -> str:
    """`auto` and `cuda` as the GPU of this process, which torchrun numbers within its node."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or name not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{int(local) % torch.cuda.device_count()}"


@contextlib.contextmanager
def joined(device: torch.device, timeout: float) -> Iterator[Ranks | None]:
    """The processes that torchrun started; None where this is the only one.

    Whatever ends one of them ends all, with the message of the first: the others leave with `SaidElsewhereError`.

    Args:
        device: of this process; GPUs talk through NCCL, CPUs through gloo.
        timeout: seconds that a process waits for the others.

    Raises:
        OptionError: an environment variable is missing.
        RankLostError: the others cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield None
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise OptionError(f"WORLD_SIZE is set: expected {', '.join(missing)} beside it, as torchrun sets them")
    patience = dt.timedelta(seconds=timeout)
    with talking():
        store, rank, size = next(iter(rendezvous("env://", timeout=patience)))
    store.set_timeout(patience)
    # The second backend carries the few numbers that the hosts agree on, so that no GPU is waited for.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        with warnings.catch_warnings():
            if rank:
                warnings.simplefilter("ignore")  # rank 0 says the same
            if device.type == "cuda":
                torch.cuda.set_device(device)
            with talking():
                dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
            yield Ranks(rank, size)
    except BaseException as error:
        if isinstance(error, Exception) and not speaks_first(store):
            raise SaidElsewhereError from error
        raise
    dist.destroy_process_group()


def speaks_first(store: Store) -> bool:
    """Whether no other process of the job has reported an error yet; also where nobody can be asked."""
    try:
        store.set_timeout(dt.timedelta(seconds=5))
        return int(store.add("aime/errors", 1)) == 1
    except RuntimeError:
        return True


def check_world(config: TrainConfig, ranks: Ranks | None) -> None:
    """Raise OptionError where the batch cannot be divided among the processes."""
    if ranks is not None and config.batch_size % ranks.size:
        raise OptionError(
            f"batch_size: expected a multiple of the {ranks.size} processes (it is that of all together), found "
            f"{config.batch_size}"
        )
