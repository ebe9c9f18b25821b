"""What a configuration's field may hold, said where the field is defined and checked in one place.

A dataclass annotates every number with a `Range` and calls `check_ranges` when it is made:

    @dataclass(frozen=True)
    class Config:
        batch_size: Annotated[int, Range(1, 4096)] = 32
        learning_rate: Annotated[float, Range(above=0, to=1)] = 3e-4
        seconds: Annotated[float, Range(above=0)] | None = None
        channels: tuple[Annotated[int, Range(1)], ...] = (64, 128)
        precision: Literal["float32", "bfloat16"] = "float32"

        def __post_init__(self) -> None:
            check_ranges(self)

Types are checked with it, NaN and infinity are refused everywhere, and a number without a Range is an error of whoever
wrote the class: a field cannot be added without saying what is sensible. Nothing but the standard library is imported.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

SHOWN = 60  # characters of a refused value that a message repeats


class OptionError(ValueError):
    """An option has a value that it does not admit, or options contradict each other."""


class UnknownOptionError(OptionError, TypeError):
    """An option that there is not; a TypeError like that of a call."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number: from `least` to `to`, both included, or `above` and `below` where they are not.

    Args:
        least: smallest value.
        to: largest value.
        above: the value is larger than this.
        below: the value is smaller than this.
        power_of_two: only 1, 2, 4, ...
    """

    least: float | None = None
    to: float | None = None
    _: KW_ONLY
    above: float | None = None
    below: float | None = None
    power_of_two: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value is finite and inside."""
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.to is None or value <= self.to)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (not self.power_of_two or _is_power_of_two(value))
        )

    def describe(self, kind: str) -> str:
        """The bounds in words: "a whole number from 1 to 64"."""
        if self.least is not None and self.to is not None:
            words = f"from {_plain(self.least)} to {_plain(self.to)}"
        else:
            parts = [
                f"{name} {_plain(bound)}"
                for name, bound in (
                    ("of at least", self.least),
                    ("above", self.above),
                    ("of at most" if self.above is None else "at most", self.to),
                    ("below", self.below),
                )
                if bound is not None
            ]
            words = " and ".join(parts)
        kind = f"a power of two {words}" if self.power_of_two else f"{kind} {words}"
        return kind.strip()


SHARE = Range(0, 1)
"""A share, both ends included."""
SEED = Range(0, 2**32 - 1)
"""A seed that every generator here takes."""


def check_ranges(instance: object) -> None:
    """Refuse a dataclass instance of which a field has another type or lies outside of its range.

    Raises:
        OptionError: `FIELD: expected ..., found ...`, for the first such field; a ValueError.
        TypeError: the class has a number without a Range.
    """
    kind: Any = type(instance)  # mypy takes no class for hashable
    for name, hint in _hints(kind).items():
        check_value(name, getattr(instance, name), hint)


def check_arguments(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Check arguments by the annotations of a function or `__init__`; names that it does not have are left out.

    Errors as in `check_ranges`: `check_arguments(RGB.__init__, locals())` is the first line of a constructor.
    """
    for name, hint in _argument_hints(function).items():
        if name in values:
            check_value(name, values[name], hint)


def check_value(name: str, value: Any, annotation: Any) -> None:
    """Refuse a value that its annotation does not admit; errors as in `check_ranges`, under the given name."""
    expected = _mismatch(value, annotation, name)
    if expected is not None:
        raise OptionError(f"{name}: expected {expected}, found {show(value)}")


def show(value: Any) -> str:
    """A value in a message: its repr, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@cache
def _argument_hints(function: Callable[..., Any]) -> dict[str, Any]:
    hints = get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    return hints


def _mismatch(value: Any, annotation: Any, name: str) -> str | None:
    """None where the annotation admits the value, else what it admits in words."""
    bounds = None
    if get_origin(annotation) is Annotated:
        annotation, *extras = get_args(annotation)
        bounds = next((extra for extra in extras if isinstance(extra, Range)), None)
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _mismatch_of_union(value, get_args(annotation), name)
    if origin is Literal:
        choices = get_args(annotation)
        known = any(type(value) is type(choice) and value == choice for choice in choices)
        return None if known else f"one of {', '.join(map(str, choices))}"
    if origin in (tuple, list):
        return _mismatch_of_items(value, get_args(annotation), name)
    if annotation in (int, float):
        return _mismatch_of_number(value, annotation, bounds, name)
    return _mismatch_of_kind(value, origin or annotation)


def _mismatch_of_union(value: Any, choices: Sequence[Any], name: str) -> str | None:
    if value is None and type(None) in choices:
        return None
    reasons = [_mismatch(value, choice, name) for choice in choices if choice is not type(None)]
    return None if None in reasons else " or ".join(reason for reason in reasons if reason is not None)


def _mismatch_of_items(value: Any, items: Sequence[Any], name: str) -> str | None:
    """A fixed number of items, or one or more of a kind where the annotation ends in `...`."""
    if not isinstance(value, tuple | list):
        return "a list"
    if len(items) != 2 or items[1] is not Ellipsis:
        if len(value) != len(items):
            return f"{len(items)} values"
        pairs = list(zip(value, items, strict=True))
    else:
        if not value:
            return "at least one value"
        pairs = [(item, items[0]) for item in value]
    reasons = (_mismatch(item, kind, name) for item, kind in pairs)
    reason = next((reason for reason in reasons if reason is not None), None)
    return None if reason is None else f"each value to be {reason}"


def _mismatch_of_number(value: Any, kind: type, bounds: Range | None, name: str) -> str | None:
    if bounds is None:
        raise TypeError(f"{name}: a number needs a Range in its annotation")
    words = bounds.describe("a whole number" if kind is int else "a finite number")
    right = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return None if right and bounds.holds(value) else words


def _mismatch_of_kind(value: Any, kind: Any) -> str | None:
    kinds: dict[Any, tuple[type | tuple[type, ...], str]] = {
        bool: (bool, "true or false"),
        str: (str, "text"),
        Path: (Path, "a path"),
        dict: (Mapping, "values by name"),
    }
    if kind not in kinds:
        return None  # a nested configuration: it has checked itself
    wanted, words = kinds[kind]
    return None if isinstance(value, wanted) else words


def _is_power_of_two(value: float) -> bool:
    return value >= 1 and float(value).is_integer() and int(value) & (int(value) - 1) == 0


def _plain(bound: float) -> str:
    """A bound without trailing zeros: 1, 0.5, 1e-06, 4294967295."""
    return str(int(bound)) if float(bound).is_integer() and abs(bound) < 1e15 else f"{bound:g}"
