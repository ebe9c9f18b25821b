"""Memory allocation on CPU: keep what was freed instead of handing it back to the kernel at every step."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Let glibc's malloc reuse large blocks; whether it could be told to.

    By default blocks over 32 MiB are mapped afresh at every allocation and unmapped at every free, so a training step
    spends its time on page faults: 10 to 15 % of a laptop step on two cores. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = ((M_MMAP_THRESHOLD, KEPT_BYTES), (M_TRIM_THRESHOLD, KEPT_BYTES), (M_TOP_PAD, KEPT_BYTES >> 3))
    return all(mallopt(option, value) == 1 for option, value in options)
