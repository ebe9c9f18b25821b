"""Which backend runs an op: an argument decides, never an import.

Every op takes `backend=None | "torch" | ...`. `None` lets the op choose by device and shape; a name is an order, and an
order that cannot be carried out raises with the reason. `AIME_KERNELS_BACKEND` (read once, when `aime.kernels` is
imported) takes the place of `None` everywhere, for debugging.
"""

import difflib
import os
from collections.abc import Mapping

ENVIRONMENT_VARIABLE = "AIME_KERNELS_BACKEND"
BACKEND_FROM_ENVIRONMENT: str | None = os.environ.get(ENVIRONMENT_VARIABLE) or None


def choose_backend(op: str, requested: str | None, obstacles: Mapping[str, str | None], preferred: str) -> str:
    """Name of the backend to run.

    Args:
        op: name of the op, for the messages.
        requested: the caller's `backend` argument.
        obstacles: for every backend the op offers, why it cannot run on these inputs, or None if it can.
        preferred: what the op picks when nothing is requested; it must be free of obstacles.

    Raises:
        ValueError: `requested` is not a backend of this op.
        RuntimeError: `requested` exists but cannot run here.
    """
    name = requested if requested is not None else BACKEND_FROM_ENVIRONMENT
    if name is None:
        return preferred
    if name not in obstacles:
        near = difflib.get_close_matches(name, obstacles, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        source = "" if requested is not None else f" (from {ENVIRONMENT_VARIABLE})"
        raise ValueError(f"{op}: unknown backend {name!r}{source}, expected one of {sorted(obstacles)}{hint}")
    reason = obstacles[name]
    if reason is not None:
        raise RuntimeError(f"{op}: backend {name!r} cannot run: {reason}")
    return name
