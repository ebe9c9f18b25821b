"""The slot side of slot attention with columns split over programs, against the textbook in float64.

Run by Triton's interpreter without a GPU, compiled with one; the algebra at 1e-9 where float64 runs.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aime.kernels import dispatch
from aime.kernels.slot_attention.reference import slot_attention_reference
from tests.kernels.test_slot_attention import OnTarget, leaves_of, random_inputs, random_weights, run

pytestmark = [
    pytest.mark.op_targets("slot_attention"),
    pytest.mark.skipif(not dispatch.TRITON_INSTALLED, reason="triton is not installed"),
]


@pytest.fixture(autouse=True)
def _only_triton(request: pytest.FixtureRequest) -> None:
    if "target" in request.fixturenames and request.getfixturevalue("target").backend != "triton":
        pytest.skip("others have no such structure")


def _narrow(monkeypatch: pytest.MonkeyPatch, block: int = 16, least: int = 4) -> None:
    """Split from `least` channels on, in tiles so small that little work has several of each kind."""
    from aime.kernels.slot_attention import fused_entry, slot_side

    tile = slot_side.Tile(columns=16, depth=16, warps=4, stages=3)
    monkeypatch.setattr(slot_side, "COLUMNS", (slot_side.Columns(least, 0, block, tile, tile, "predicted"),))
    monkeypatch.setattr(fused_entry, "ENTRY_WIDTH", 0)


def _agrees(target: Callable[..., Any], sizes: tuple[int, ...], bias: bool, **options: Any) -> None:
    """Slots, attention and all gradients equal the textbook's."""
    batch, count, slots, channels, width, hidden = sizes
    tensors = (*random_inputs(batch, count, slots, channels, width), random_weights(channels, width, hidden, bias))
    exact = run(slot_attention_reference, leaves_of(*tensors, torch.float64), **options)
    double = target.device == "cpu"  # type: ignore[attr-defined]
    ours = run(OnTarget(target), leaves_of(*tensors, torch.float64 if double else torch.float32), **options)
    names = ("slots", "attention", *(f"gradient {place}" for place in range(len(ours[2]))))
    for name, value, truth in zip(names, (*ours[:2], *ours[2]), (*exact[:2], *exact[2]), strict=True):
        error = (value.double() - truth).norm()
        assert error <= (1e-9 if double else 2e-4) * truth.norm() + (1e-10 if double else 1e-5), name


@pytest.mark.parametrize(
    ("sizes", "bias", "options"),
    [
        ((2, 9, 9, 20, 128, 70), True, {"iters": 1}),  # two blocks of rows; channels and hidden layer that are ragged
        ((1, 24, 5, 20, 192, 100), False, {"iters": 2, "activation": "relu"}),
    ],
)
def test_the_sizes_that_the_table_splits(
    target: Callable[..., Any], sizes: tuple[int, ...], bias: bool, options: dict[str, Any]
) -> None:
    from aime.kernels.slot_attention.slot_side import columns

    assert columns(sizes[4], sizes[0] * sizes[2], 1) is not None
    _agrees(target, sizes, bias, **options)


@pytest.mark.parametrize(
    ("masked", "implicit", "activation"), [(False, False, "gelu"), (True, True, "gelu"), (True, False, "relu")]
)
def test_variants(
    target: Callable[..., Any], masked: bool, implicit: bool, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _narrow(monkeypatch)
    mask = torch.rand(3, 11, generator=torch.Generator().manual_seed(2)) < 0.6 if masked else None
    _agrees(target, (3, 11, 6, 18, 20, 35), implicit, iters=2, mask=mask, implicit=implicit, activation=activation)


def test_one_iteration_in_blocks_of_64_slots(target: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _narrow(monkeypatch, block=64)
    _agrees(target, (9, 3, 8, 5, 17, 16), bias=True, iters=1)


class _Twice:
    """A kernel whose launches run two times."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            for _ in range(2):
                self.kernel[grid](*arguments, **options)

        return launch


def test_no_launch_reads_what_it_writes(target: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that share rows run in any order on a GPU, one after another in the interpreter, where a sum in place
    would look right. Run twice, each launch must leave the same bits."""
    from aime.kernels.slot_attention import fused_columns

    _narrow(monkeypatch)
    tensors = (*random_inputs(1, 7, 9, 18, 20), random_weights(18, 20, 20, bias=True))
    once = run(OnTarget(target), leaves_of(*tensors, torch.float32), iters=2)
    kernels = [name for name in vars(fused_columns) if name.endswith("_kernel")]
    assert len(kernels) == 13
    for name in kernels:
        monkeypatch.setattr(fused_columns, name, _Twice(getattr(fused_columns, name)))
    twice = run(OnTarget(target), leaves_of(*tensors, torch.float32), iters=2)
    for value, again in zip((*once[:2], *once[2]), (*twice[:2], *twice[2]), strict=True):
        assert torch.equal(value, again)


def test_a_half_type(target: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both structures accumulate in float32 from the same rounded tensors."""
    tensors = (*random_inputs(1, 12, 3, 18, 20), random_weights(18, 20, 35))
    found = []
    for least in (512, 4):
        _narrow(monkeypatch, least=least)
        found.append(run(OnTarget(target), leaves_of(*tensors, torch.bfloat16), iters=1))
    for chain, split in zip((*found[0][:2], *found[0][2]), (*found[1][:2], *found[1][2]), strict=True):
        assert split.dtype == chain.dtype
        assert (split.double() - chain.double()).norm() <= 1e-2 * chain.double().norm() + 1e-3


def test_the_table_is_reachable_and_says_what_it_rests_on() -> None:
    from aime.kernels.slot_attention import slot_side

    table = slot_side.COLUMNS
    assert [slot_side.columns(row.width, row.rows, 1) for row in table] == list(table)
    assert all(row.basis == "predicted" or row.basis.startswith("measured on ") for row in table)
    least = min(row.width for row in table)
    assert slot_side.columns(least - 1, 10_000, 1) is None
    assert slot_side.columns(least, 10_000, 2) is None  # several heads keep a program for 16 slots
    for rows, width in ((256, 128), (256, 256), (1024, 128), (1024, 256)):  # far more programs than rows / 16
        row = slot_side.columns(width, rows, 1)
        assert row is not None
        assert -(-rows // row.block) * -(-width // row.product.columns) >= min(2 * rows // 16, 64)


def test_the_benchmark_times_both_structures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the table that no benchmark reaches could never be confirmed."""
    from aime.kernels.slot_attention import slot_side
    from bench.kernels import cases

    seen: list[int] = []
    table = slot_side.COLUMNS
    [(name, run)] = cases.unsplit(lambda: seen.append(len(slot_side.COLUMNS)), 256, 128)
    run()
    assert seen == [0] and table == slot_side.COLUMNS and name.startswith("aime triton")
    assert not list(cases.unsplit(run, 256, 64))
    sizes: list[tuple[int, ...]] = []
    monkeypatch.setattr(cases, "slot_case", lambda device, compiled, kind, *size: sizes.append(size))
    list(cases.slot_cases("cuda", False, True))
    assert {slot_side.columns(size[3], size[0] * size[2], 1) for size in sizes} == {None, *table}
