"""A CUDA graph's stand-in on the CPU: a call is recorded as operators on tensors, and replayed without its Python.

As with a graph, a replay reads and writes the memory that the recording met, in the same order, whatever names mean by
then. So state that a step rebinds instead of writing to, a branch on a value, and a number that Python has computed
show as results that stay behind, on a machine without a GPU. Unlike capture, recording runs the operators: what they
change is put back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

T = TypeVar("T")
RANDOM_INPLACE = {"random_", "uniform_", "normal_", "bernoulli_"}


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def alias(leaf: Any) -> Any:
    """The same memory under the shape of now."""
    return torch.ops.aten.alias.default(leaf) if isinstance(leaf, Tensor) else leaf


def memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Recorder(TorchDispatchMode):
    """Notes every operator with its arguments and results, and what memory held before it was first written to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any, bool]] = []
        self.made: set[int] = set()  # memory that the recording itself allocated
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for argument, value in zip(function._schema.arguments, args, strict=False):
            self._note(argument, value)
        for argument in function._schema.arguments:
            if argument.name in kwargs:
                self._note(argument, kwargs[argument.name])
        held = tree_map(alias, (args, kwargs))  # before the call, and whatever happens to shapes after it
        result = function(*args, **kwargs)
        known = {memory_of(tensor) for tensor in tensors_in((args, kwargs))}
        self.made |= {memory_of(tensor) for tensor in tensors_in(result)} - known
        if torch.Tag.inplace_view not in function.tags:  # which changes a tensor's shape, no memory
            self.calls.append((function, *held, tree_map(alias, result), torch.is_grad_enabled()))
        return result

    def _note(self, argument: Any, value: Any) -> None:
        if argument.alias_info is None or not argument.alias_info.is_write:
            return
        for tensor in tensors_in(value):
            place = memory_of(tensor)
            if place not in self.made and place not in self.before:
                storage = tensor.untyped_storage()
                self.before[place] = (storage, storage.clone())

    def put_back(self) -> None:
        """Undo what the recorded operators have written to memory that was there before them."""
        for storage, held in self.before.values():
            storage.copy_(held)

    def replay(self) -> None:
        """Run the operators again on the same memory, below autograd as they were met."""
        for function, args, kwargs, result, grad_enabled in self.calls:
            known = {memory_of(tensor) for tensor in tensors_in((args, kwargs))}
            fresh = [tensor for tensor in tensors_in(result) if memory_of(tensor) not in known]
            if not fresh and not function._schema.is_mutable:
                continue  # a view: of memory that is where it was
            with torch._C._AutoDispatchBelowAutograd(), torch.set_grad_enabled(grad_enabled):  # LSTMs ask for the mode
                again = tensors_in(function(*args, **kwargs))
                for kept, new in zip(tensors_in(result), again, strict=True):
                    if memory_of(kept) not in known:
                        kept.copy_(new)


class Tape:
    """What `aime.training.step_graph.CudaCapture` is, on the CPU.

    Args:
        generator: of the step; recording leaves it as it was, as capture does.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator
        self.recordings = 0
        self.replays = 0

    def warm_up(self, call: Callable[[], T]) -> T:
        return call()

    def record(self, call: Callable[[], T]) -> tuple[Callable[[], None], T]:
        states = torch.get_rng_state(), None if self.generator is None else self.generator.get_state()
        recorder = Recorder()
        with recorder:
            outputs = call()
        recorder.put_back()
        torch.set_rng_state(states[0])
        if self.generator is not None and states[1] is not None:
            self.generator.set_state(states[1])
        self.recordings += 1

        def replay() -> None:
            self.replays += 1
            recorder.replay()

        return replay, outputs
