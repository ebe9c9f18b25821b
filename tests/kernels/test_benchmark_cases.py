"""The kernels' benchmark: rivals in plain lines compute what we compute, every kind of case runs, floors are peaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aime.kernels import SlotAttentionWeights, slot_attention, vq_lookup
from aime.kernels.dispatch import PREFERRED
from bench.kernels import cases, measure, rivals
from bench.kernels.__main__ import compare
from bench.kernels.case import FAST, FLOAT32, HALVES, Case, Kind

ROWS, CODES, WIDTH = 70, 37, 12


def drawn() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, WIDTH, generator=generator), torch.randn(CODES, WIDTH, generator=generator)


@pytest.mark.parametrize("name", ["addmm_argmin", "cdist_argmin", "streamed_assign", "euclidean_codebook"])
def test_plain_lookups_find_our_codes(name: str) -> None:
    x, codebook = drawn()
    options = {"tile": 16} if name == "streamed_assign" else {}
    indices, quantized = getattr(rivals, name)(x, codebook, **options)
    ours = vq_lookup(x, codebook)
    assert torch.equal(indices, ours.indices.long())
    assert torch.allclose(quantized, ours.quantized, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "activation"), [(rivals.iterated_attention, "relu"), (cases.absorbed_attention, "gelu")]
)
def test_plain_slot_attention_is_ours(function: Any, activation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    width = 8
    shapes = [(width,)] * 4 + [(width, width)] * 3 + [(3 * width, width)] * 2 + [(3 * width,)] * 2
    shapes += [(width,)] * 2 + [(2 * width, width), (2 * width,), (width, 2 * width), (width,)]
    weights = SlotAttentionWeights(*(0.4 * torch.randn(*shape, generator=generator) for shape in shapes))
    inputs, initial = (torch.randn(3, n, width, generator=generator) for n in (20, 4))
    slots, _ = function(inputs, initial, weights, 3)
    assert torch.allclose(slots, slot_attention(inputs, initial, weights, 3, activation=activation)[0], atol=1e-4)


@pytest.mark.parametrize("kind", [FLOAT32, *HALVES, FAST], ids=lambda kind: kind.suffix or "float32")
def test_every_kind_of_case_runs(kind: Kind) -> None:
    """Those of a GPU too, whose tables are made by the same lines."""
    found = [cases.vq_case("cpu", False, kind, ROWS, CODES, WIDTH)]
    if kind is not FAST:
        found.append(cases.slot_case("cpu", False, kind, 2, 12, 3, 8, 2))
    for case in found:
        assert case.size.endswith(kind.suffix)
        assert {name for name in case.runs if name.startswith("aime")} >= {"aime torch"}
        for name, run in case.runs.items():
            assert run() is not None, name


def test_every_op_whose_backend_a_table_chooses_is_measured() -> None:
    """A row of dispatch.PREFERRED that no benchmark can confirm would stay a prediction for ever."""
    assert {case.op for case in cases.cases("cpu", False, list(cases.CASES), large=False)} == set(PREFERRED)


def test_ratios_are_of_medians_and_of_least_times() -> None:
    case = cases.vq_case("cpu", False, FLOAT32, ROWS, CODES, WIDTH)
    rows = measure.measure(case, "cpu", 9, 0.0, None)
    assert all(row["rounds"] == measure.LEAST_ROUNDS and row["device_milliseconds"] is None for row in rows)
    by_name = {row["implementation"]: row for row in rows}
    for ratio in compare(rows):
        mine, peer = by_name[f"aime {ratio['backend']}"], by_name[ratio["peer"]]
        assert ratio["ratio"] == peer["milliseconds"] / mine["milliseconds"]
        assert ratio["least_ratio"] == peer["least_milliseconds"] / mine["least_milliseconds"]
        assert ratio["device_ratio"] is None


@pytest.mark.parametrize(("clock", "expected"), [("graph", 4.0), ("events (RuntimeError in capture)", None)])
def test_times_on_the_device_are_compared_where_both_are_graphs(clock: str, expected: float | None) -> None:
    """Events around a call that cannot be captured time the host too: no ratio of kernels."""
    row = {"op": "vq_lookup", "size": "", "milliseconds": 1.0, "least_milliseconds": 1.0}
    ours = {**row, "implementation": "aime triton", "device_milliseconds": 0.25, "device_clock": "graph"}
    rival = {**row, "implementation": "textbook", "device_milliseconds": 1.0, "device_clock": clock}
    (found,) = compare([ours, rival])
    assert found["device_ratio"] == expected


def test_floors_are_peaks_of_tensor_cores_where_products_use_them() -> None:
    floor = measure.floor_of_sheet(measure.DATA_SHEETS["H100"])
    flops, moved = 2.0 * 65536 * 8192 * 256, 1e6

    def least(kind: str, products: float = flops) -> float:
        case = Case("vq_lookup", "", {}, flops, moved, moved, moved, products=products, kind=kind)
        return floor.milliseconds(case)

    assert least("half") == pytest.approx(0.278, rel=0.01)  # the design's figures for this size, in ms
    assert least("tf32") == pytest.approx(0.555, rel=0.01)
    assert least("tf32x3") == pytest.approx(1.666, rel=0.01)
    assert least("float32") == pytest.approx(4.1, rel=0.01)
    assert least("half", flops / 2) == pytest.approx(
        0.139 + 2.05, rel=0.01
    )  # what is no product stays on the vector units


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_time_on_the_device_is_a_graphs_or_says_why_not() -> None:
    x = torch.randn(512, 512, device="cuda")
    alone, clock = measure.device_milliseconds(lambda: x @ x, "cuda")
    assert alone is not None and alone > 0 and clock == "graph"
    alone, clock = measure.device_milliseconds(lambda: float((x @ x).sum()), "cuda")
    assert alone is not None and alone > 0 and clock.startswith("events")
