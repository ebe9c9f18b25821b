"""Networks of a model compiled by torch.compile, in a run whose configuration asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from aime.ranges import OptionError
from aime.ranks import Ranks
from aime.training.config import TrainConfig
from aime.training.protocol import SequenceModel

Methods = Sequence[tuple[nn.Module, str]]
"""Modules, and of each the name of a method of tensors."""


class CompiledNetworks:
    """Methods of modules, compiled; in place of the plain ones only while a step is taken.

    Nothing of it stays on the model: validation, pictures, rehearsals, checkpoints and whoever holds the model
    afterwards have the plain methods. A method is compiled when it is called for the first time, and again where shapes
    or dtypes are others.

    Args:
        methods: what is compiled, each as a whole.
        backend: of torch.compile.
    """

    def __init__(self, methods: Methods, backend: str | Callable[..., Any] = "inductor") -> None:
        self._methods: list[tuple[nn.Module, str, Any]] = [
            (module, name, torch.compile(getattr(module, name), backend=backend)) for module, name in methods
        ]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The compiled methods on their modules within this block; RuntimeError where they cannot be compiled."""
        from torch._dynamo.exc import TorchDynamoException  # takes a second
        from torch._functorch import config as functorch_config

        # each task has a backward pass of its own through the same graph, which may not give memory away in the first
        with functorch_config.patch(donated_buffer=False):
            for module, name, compiled in self._methods:
                setattr(module, name, compiled)
            try:
                yield
            except TorchDynamoException as error:
                inner = getattr(error, "inner_exception", error)
                reason = f"{type(inner).__name__}: {str(inner).strip().partition(chr(10))[0]}"
                raise RuntimeError(
                    f"compile: expected networks that torch.compile can compile here, found {reason}; train without it "
                    "(--train.compile false)"
                ) from error
            finally:
                for module, name, _ in self._methods:
                    delattr(module, name)


def make_compiled(
    model: SequenceModel, config: TrainConfig, device: torch.device, ranks: Ranks | None
) -> CompiledNetworks | None:
    """The model's networks for a run that compiles them, None for one that does not.

    Raises:
        OptionError: they are to be compiled and cannot be in this run.
    """
    if not config.compile:
        return None
    methods: Methods = getattr(model, "compilable_methods", ())
    reason = None
    if ranks is not None:
        reason = f"it is for a run of one process, and this one has {ranks.size}"
    elif config.cuda_graph != "off" and device.type == "cuda":
        reason = f"it is for steps that are not captured (cuda_graph off), and cuda_graph is {config.cuda_graph}"
    elif not methods:
        reason = f"{type(model).__name__} does not say what of it to compile (compilable_methods)"
    if reason is not None:
        raise OptionError(f"compile: expected false, since {reason}; found true")
    return CompiledNetworks(methods)
