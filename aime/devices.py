"""Which device a command runs on, checked before anything is computed."""

from __future__ import annotations

import torch

from aime.ranges import OptionError, show


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is the GPU where there is one.

    Raises:
        OptionError: it is no name of a device, or this machine has not got that one.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise OptionError(f"device: expected auto, cpu, cuda, cuda:1, ..., found {show(name)}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        there = f"{count} CUDA devices" if count else "no CUDA device"
        raise OptionError(f"device: expected one that this machine has ({there}), found {show(name)}")
    return device
