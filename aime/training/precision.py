"""In which precision a run computes."""

from __future__ import annotations

import torch

from aime.nn import multiplies_bfloat16
from aime.training.config import TrainConfig


def autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """bfloat16 where the configuration and the device want mixed precision, else None.

    "auto" is mixed on GPUs and on CPUs that multiply bfloat16 themselves (AVX512-BF16, AMX): there a laptop step took
    .8 of the time and reached the same reconstruction loss after equal steps.
    """
    wanted = multiplies_bfloat16(device) if config.precision == "auto" else config.precision == "bfloat16"
    return torch.bfloat16 if wanted else None
