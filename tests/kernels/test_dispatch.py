"""Backend choice and the messages of shape errors."""

import re

import pytest
import torch

from aime import kernels
from aime.kernels import dispatch, use_backend, vq_lookup
from aime.kernels.dispatch import Preference, choose_backend
from aime.kernels.shapes import accumulation_dtype, check_floating, check_shape

OBSTACLES = {"torch": None, "triton": "needs a CUDA tensor, found cpu"}


def test_no_request_takes_the_backend_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch.PREFERRED, "op", {"cpu": (Preference("cpp"),)})
    monkeypatch.setattr(dispatch, "BACKEND_FROM_ENVIRONMENT", None)
    assert choose_backend("op", None, "cpu", {"torch": None, "cpp": None}) == "cpp"
    assert choose_backend("op", None, "cpu", {"torch": None, "cpp": "not built"}) == "torch"
    assert choose_backend("op", None, "cpu", {"torch": None}) == "torch"
    assert choose_backend("op", None, "cuda", {"torch": None, "cpp": None}) == "torch"


def test_the_width_decides_where_the_table_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "BACKEND_FROM_ENVIRONMENT", None)
    (wide, least), (narrow, *_) = dispatch.PREFERRED["vq_lookup"]["cuda"]
    free, taken = {"torch": None, wide: None, narrow: None}, {"torch": None, wide: "half types", narrow: None}
    assert choose_backend("vq_lookup", None, "cuda", free, least) == wide == "cublas"
    assert choose_backend("vq_lookup", None, "cuda", free, least - 1) == narrow == "triton"
    assert choose_backend("vq_lookup", None, "cuda", taken, least) == narrow
    assert choose_backend("vq_lookup", None, "cuda", {"torch": None}, least) == "torch"
    assert choose_backend("vq_lookup", None, "cpu", free, least) == "torch"
    assert choose_backend("vq_lookup", "torch", "cuda", free, least) == "torch"


def test_the_table_names_ops_and_backends_that_there_are_and_says_what_is_predicted() -> None:
    for op, devices in dispatch.PREFERRED.items():
        assert callable(getattr(kernels, op))
        assert devices.keys() <= {"cpu", "cuda"}
        for entry in (entry for entries in devices.values() for entry in entries):
            assert entry.backend in {"cpp", "triton", "cublas"}
    assert set(dispatch.PREDICTED["cuda"]) < set(dispatch.PREFERRED)


def test_a_request_is_followed() -> None:
    assert choose_backend("vq_lookup", "torch", "cpu", {"torch": None, "cpp": None}) == "torch"


def test_a_request_that_cannot_run_says_why() -> None:
    with pytest.raises(RuntimeError, match="op: backend 'triton' cannot run: needs a CUDA tensor, found cpu"):
        choose_backend("op", "triton", "cpu", OBSTACLES)


def test_an_unknown_backend_names_the_near_one() -> None:
    with pytest.raises(
        ValueError, match=re.escape("unknown backend 'trition', expected one of ['torch', 'triton']; did")
    ):
        choose_backend("op", "trition", "cpu", OBSTACLES)


def test_the_environment_overrides_the_preference_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "BACKEND_FROM_ENVIRONMENT", "torch")
    assert choose_backend("vq_lookup", None, "cpu", {"torch": None, "cpp": None}) == "torch"
    assert choose_backend("vq_lookup", "cpp", "cpu", {"torch": None, "cpp": None}) == "cpp"
    monkeypatch.setattr(dispatch, "BACKEND_FROM_ENVIRONMENT", "nonsense")
    with pytest.raises(ValueError, match="from AIME_KERNELS_BACKEND"):
        choose_backend("op", None, "cpu", OBSTACLES)


def test_a_block_orders_a_backend_for_all_ops_or_some() -> None:
    both = {"torch": None, "cpp": None}
    with use_backend("cpp"):
        assert choose_backend("mixture_kl", None, "cpu", both) == "cpp"
        assert choose_backend("mixture_kl", "torch", "cpu", both) == "torch"  # an argument decides
        with use_backend("torch", "mixture_kl"):
            assert choose_backend("mixture_kl", None, "cpu", both) == "torch"
            assert choose_backend("vq_lookup", None, "cpu", both) == "cpp"
            with use_backend("cpp"):
                assert choose_backend("mixture_kl", None, "cpu", both) == "cpp"
        with pytest.raises(ValueError, match=re.escape("unknown backend 'cpp' (from use_backend)")):
            choose_backend("op", None, "cpu", OBSTACLES)
    assert not dispatch.ORDERED
    with use_backend("triton"), pytest.raises(RuntimeError, match="op: backend 'triton' cannot run: needs a CUDA"):
        choose_backend("op", None, "cpu", OBSTACLES)


def test_a_compiled_call_follows_the_block() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(vq_lookup, fullgraph=True, backend="eager")
    x, codebook = torch.zeros(3, 8), torch.ones(2, 8)
    assert compiled(x, codebook).indices.tolist() == [0, 0, 0]
    with use_backend("nonsense"), pytest.raises(Exception, match="unknown backend"):
        compiled(x, codebook)
    torch._dynamo.reset()


def test_shape_errors_name_axes_expected_and_found() -> None:
    sizes = {"N": 4, "D": 2}
    with pytest.raises(
        ValueError, match=re.escape("op: means: expected shape (N=4, K, D=2), found (4, 3, 5); axis D is 5")
    ):
        check_shape("op", "means", torch.zeros(4, 3, 5), ("N", "K", "D"), dict(sizes))
    with pytest.raises(
        ValueError, match=re.escape("op: means: expected shape (N=4, D=2), found (4,); expected 2 axes")
    ):
        check_shape("op", "means", torch.zeros(4), ("N", "D"), sizes)


def test_integers_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="op: x: expected float32, bfloat16, float16 or float64, found torch.int64"):
        check_floating("op", x=torch.zeros(3, dtype=torch.int64))


def test_devices_must_agree() -> None:
    with pytest.raises(ValueError, match="op: y is on meta, but x is on cpu"):
        check_floating("op", x=torch.zeros(3), y=torch.zeros(3, device="meta"))


def test_accumulation_is_float32_or_float64() -> None:
    assert accumulation_dtype(torch.zeros(1, dtype=torch.bfloat16)) == torch.float32
    assert accumulation_dtype(torch.zeros(1), torch.zeros(1, dtype=torch.float64)) == torch.float64
