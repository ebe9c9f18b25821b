"""Balancers by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from aime.multi_task_learning.balancer import GradientBalancer
from aime.multi_task_learning.rgb import RGB
from aime.multi_task_learning.sum import Sum
from aime.ranges import OptionError, UnknownOptionError, show

BALANCERS: dict[str, Callable[..., GradientBalancer]] = {"rgb": RGB, "sum": Sum}


def make_balancer(name: str, **options: Any) -> GradientBalancer:
    """Build the balancer called `name`, one of `BALANCERS`.

    Raises:
        ValueError: unknown name; near names are listed.
        TypeError: an option that this balancer does not have; its own are listed.
    """
    if name not in BALANCERS:
        near = difflib.get_close_matches(name, BALANCERS, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise OptionError(f"expected a balancer among {', '.join(sorted(BALANCERS))}, found {show(name)}{hint}")
    known = inspect.signature(BALANCERS[name]).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UnknownOptionError(
            f"balancer {name}: expected options among {', '.join(known)}, found {show(unknown[0])}{hint}"
        )
    return BALANCERS[name](**options)
