"""Every Triton launch happens with the tensors' device as the current one."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

from aime.kernels import dispatch, launch

KERNELS = Path(launch.__file__).parent
SOURCES = sorted([*KERNELS.glob("*/triton*.py"), *KERNELS.glob("*/fused*.py")])


def launches(function: ast.FunctionDef) -> bool:
    """Whether `kernel[grid](...)` stands in the function."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Subscript)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id.endswith("_kernel")
        for node in ast.walk(function)
    )


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]


LAUNCHERS = [
    pytest.param(path, node.name, id=f"{path.parent.name}/{path.stem}.{node.name}")
    for path in SOURCES
    for node in functions(path)
    if launches(node)
]


STARTING_WITH_A_TENSOR = {"SlotSide"}
"""Tuples whose first item is a tensor on the device of all others."""


def test_launchers_are_found() -> None:
    assert len(LAUNCHERS) >= 14
    names = [name for path in SOURCES for name in ast.walk(ast.parse(path.read_text())) if isinstance(name, ast.Call)]
    calls = [call for call in names if isinstance(call.func, ast.Subscript)]
    inside = [
        node
        for path in SOURCES
        for function in functions(path)
        if launches(function)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    ]
    assert len(calls) == len(inside)  # nothing launches outside of these functions


@pytest.mark.parametrize(("path", "name"), LAUNCHERS)
def test_every_launcher_is_guarded(path: Path, name: str) -> None:
    function = next(node for node in functions(path) if node.name == name)
    decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
    assert decorators == ["launcher"], "without kernels.launch.launcher it launches on whatever device is current"
    first = ast.unparse(function.args.args[0].annotation or ast.Constant(None))
    assert "Tensor" in first or first in STARTING_WITH_A_TENSOR, "its first is no tensor"


class OnSecondDevice(Tensor):
    """A CPU tensor that says it is on cuda:1."""

    is_cuda = True  # type: ignore[assignment]
    device = torch.device("cuda:1")  # type: ignore[assignment]

    def get_device(self) -> int:
        return 1


@contextmanager
def devices(current: int) -> Iterator[list[int]]:
    """Fake CUDA with a current device; yields the stack of entered ones."""
    stack = [current]

    @contextmanager
    def enter(device: torch.device) -> Iterator[None]:
        stack.append(device.index)
        try:
            yield
        finally:
            stack.pop()

    with (
        mock.patch.object(torch.cuda, "current_device", side_effect=lambda: stack[-1]),
        mock.patch.object(launch, "on_device", enter),
    ):
        yield stack


def test_the_tensors_device_is_current_inside_and_the_old_one_after() -> None:
    @launch.launcher
    def fails(x: Tensor, *, fail: bool) -> int:
        if fail:
            raise ValueError("inside")
        return torch.cuda.current_device()

    x = torch.zeros(3).as_subclass(OnSecondDevice)
    with devices(current=0) as stack:
        assert fails(x, fail=False) == 1
        assert stack == [0]
        with pytest.raises(ValueError, match="inside"):
            fails(x, fail=True)
        assert stack == [0]


def test_a_tuple_that_begins_with_a_tensor_stands_where_that_is() -> None:
    @launch.launcher
    def current(side: tuple[Tensor, int]) -> int:
        return torch.cuda.current_device()

    with devices(current=0):
        assert current((torch.zeros(3).as_subclass(OnSecondDevice), 2)) == 1


def test_nothing_is_entered_where_the_device_is_current_or_the_cpu() -> None:
    @launch.launcher
    def depth(x: Tensor) -> int:
        return len(stack)

    with devices(current=1) as stack:
        assert depth(torch.zeros(3).as_subclass(OnSecondDevice)) == 1
        assert depth(torch.zeros(3)) == 1


def test_a_first_argument_that_is_no_tensor_is_named() -> None:
    @launch.launcher
    def takes(x: object) -> None:
        return None

    with pytest.raises(TypeError, match="takes: expected a tensor as first argument, found <class 'int'>"):
        takes(3)


@pytest.mark.skipif(not dispatch.TRITON_INSTALLED, reason="triton is not installed")
@pytest.mark.parametrize(("path", "name"), LAUNCHERS)
def test_each_launcher_enters_the_tensors_device(path: Path, name: str) -> None:
    """The imported launchers, called with a tensor of cuda:1, reach their body under cuda:1."""
    module = importlib.import_module(f"aime.kernels.{path.parent.name}.{path.stem}")
    entered: list[torch.device] = []

    class Entered(Exception):
        pass

    def stop(device: torch.device) -> None:
        entered.append(device)
        raise Entered

    with (
        mock.patch.object(torch.cuda, "current_device", return_value=0),
        mock.patch.object(launch, "on_device", stop),
        pytest.raises(Entered),
    ):
        getattr(module, name)(torch.zeros(3).as_subclass(OnSecondDevice))
    assert entered == [torch.device("cuda:1")]
