"""Runs a function in two processes that talk through gloo, as torchrun would, but forked: torch is imported once."""

from __future__ import annotations

import multiprocessing
import os
import queue
import socket
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch

PATIENCE = 120.0  # seconds of a test's processes at most: only a broken test waits for so long


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(function: Callable[..., Any], size: int, *arguments: Any) -> tuple[list[Any], Any]:
    """Start `function(rank, *arguments)` in `size` processes; their handles, and the queue of their results."""
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    results, port = context.Queue(), free_port()
    processes = [
        context.Process(target=_run, args=(function, environment(rank, size, port), results, arguments))
        for rank in range(size)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of any fork while there are threads
        for process in processes:
            process.start()
    return processes, results


def run(function: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """Results of `function(rank, *arguments)` in `size` processes, by rank; raises what any of them raised."""
    processes, results = start(function, size, *arguments)
    found: dict[int, Any] = {}
    try:
        while len(found) < size:
            rank, result, error = results.get(timeout=PATIENCE)
            if error:
                raise AssertionError(f"rank {rank}:\n{error}")
            found[rank] = result
    except queue.Empty:
        raise AssertionError(f"only ranks {sorted(found)} of {size} came to an end") from None
    finally:
        for process in processes:
            if len(found) < size:
                process.kill()
            process.join()
    return [found[rank] for rank in range(size)]


def _run(function: Callable[..., Any], variables: dict[str, str], results: Any, arguments: tuple[Any, ...]) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    rank = int(variables["RANK"])
    try:
        results.put((rank, function(rank, *arguments), ""))
    except BaseException:  # noqa: BLE001 - handed to the test
        results.put((rank, None, traceback.format_exc()))
