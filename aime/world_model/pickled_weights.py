"""Weights in files that `torch.save` wrote, which older documents name; its restricted reader runs nothing of them.

What this project itself writes and reads is safetensors and JSON.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

PICKLED = (".pt", ".pth", ".ckpt", ".bin")
"""How the names of such files end."""


def state_dict_of(path: str | Path) -> dict[str, Any]:
    """The state_dict in a file that `torch.save` wrote: the whole of it, or its `model_state_dict`.

    Raises:
        ValueError: the file holds something else. Nothing in it is run.
    """
    file = Path(path)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file}: expected tensors that torch.save wrote, found: {error}") from error
    found = found.get("model_state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError(f"{file}: expected a state_dict, or a dictionary with model_state_dict, found neither")
    return found
