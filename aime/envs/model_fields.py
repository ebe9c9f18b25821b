"""Fields of the MuJoCo model that a user sets: masses, frictions, gains, colours, for physics randomisation."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aime.envs.tasks import near

Fields = Mapping[str, NDArray[np.floating[Any]]]
#: (environment, its generator) -> field -> values, for that environment's next episode
Randomise = Callable[[int, np.random.Generator], Mapping[str, ArrayLike]]


class ModelFields:
    """Turns values of mjModel's fields into the bytes in which a model then differs from the task's own."""

    def __init__(self, model: Any, batch: Any) -> None:
        mujoco = importlib.import_module("mujoco")
        self._set_const = mujoco.mj_setConst
        self._batch = batch
        self._scratch = copy.copy(model)
        self._data = mujoco.MjData(model)
        self._names = [name for name in dir(model) if not name.startswith("_") and _is_field(model, name)]

    def check(self, name: str, values: ArrayLike) -> NDArray[np.floating[Any]]:
        """`values` in the shape and type of the field; they are broadcast to it.

        Raises:
            ValueError: no such field (near names are suggested), a shape that does not fit, or a number not finite.
        """
        self._require(name)
        field = getattr(self._scratch, name)
        try:
            given = np.asarray(values, dtype=field.dtype)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{name} must be real numbers: {error}") from None
        try:
            fitting = np.broadcast_to(given, field.shape).copy()
        except ValueError:
            raise ValueError(f"{name} of one environment has shape {field.shape}, got {given.shape}") from None
        if not np.isfinite(fitting).all():
            raise ValueError(f"{name} must be finite, entry {int(np.argmax(~np.isfinite(fitting).ravel()))} is not")
        return fitting

    def check_all(self, drawn: Any) -> Fields:
        """What a `Randomise` function returned, each entry as `check` gives it; ValueError also for no mapping."""
        if not isinstance(drawn, Mapping):
            message = f"randomise must return a mapping of fields to values, got {type(drawn).__name__}"
            raise ValueError(message)  # noqa: TRY004 - one kind of error for every wrong value
        return {name: self.check(name, values) for name, values in drawn.items()}

    def original(self, name: str) -> NDArray[np.floating[Any]]:
        """A copy of the task's own values.

        Raises:
            ValueError: no such field; near names are suggested.
        """
        self._require(name)
        self._batch.restore_model(self._scratch._address)
        values: NDArray[np.floating[Any]] = getattr(self._scratch, name).copy()
        return values

    def changes(self, fields: Fields) -> list[tuple[int, bytes]]:
        """The (offset, bytes) runs of a model with these fields and the constants that follow from them."""
        address = self._scratch._address
        self._batch.restore_model(address)
        for name, values in fields.items():
            getattr(self._scratch, name)[...] = values
        # mj_setConst leaves an unchanged model of the suite as it is, bit for bit.
        self._set_const(self._scratch, self._data)
        return list(self._batch.compare_model(address))

    def _require(self, name: str) -> None:
        if not isinstance(name, str) or name not in self._names:
            raise ValueError(f"the model has no floating-point field {name!r}: {near(str(name), self._names)}")


def _is_field(model: Any, name: str) -> bool:
    value = getattr(model, name)
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim > 0 and value.size > 0
