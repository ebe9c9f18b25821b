"""Ranges: every field of a configuration is checked by its annotation, and every number has to have one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from aime.ranges import SHARE, Range, check_ranges, check_value


@dataclass(frozen=True)
class Sizes:
    count: Annotated[int, Range(1, 8)] = 3
    rate: Annotated[float, Range(above=0, to=1)] = 0.5
    limit: Annotated[float, Range(above=0)] | None = None
    channels: tuple[Annotated[int, Range(1, 9)], ...] = (1, 2)
    box: tuple[Annotated[float, SHARE], Annotated[float, SHARE]] = (0.0, 1.0)
    mode: Literal["fast", "exact"] = "fast"
    side: Annotated[int, Range(1, 64, power_of_two=True)] = 4
    masks: bool = True
    name: str = "a"

    def __post_init__(self) -> None:
        check_ranges(self)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"count": np.int64(8), "rate": 1, "limit": 1e300, "channels": [9], "mode": "exact", "side": 64},
        {"limit": None, "box": (1, 0), "masks": False, "name": ""},
    ],
)
def test_what_the_annotations_admit_is_taken(values: dict[str, Any]) -> None:
    Sizes(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count: expected a whole number from 1 to 8, found 0"),
        ({"count": 2.0}, "count: expected a whole number from 1 to 8, found 2.0"),
        ({"count": True}, "count: expected a whole number from 1 to 8, found True"),
        ({"count": "2"}, "count: expected a whole number from 1 to 8, found '2'"),
        ({"count": None}, "count: expected a whole number from 1 to 8, found None"),
        ({"rate": math.nan}, "rate: expected a finite number above 0 and at most 1, found nan"),
        ({"rate": 0}, "rate: expected a finite number above 0 and at most 1, found 0"),
        ({"limit": math.inf}, "limit: expected a finite number above 0, found inf"),
        ({"limit": -1.0}, "limit: expected a finite number above 0, found -1.0"),
        ({"channels": ()}, "channels: expected at least one value, found ()"),
        ({"channels": (1, 0)}, "channels: expected each value to be a whole number from 1 to 9, found (1, 0)"),
        ({"channels": 3}, "channels: expected a list, found 3"),
        ({"box": (0.0,)}, "box: expected 2 values, found (0.0,)"),
        ({"mode": "slow"}, "mode: expected one of fast, exact, found 'slow'"),
        ({"side": 6}, "side: expected a power of two from 1 to 64, found 6"),
        ({"masks": 1}, "masks: expected true or false, found 1"),
        ({"name": 7}, "name: expected text, found 7"),
    ],
)
def test_anything_else_is_refused_with_field_expectation_and_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as refused:
        Sizes(**values)
    assert str(refused.value) == message


def test_a_number_without_a_range_is_an_error_of_the_class() -> None:
    @dataclass
    class Careless:
        count: int = 1

    with pytest.raises(TypeError, match="count: a number needs a Range"):
        check_value("count", 1, int)
    assert Careless().count == 1


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(ValueError, match="count") as refused:
        Sizes(count="x" * 10_000)  # type: ignore[arg-type]
    assert len(str(refused.value)) < 150
