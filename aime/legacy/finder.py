"""Makes the modules of the table importable, without files: two finders on `sys.meta_path`.

Modules that the documents qualify (`src.world_model`, `VRNN.RGB`) are found before any file of that name: in a checkout
of the original they would lead to its code. Bare ones (`models`, `training`) are found after all files: a script's own
module of such a name is the script's.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

from aime.legacy.names import MODULES, PROGRAMS, canonical, is_package


class LegacyFinder(MetaPathFinder):
    """Finds the modules of the table.

    Args:
        first: whether this one stands before the file system: it then finds qualified modules alone.
    """

    def __init__(self, *, first: bool) -> None:
        self.first = first

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """The specification of a module of the table, None for any other."""
        name = canonical(fullname)
        if name not in MODULES and not is_package(name):
            return None
        qualified = name != fullname or name.startswith("VRNN.")
        if self.first and not (qualified and name in MODULES):
            return None
        return ModuleSpec(fullname, LegacyLoader(name), origin="aime.legacy", is_package=is_package(name))


class LegacyLoader(InspectLoader):
    """Loads one module of the table: names that are looked up when they are asked for."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:  # noqa: ARG002
        """The default module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its names, which import what they stand for when they are first read."""
        names = MODULES.get(self.name, {})
        module.__doc__ = f"{self.name} of the original AIME, by the names of its documents; see aime.legacy."
        if isinstance(names, dict):
            module.__dict__["__all__"] = list(names)

        def read(attribute: str) -> Any:
            if attribute.startswith("__"):
                raise AttributeError(attribute)
            value = resolve(self.name, attribute)
            module.__dict__[attribute] = value
            return value

        module.__dict__["__getattr__"] = read

    def is_package(self, fullname: str) -> bool:
        """Whether the table has modules below this one."""
        return is_package(canonical(fullname))

    def get_source(self, fullname: str) -> str | None:
        """What `python -m` runs: the program that this module is here; nothing for a module that is none."""
        program = PROGRAMS.get(canonical(fullname))
        return None if program is None else f"import sys\nfrom {program} import main\nsys.exit(main())\n"

    def get_code(self, fullname: str) -> CodeType | None:
        """`get_source`, compiled."""
        source = self.get_source(fullname)
        return None if source is None else compile(source, f"<{fullname}>", "exec")


def resolve(module: str, attribute: str) -> Any:
    """The object that an entry of the table names.

    Raises:
        AttributeError: the table has no such name (near ones are listed), or what it names is not in this version.
    """
    names = MODULES.get(module, {})
    if isinstance(names, str):
        target, found = names, attribute
    elif attribute in names:
        target, _, found = names[attribute].partition(":")
    else:
        near = difflib.get_close_matches(attribute, names, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(names) or 'modules alone'}"
        raise AttributeError(f"module {module} of the original AIME has no {attribute!r} here{hint}")
    try:
        return getattr(importlib.import_module(target), found)
    except ModuleNotFoundError as error:
        if error.name is None or not target.startswith(error.name):
            raise  # something that it needs is missing
        raise AttributeError(f"{module}.{attribute} would be {target}.{found}, which this version has not") from error


FINDERS = (LegacyFinder(first=True), LegacyFinder(first=False))


def install() -> None:
    """Put the finders in their places; once, however often it is called."""
    if FINDERS[0] not in sys.meta_path:
        sys.meta_path.insert(0, FINDERS[0])
        sys.meta_path.append(FINDERS[1])


def remove() -> None:
    """Take the finders away again, and the modules that they made."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in FINDERS]
    made = [
        name
        for name, module in sys.modules.items()
        if isinstance(getattr(getattr(module, "__spec__", None), "loader", None), LegacyLoader)
    ]
    for name in made:
        del sys.modules[name]
