"""A background thread that has the next batches ready, so that the training step never waits for data."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import torch

from aime.data.sampler import WindowSampler
from aime.data.window import Batch


class PrefetchLoader:
    """Batches of a sampler, assembled ahead of time in one thread (numpy and h5py release the GIL where it costs).

    The state is that of the batches handed out, whatever was prefetched: `load_state_dict` continues exactly.

    Args:
        sampler: decides which windows; the loader starts at its position and moves it.
        device: where batches are sent; for CUDA they go through page-locked memory.
        depth: batches ready at most.

    Attributes:
        stall_seconds: time the consumer has waited for batches in all; stays near 0 when loading keeps up.
    """

    def __init__(self, sampler: WindowSampler, device: torch.device | str = "cpu", *, depth: int = 2) -> None:
        if depth < 1:
            raise ValueError(f"depth: expected at least 1, found {depth}")
        self.sampler, self.device, self.depth = sampler, torch.device(device), depth
        self.stall_seconds = 0.0
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(depth)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._thread is None:
            self._start()
        begin = time.perf_counter()
        item = self._ready.get()
        self.stall_seconds += time.perf_counter() - begin
        if isinstance(item, BaseException):
            self.close()
            raise item
        self.sampler.position += 1
        return item.to(self.device, non_blocking=True) if self.device.type == "cuda" else item

    def state_dict(self) -> dict[str, int]:
        """The sampler's state at the batches handed out so far."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where the state was taken; what was prefetched is dropped."""
        self.close()
        self.sampler.load_state_dict(state)

    def close(self) -> None:
        """Stop the thread. Iterating again starts a fresh one at the same place."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        self._stop = threading.Event()
        self._ready = queue.Queue(self.depth)
        self._thread = threading.Thread(
            target=self._produce,
            args=(self.sampler.position, self._stop, self._ready),
            name="aime-prefetch",
            daemon=True,
        )
        self._thread.start()

    def _produce(self, k: int, stop: threading.Event, ready: queue.Queue[Batch | BaseException]) -> None:
        pin = self.device.type == "cuda"
        while not stop.is_set():
            item: Batch | BaseException
            try:
                item = self.sampler.batch(k)
                item = item.pin_memory() if pin else item
            except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
                item = error
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return
            k += 1
