"""The exponential moving average of the weights, which is what is validated and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from aime.sharding import divide, held
from aime.training.protocol import SequenceModel


class WeightAverage:
    """Moving average of a model's trained parameters.

    After k updates the decay is min(decay, (1 + k) / (10 + k)): early averages forget the first steps.

    Args:
        model: whose parameters are averaged; buffers are taken as they are.
        decay: largest weight of the past.
    """

    def __init__(self, model: SequenceModel, decay: float) -> None:
        self.decay = decay
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._mean = {name: p.detach().clone() for name, p in self._live.items()}
        self._updates = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update(self) -> None:
        """After an optimizer step."""
        k = int(self._updates)
        decay = min(self.decay, (1 + k) / (10 + k))
        means, live = ([held(tensor) for tensor in kept.values()] for kept in (self._mean, self._live))
        torch._foreach_lerp_(means, live, 1.0 - decay)
        self._updates += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the averaged weights inside, its own again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def move_in(self) -> None:
        """The model holds the averaged weights from now on; its own are gone."""
        for name, parameter in self._live.items():
            held(parameter).copy_(held(self._mean[name]))

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._live.items():
            own, kept = held(parameter), held(self._mean[name])
            mean = kept.clone()
            kept.copy_(own)
            own.copy_(mean)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint."""
        return {"updates": self._updates, **self._mean}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`."""
        for name, kept in self.tensors().items():
            held(kept).copy_(held(divide(tensors[name], kept)))
