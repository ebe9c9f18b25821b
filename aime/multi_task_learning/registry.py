"""Balancers by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from aime.multi_task_learning.balancer import GradientBalancer
from aime.multi_task_learning.rgb import RGB
from aime.multi_task_learning.sum import Sum

BALANCERS: dict[str, Callable[..., GradientBalancer]] = {"rgb": RGB, "sum": Sum}


def make_balancer(name: str, **options: Any) -> GradientBalancer:
    """Build the balancer called `name`, one of `BALANCERS`.

    Raises:
        ValueError: unknown name; near names are listed.
        TypeError: an option that this balancer does not have.
    """
    if name not in BALANCERS:
        near = difflib.get_close_matches(name, BALANCERS, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"expected a balancer among {', '.join(sorted(BALANCERS))}, found {name!r}{hint}")
    return BALANCERS[name](**options)
