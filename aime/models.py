"""`models` of the original AIME's documents: the check of a tensor, and the critics."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

CRITICS = ("ImageDiscriminator", "TemporalDiscriminator")


def check_tensor(tensor: Tensor, name: str) -> None:
    """Refuse NaN and infinity. Waits for the device: a tool for finding a fault, not for every step.

    Args:
        tensor: of any shape.
        name: what it is called in the error.

    Raises:
        ValueError: some entries are NaN or infinite; their number and the place of the first are named.
    """
    wrong = ~torch.isfinite(tensor)
    count = int(wrong.sum())
    if count:
        place = tuple(int(index) for index in wrong.nonzero()[0])
        nan = int(torch.isnan(tensor).sum())
        raise ValueError(
            f"{name}: expected finite numbers, found {nan} NaN and {count - nan} infinite of {tensor.numel()}, the "
            f"first at {place}"
        )


def __getattr__(name: str) -> Any:
    if name in CRITICS:
        try:
            return getattr(importlib.import_module("aime.adversarial"), name)
        except ModuleNotFoundError as error:
            raise AttributeError(f"aime.models.{name}: this version has no critics") from error
    raise AttributeError(f"module 'aime.models' has no attribute {name!r}")
