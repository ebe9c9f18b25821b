"""A step as a CUDA graph: inputs at fixed addresses, steps that warm up, one that is captured, and replays after it.

A graph is a list of launches. None of the Python between them runs again, so that the host costs a few launches a step
whatever the model is made of. What was a number in Python while the graph was captured stays that number: everything
that changes from step to step is an input here, and stands in a tensor.

What is captured has to read and write its state in place, on shapes that stay, and never ask the device for a value.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

Input = Tensor | float | None
WARM_UPS = 3
"""Calls that run as they are before one is captured: in them optimizers make their state, the balancer learns which
task reaches which parameter, and kernels are compiled and chosen."""
MOST_GRAPHS = 128
"""Graphs of one function; calls of further shapes run as they are."""


class Capture(Protocol):
    """Runs and records calls; results of a recorded call stand in memory that replays write to."""

    def warm_up(self, call: Callable[[], T]) -> T:
        """Run the call as a capture would, without one."""
        ...

    def record(self, call: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Record the call, which changes nothing, and return what replays it, and the tensors of its results."""
        ...


class CudaCapture:
    """CUDA graphs that share one memory pool, on a stream of their own.

    They may share it, in any order of replays, since nothing that one leaves there is read after another has begun:
    inputs and state are outside, and results are read before the next replay.

    Args:
        generator: source of randomness of what is captured, on the device; each replay draws anew, and moves it on as
            the call itself would.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.device = generator.device
        self.stream = torch.cuda.Stream(self.device)
        self.pool = torch.cuda.graph_pool_handle()

    def warm_up(self, call: Callable[[], T]) -> T:
        """Run the call on the stream that captures: libraries keep handles and workspaces by stream."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = call()
        current.wait_stream(self.stream)
        return result

    def record(self, call: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Capture the call, which launches nothing; RuntimeError where it does what no graph can hold."""
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        # thread_local: the thread that loads batches may allocate page-locked memory meanwhile
        recording = torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local")
        try:
            with torch.cuda.device(self.device), recording:
                result = call()
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "")  # the others say how to debug CUDA
            raise RuntimeError(
                f"the step could not be captured as a CUDA graph ({type(error).__name__}: {reason}); it trains without "
                "one under cuda_graph off (--train.cuda-graph off)"
            ) from error
        return graph.replay, result


@dataclass
class _Captured(Generic[T]):
    """One signature of a `StepGraph`."""

    inputs: dict[str, Tensor | None]
    call: Callable[[], T]
    calls: int = 0
    replay: Callable[[], None] | None = None
    outputs: T | None = None


class StepGraph(Generic[T]):
    """A function of tensors and numbers whose calls become replays of a graph, one graph for every set of shapes.

    Args:
        function: called with the inputs by name, numbers as 0-d tensors, and the constants; what it returns is valid
            until the next call.
        capture: how a call is recorded.
        device: of the inputs.
        warm_ups: calls of a set of shapes that run as they are before one is captured.
        most: graphs at most; calls of further shapes run as they are.

    Example:
        >>> graph = StepGraph(lambda x, rate: x * rate, CudaCapture(generator), device)  # doctest: +SKIP
        >>> graph({"x": torch.ones(3, device=device), "rate": 0.5})  # doctest: +SKIP
    """

    def __init__(
        self,
        function: Callable[..., T],
        capture: Capture,
        device: torch.device,
        *,
        warm_ups: int = WARM_UPS,
        most: int = MOST_GRAPHS,
    ) -> None:
        self.function, self.capture, self.device = function, capture, device
        self.warm_ups, self.most = warm_ups, most
        self._captured: dict[Hashable, _Captured[T]] = {}

    def __call__(self, inputs: Mapping[str, Input], **constants: Hashable) -> T:
        """The function's results for these inputs; whatever it changes is changed."""
        key = (signature(inputs), tuple(sorted(constants.items())))
        entry = self._captured.get(key)
        if entry is None:
            if len(self._captured) >= self.most:
                return self.capture.warm_up(lambda: self._eager(inputs, constants))
            entry = self._captured[key] = self._prepare(inputs, constants)
        fill(entry.inputs, inputs)
        if entry.calls < self.warm_ups:
            entry.calls += 1
            return self.capture.warm_up(entry.call)
        if entry.replay is None:
            entry.replay, entry.outputs = self.capture.record(entry.call)
        entry.replay()
        assert entry.outputs is not None
        return entry.outputs

    def _prepare(self, inputs: Mapping[str, Input], constants: Mapping[str, Hashable]) -> _Captured[T]:
        static = static_inputs(inputs, self.device)
        return _Captured(static, lambda: self.function(**static, **constants))

    def _eager(self, inputs: Mapping[str, Input], constants: Mapping[str, Hashable]) -> T:
        static = static_inputs(inputs, self.device)
        fill(static, inputs)
        return self.function(**static, **constants)


def signature(inputs: Mapping[str, Input]) -> Hashable:
    """What a graph depends on: names, shapes and dtypes of tensors; the value of a number is none of it."""
    kinds = []
    for name, value in inputs.items():
        kinds.append((name, (value.shape, value.dtype) if isinstance(value, Tensor) else value is None))
    return tuple(kinds)


def static_inputs(inputs: Mapping[str, Input], device: torch.device) -> dict[str, Tensor | None]:
    """Tensors at fixed addresses for inputs like these: of each tensor's shape, () float32 of a number."""
    static: dict[str, Tensor | None] = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            static[name] = torch.empty_like(value, device=device, memory_format=torch.contiguous_format)
        else:
            static[name] = None if value is None else torch.zeros((), device=device)
    return static


@torch.no_grad()
def fill(static: Mapping[str, Tensor | None], inputs: Mapping[str, Input]) -> None:
    """Copy inputs to where a graph reads them; the host waits for nothing."""
    for name, target in static.items():
        value = inputs[name]
        if target is None:
            continue
        if isinstance(value, Tensor):
            target.copy_(value, non_blocking=True)
        else:
            assert value is not None
            target.fill_(value)
