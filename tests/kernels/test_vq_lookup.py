"""vq_lookup and vq_statistics against the direct distance in float64."""

import re

import pytest
import torch
from torch import Tensor

from aime.kernels import vq_lookup, vq_statistics
from aime.kernels.vq_lookup.reference import vq_lookup_reference, vq_statistics_reference

LOOKUP_BACKENDS = ["torch"]
STATISTICS_BACKENDS = ["torch"]

lookup_backends = pytest.mark.parametrize("backend", LOOKUP_BACKENDS)
statistics_backends = pytest.mark.parametrize("backend", STATISTICS_BACKENDS)


def assert_same_or_tied(x: Tensor, codebook: Tensor, indices: Tensor) -> None:
    """The chosen score equals the best one up to float32 rounding of |c|^2 / 2 - x.c; equal where the gap is larger."""
    x, codebook = x.double(), codebook.double()
    scores = codebook.square().sum(-1) / 2 - torch.einsum("nqd,qvd->nqv", x, codebook)
    best = scores.amin(-1)
    chosen = scores.gather(-1, indices.long().unsqueeze(-1)).squeeze(-1)
    # the largest term of the sum, times the unit roundoff, times sqrt(D) rounded up: 4e-7 was the worst measured
    magnitude = codebook.square().sum(-1).amax(-1) / 2 + x.norm(dim=-1) * codebook.norm(dim=-1).amax(-1)
    assert ((chosen - best) <= 1e-6 * magnitude).all()


@lookup_backends
@pytest.mark.parametrize(
    ("rows", "heads", "codes", "width"),
    [(1, 1, 1, 4), (37, 2, 11, 5), (130, 1, 64, 16), (65, 3, 100, 33), (17, 1, 257, 512)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_match_the_reference(
    backend: str, rows: int, heads: int, codes: int, width: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, heads, width, generator=generator).to(dtype)
    codebook = torch.randn(heads, codes, width, generator=generator).to(dtype)
    result = vq_lookup(x, codebook, backend=backend)
    quantized, indices, distance = vq_lookup_reference(x.double(), codebook.double())
    assert result.indices.dtype == torch.int32 and result.distance.dtype == torch.float32
    assert result.quantized.dtype == dtype
    # Gaussian codes: the float64 gap is far above rounding for every row of these seeds
    assert torch.equal(result.indices, indices)
    assert torch.equal(result.quantized.double(), quantized)
    torch.testing.assert_close(result.distance.double(), distance, rtol=1e-5, atol=1e-5)


@lookup_backends
def test_ties_go_to_the_lowest_index(backend: str) -> None:
    book = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    codebook = torch.cat((book, book, book))  # every code three times
    result = vq_lookup(book, codebook, backend=backend)
    assert torch.equal(result.indices, torch.arange(6, dtype=torch.int32))
    assert torch.equal(vq_lookup(torch.zeros(5, 8), torch.ones(40, 8), backend=backend).indices, torch.zeros(5).int())


@lookup_backends
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_adversarially_close_codes(backend: str, scale: float) -> None:
    """Codes one relative 1e-5 apart: above float32 rounding in exact arithmetic, so each must find itself or its tie."""
    generator = torch.Generator().manual_seed(3)
    centre = torch.randn(1, 1, 32, generator=generator)
    codebook = scale * (centre + 1e-5 * torch.randn(1, 200, 32, generator=generator))
    x = scale * (centre + 1e-5 * torch.randn(300, 1, 32, generator=generator))
    assert_same_or_tied(x, codebook, vq_lookup(x, codebook, backend=backend).indices)


@lookup_backends
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scale_does_not_change_the_choice(backend: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(4)
    x, codebook = torch.randn(200, 1, 16, generator=generator), torch.randn(1, 96, 16, generator=generator)
    _, expected, _ = vq_lookup_reference(x.double(), codebook.double())
    assert torch.equal(vq_lookup(scale * x, scale * codebook, backend=backend).indices, expected)


@lookup_backends
def test_gradients_match_the_reference(backend: str) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(40, 2, 6, generator=generator)
    codebook = torch.randn(2, 9, 6, generator=generator)
    weights = torch.randn(40, 2, 6, generator=generator)
    ours = [tensor.clone().requires_grad_() for tensor in (x, codebook)]
    result = vq_lookup(*ours, backend=backend)
    ((result.quantized * weights).sum() + (result.distance * weights[..., 0]).sum()).backward()
    truth = [tensor.double().requires_grad_() for tensor in (x, codebook)]
    quantized, _, distance = vq_lookup_reference(*truth)
    ((quantized * weights).sum() + (distance * weights[..., 0]).sum()).backward()
    for tensor, exact in zip(ours, truth, strict=True):
        torch.testing.assert_close(tensor.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


@lookup_backends
def test_leading_axes_and_heads(backend: str) -> None:
    generator = torch.Generator().manual_seed(6)
    x, codebook = torch.randn(2, 3, 4, 8, generator=generator), torch.randn(4, 10, 8, generator=generator)
    result = vq_lookup(x, codebook, backend=backend)
    assert result.quantized.shape == (2, 3, 4, 8) and result.indices.shape == result.distance.shape == (2, 3, 4)
    for head in range(4):
        single = vq_lookup(x[:, :, head], codebook[head], backend=backend)
        assert single.quantized.shape == (2, 3, 8) and single.indices.shape == (2, 3)
        assert torch.equal(single.indices, result.indices[:, :, head])
    one = vq_lookup(x[0, 0, 0], codebook[0], backend=backend)
    assert one.indices.shape == () and one.indices == result.indices[0, 0, 0]


@lookup_backends
def test_any_strides(backend: str) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(5, 16, 4, 4, generator=generator)  # channel first, as an encoder gives it
    codebook = torch.randn(16, 20, generator=generator).t()  # (V, D) with unit stride along V
    rows = x.permute(0, 2, 3, 1)
    strided = vq_lookup(rows, codebook, backend=backend)
    assert torch.equal(strided.indices, vq_lookup(rows.contiguous(), codebook.contiguous(), backend=backend).indices)
    every_other = vq_lookup(rows[:, ::2, :, ::2], codebook[:, ::2], backend=backend)
    dense = vq_lookup(rows[:, ::2, :, ::2].contiguous(), codebook[:, ::2].contiguous(), backend=backend)
    assert torch.equal(every_other.indices, dense.indices)


@lookup_backends
def test_empty_batch(backend: str) -> None:
    codebook = torch.randn(2, 5, 4, requires_grad=True)
    result = vq_lookup(torch.zeros(0, 2, 4), codebook, backend=backend)
    assert result.quantized.shape == (0, 2, 4) and result.indices.shape == (0, 2)
    result.quantized.sum().backward()
    assert torch.equal(codebook.grad, torch.zeros(2, 5, 4))


@lookup_backends
def test_non_finite_rows_stay_alone(backend: str) -> None:
    x, codebook = torch.randn(4, 8, generator=torch.Generator().manual_seed(8)), torch.eye(8)
    expected = vq_lookup(x, codebook, backend=backend)
    x[1, 2], x[3, 0] = float("nan"), float("inf")
    result = vq_lookup(x, codebook, backend=backend)
    assert ((result.indices >= 0) & (result.indices < 8)).all()
    assert torch.equal(result.distance.isfinite(), torch.tensor([True, False, True, False]))
    assert torch.equal(result.indices[::2], expected.indices[::2])


def test_errors_name_the_axes() -> None:
    with pytest.raises(ValueError, match=re.escape("x: expected shape (..., Q=2, D=4), found (7, 2, 5)")):
        vq_lookup(torch.zeros(7, 2, 5), torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=re.escape("x: expected shape (..., D=4), found (7, 5)")):
        vq_lookup(torch.zeros(7, 5), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=re.escape("codebook: expected shape (Q, V, D) or (V, D), found (4,)")):
        vq_lookup(torch.zeros(7, 4), torch.zeros(4))
    with pytest.raises(ValueError, match="at least one code"):
        vq_lookup(torch.zeros(7, 4), torch.zeros(0, 4))
    with pytest.raises(ValueError, match="precision"):
        vq_lookup(torch.zeros(7, 4), torch.zeros(3, 4), precision="exakt")
    with pytest.raises(TypeError, match="x: expected float32"):
        vq_lookup(torch.zeros(7, 4, dtype=torch.int32), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="unknown backend"):
        vq_lookup(torch.zeros(7, 4), torch.zeros(3, 4), backend="cuda")
    with pytest.raises(ValueError, match=re.escape("indices: expected shape (axis 0=7, axis 1=2), found (7, 3)")):
        vq_statistics(torch.zeros(7, 2, 4), torch.zeros(7, 3, dtype=torch.int32), 5)
    with pytest.raises(TypeError, match="indices: expected int32 or int64"):
        vq_statistics(torch.zeros(7, 2, 4), torch.zeros(7, 2), 5)


@statistics_backends
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("rows", "heads", "codes", "width"), [(0, 1, 4, 3), (1, 1, 1, 4), (300, 3, 17, 5)])
def test_statistics_match_the_reference(
    backend: str, deterministic: bool, rows: int, heads: int, codes: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(rows, heads, width, generator=generator)
    indices = torch.randint(0, codes, (rows, heads), generator=generator, dtype=torch.int32)
    counts, sums = vq_statistics(x, indices, codes, deterministic=deterministic, backend=backend)
    exact_counts, exact_sums = vq_statistics_reference(x.double(), indices, codes)
    assert torch.equal(counts.double(), exact_counts)
    torch.testing.assert_close(sums.double(), exact_sums, rtol=1e-5, atol=1e-5)
    if deterministic:
        again = vq_statistics(x, indices, codes, deterministic=True, backend=backend)
        assert torch.equal(again[1], sums)


@statistics_backends
def test_statistics_have_leading_axes_and_no_gradient(backend: str) -> None:
    x = torch.randn(2, 3, 2, 4, requires_grad=True)
    indices = torch.zeros(2, 3, 2, dtype=torch.int64)
    counts, sums = vq_statistics(x, indices, 5, backend=backend)
    assert not sums.requires_grad and not counts.requires_grad
    assert torch.equal(counts[:, 0], torch.tensor([6.0, 6.0]))
    torch.testing.assert_close(sums[:, 0], x.detach().sum((0, 1)))


@lookup_backends
def test_autocast_keeps_the_exact_choice(backend: str) -> None:
    generator = torch.Generator().manual_seed(10)
    x, codebook = torch.randn(500, 16, generator=generator), torch.randn(300, 16, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = vq_lookup(x, codebook, backend=backend)
    assert torch.equal(result.indices, vq_lookup(x, codebook, backend=backend).indices)
    assert result.distance.dtype == torch.float32
