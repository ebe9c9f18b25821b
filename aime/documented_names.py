"""Constructor arguments of the original AIME's documents: what a table of them can say, and how a call is translated.

The tables, one a class, are in `aime.documented_tables`.

A name that the constructor has itself is never looked up here: a table holds only what the documents call otherwise.
What happens to a documented argument is said by its entry:

    "num_codes"         a string: the constructor's own name for it
    Becomes(function)   the own arguments that it stands for, computed from its value; those given otherwise win
    MOVES               where the module lies: it is moved there when it is made (`device`)
    Kept("grad_clip")   nothing of the constructor's; kept in `training_options`, which the trainer reads
    Only(value, advice) what the class does in any case; another value warns once with the advice
    Retired(advice)     nothing any more; warns once and says what to use
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


class RetiredArgumentWarning(UserWarning):
    """A documented argument that means nothing any more."""


@dataclass(frozen=True)
class Becomes:
    """Stands for the arguments that the function makes of its value, where they are not given by their own names."""

    make: Callable[[Any], Mapping[str, Any]]
    says: str
    """What that is, for the documentation."""


@dataclass(frozen=True)
class Moves:
    """A place, to which the finished module is moved."""


@dataclass(frozen=True)
class Kept:
    """Kept as this entry of `training_options`, made into another value where `make` is given."""

    option: str
    make: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Only:
    """What happens anyway; any other value is advised against, once."""

    value: Any
    advice: str


@dataclass(frozen=True)
class Retired:
    """Accepted without effect; the advice is given once."""

    advice: str


MOVES = Moves()
Entry = str | Becomes | Moves | Kept | Only | Retired


@dataclass(frozen=True)
class Table:
    """The documented arguments of a class, and values that the documents leave out where the constructor asks."""

    entries: Mapping[str, Entry]
    assumed: Mapping[str, Any] = field(default_factory=dict)


SAID: set[tuple[str, str]] = set()
"""(class, argument) of the warnings that were given."""


@dataclass
class Translated:
    """A call in the constructor's own names, and what is left to do with what it makes."""

    own: dict[str, Any] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    """Own name -> the name that was given."""
    device: Any = None
    kept: dict[str, Any] = field(default_factory=dict)

    def put(self, name: str, value: Any, given: str, owner: str) -> None:
        """Set an own argument; twice is an error unless it is the same value."""
        if name in self.own and self.own[name] is not value and self.own[name] != value:
            raise TypeError(
                f"{owner}: {name} is given twice, {show(self.own[name])} as {self.source[name]!r} and {show(value)} as "
                f"{given!r}"
            )
        self.own[name], self.source[name] = value, given


def show(value: Any) -> str:
    """A value, short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def translate(
    owner: str, table: Mapping[str, Entry], names: Mapping[str, Any], native: Collection[str], *, open_ended: bool
) -> Translated:
    """A constructor's keyword arguments in its own names.

    Args:
        owner: the class, for messages.
        table: its documented names.
        names: what was given.
        native: the constructor's own names.
        open_ended: the constructor takes further names itself and knows which are wrong.

    Raises:
        TypeError: a name that is neither (near ones are listed), or one argument given twice with two values.
    """
    found, derived = Translated(), dict[str, tuple[Any, str]]()
    for name, value in names.items():
        entry = None if name in native else table.get(name)
        if entry is None:
            if name not in native and not open_ended:
                near = difflib.get_close_matches(name, [*native, *table], n=3, cutoff=0.5)
                hint = f"; did you mean {' or '.join(near)}?" if near else f"; its own are {', '.join(native)}"
                raise TypeError(f"{owner} has no argument {name!r}{hint}")
            found.put(name, value, name, owner)
        elif isinstance(entry, str):
            found.put(entry, value, name, owner)
        elif isinstance(entry, Becomes):
            made = entry.make(value)
            derived |= {own: (part, name) for own, part in made.items()}
        elif isinstance(entry, Moves):
            found.device = value
        elif isinstance(entry, Kept):
            found.kept[entry.option] = value if entry.make is None else entry.make(value)
        elif isinstance(entry, Retired) or value != entry.value:
            advise(owner, name, value, entry.advice)
    for own, (part, name) in derived.items():
        if own not in found.own:
            found.put(own, part, name, owner)
    return found


def advise(owner: str, name: str, value: Any, advice: str) -> None:
    """Warn, the first time that this class is given this argument."""
    if (owner, name) not in SAID:
        SAID.add((owner, name))
        warnings.warn(f"{owner}: {name}={show(value)} has no effect: {advice}", RetiredArgumentWarning, stacklevel=4)
