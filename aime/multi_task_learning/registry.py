"""Balancers by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from aime.multi_task_learning.balancer import GradientBalancer
from aime.multi_task_learning.rgb import RGB
from aime.multi_task_learning.sum import Sum
from aime.multi_task_learning.torchjd_balancers import TORCHJD_BALANCERS, TorchJDBalancer
from aime.ranges import OptionError, UnknownOptionError, show

BALANCERS: dict[str, Callable[..., GradientBalancer]] = {"rgb": RGB, "sum": Sum, **TORCHJD_BALANCERS}


def make_balancer(name: str, **options: Any) -> GradientBalancer:
    """Build the balancer called `name`, one of `BALANCERS`.

    Raises:
        ValueError: unknown name; near names are listed. Or torchjd, which it needs, is not installed.
        TypeError: an option that this balancer does not have; its own are listed.
    """
    if name not in BALANCERS:
        near = difflib.get_close_matches(name, BALANCERS, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise OptionError(f"expected a balancer among {', '.join(sorted(BALANCERS))}, found {show(name)}{hint}")
    known = _options(BALANCERS[name])
    unknown = [option for option in options if option not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UnknownOptionError(
            f"balancer {name}: expected options among {', '.join(known)}, found {show(unknown[0])}{hint}"
        )
    return BALANCERS[name](**options)


def _options(balancer: Callable[..., GradientBalancer]) -> list[str]:
    """Names that a balancer takes: its own, and where it hands the others on, those of its base."""
    own = inspect.signature(balancer).parameters.values()
    names = [parameter.name for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    if isinstance(balancer, type) and issubclass(balancer, TorchJDBalancer):
        shared = inspect.signature(GradientBalancer.__init__).parameters
        names += [name for name in shared if name not in (*names, "self")]
    return names
