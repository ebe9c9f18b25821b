"""vq_lookup and vq_statistics against the direct distance in float64.

On a GPU the same cases run there too, under pytest.mark.cuda (conftest.py).
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from aime.kernels import dispatch, vq_lookup, vq_statistics
from aime.kernels.vq_lookup import cpp, cublas, eager
from aime.kernels.vq_lookup.reference import vq_lookup_reference, vq_statistics_reference


def assert_same_or_tied(x: Tensor, codebook: Tensor, indices: Tensor) -> None:
    """The chosen score equals the best one up to float32 rounding of |c|^2 / 2 - x.c; equal where the gap is larger."""
    x, codebook = x.double(), codebook.double()
    scores = codebook.square().sum(-1) / 2 - torch.einsum("nqd,qvd->nqv", x, codebook)
    best = scores.amin(-1)
    chosen = scores.gather(-1, indices.long().unsqueeze(-1)).squeeze(-1)
    # the largest term of the sum, times the unit roundoff, times sqrt(D) rounded up: 4e-7 was the worst measured
    magnitude = codebook.square().sum(-1).amax(-1) / 2 + x.norm(dim=-1) * codebook.norm(dim=-1).amax(-1)
    assert ((chosen - best) <= 1e-6 * magnitude).all()


@pytest.mark.parametrize(
    ("rows", "heads", "codes", "width"),
    [(1, 1, 1, 4), (37, 2, 11, 5), (130, 1, 64, 16), (65, 3, 100, 33), (17, 1, 257, 512)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_match_the_reference(
    target: Callable[..., Any], rows: int, heads: int, codes: int, width: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, heads, width, generator=generator).to(dtype)
    codebook = torch.randn(heads, codes, width, generator=generator).to(dtype)
    result = target(vq_lookup, x, codebook)
    quantized, indices, distance = vq_lookup_reference(x.double(), codebook.double())
    assert result.indices.dtype == torch.int32 and result.distance.dtype == torch.float32
    assert result.quantized.dtype == dtype
    # Gaussian codes: the float64 gap is far above rounding for every row of these seeds
    assert torch.equal(result.indices, indices)
    assert torch.equal(result.quantized.double(), quantized)
    torch.testing.assert_close(result.distance.double(), distance, rtol=1e-5, atol=1e-5)


def test_ties_go_to_the_lowest_index(target: Callable[..., Any]) -> None:
    book = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    codebook = torch.cat((book, book, book))  # every code three times
    result = target(vq_lookup, book, codebook)
    assert torch.equal(result.indices, torch.arange(6, dtype=torch.int32))
    assert torch.equal(target(vq_lookup, torch.zeros(5, 8), torch.ones(40, 8)).indices, torch.zeros(5).int())


def test_equal_codes_give_the_first_of_them(target: Callable[..., Any]) -> None:
    """Wherever they stand: a product's columns are rounded by their place, in the torch backend's library too."""
    generator = torch.Generator().manual_seed(16)
    for codes, width, times in ((1, 4, 3), (7, 9, 5), (19, 64, 4), (53, 33, 2), (101, 17, 3)):
        book = torch.randn(2, codes, width, generator=generator)
        result = target(vq_lookup, torch.randn(50, 2, width, generator=generator), book.repeat(1, times, 1))
        assert (result.indices < codes).all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_code_that_is_not_finite_is_nobodys_nearest(target: Callable[..., Any], poison: float) -> None:
    generator = torch.Generator().manual_seed(17)
    x, codebook = torch.randn(60, 2, 8, generator=generator), torch.randn(2, 9, 8, generator=generator)
    codebook[0, 0] = 1e4  # nobody's nearest either, so that the codes' numbers stay
    expected = target(vq_lookup, x, codebook)
    codebook[0, 0, 3] = poison
    result = target(vq_lookup, x, codebook)
    for ours, truth in zip(result, expected, strict=True):
        assert torch.equal(ours, truth)
    assert torch.equal(result.indices, vq_lookup_reference(x.double(), codebook.double())[1])
    codebook[:] = poison  # where no code is finite, the first one
    result = target(vq_lookup, x, codebook)
    assert not result.indices.any() and not result.distance.isfinite().any()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_adversarially_close_codes(target: Callable[..., Any], scale: float) -> None:
    """Codes one relative 1e-5 apart: above float32 rounding in exact arithmetic, so each must find itself or its
    tie."""
    generator = torch.Generator().manual_seed(3)
    centre = torch.randn(1, 1, 32, generator=generator)
    codebook = scale * (centre + 1e-5 * torch.randn(1, 200, 32, generator=generator))
    x = scale * (centre + 1e-5 * torch.randn(300, 1, 32, generator=generator))
    assert_same_or_tied(x, codebook, target(vq_lookup, x, codebook).indices)


@pytest.mark.parametrize("scale", [1e-33, 1e-30, 1e-19, 1e-4, 1e4, 1e19, 1e30, 1e37])
def test_scale_does_not_change_the_choice(target: Callable[..., Any], scale: float) -> None:
    generator = torch.Generator().manual_seed(4)
    x, codebook = torch.randn(200, 1, 16, generator=generator), torch.randn(1, 96, 16, generator=generator)
    _, expected, _ = vq_lookup_reference(x.double(), codebook.double())
    assert torch.equal(target(vq_lookup, scale * x, scale * codebook).indices, expected)


@pytest.mark.parametrize(("of_x", "of_codes"), [(1e-30, 1e30), (1e30, 1e-30), (1.0, 1e30), (1e19, 1.0)])
def test_rows_and_codes_of_different_scales(target: Callable[..., Any], of_x: float, of_codes: float) -> None:
    generator = torch.Generator().manual_seed(18)
    x, codebook = torch.randn(100, 2, 16, generator=generator), torch.randn(2, 50, 16, generator=generator)
    result = target(vq_lookup, of_x * x, of_codes * codebook)
    assert_same_or_tied(of_x * x, of_codes * codebook, result.indices)
    if of_x < of_codes:  # the shortest code, but for rounding
        shortest = codebook.double().square().sum(-1).argmin(-1)
        assert torch.equal(result.indices, shortest.int().expand(100, 2))


def test_one_row_does_not_move_another(target: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(19)
    x, codebook = torch.randn(60, 1, 8, generator=generator), torch.randn(1, 40, 8, generator=generator)
    expected = target(vq_lookup, x, codebook)
    x[7], x[50] = 1e30, -1e-30
    assert torch.equal(target(vq_lookup, x, codebook).indices[8:50], expected.indices[8:50])


def test_float64_takes_any_scale() -> None:
    generator = torch.Generator().manual_seed(20)
    x, codebook = (torch.randn(*shape, 16, generator=generator).double() for shape in ((90, 2), (2, 50)))
    _, expected, _ = vq_lookup_reference(x, codebook)
    for scale in (1e-250, 1e250):
        assert torch.equal(vq_lookup(scale * x, scale * codebook, backend="torch").indices, expected)


def test_gradients_match_the_reference(target: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(40, 2, 6, generator=generator)
    codebook = torch.randn(2, 9, 6, generator=generator)
    weights = torch.randn(40, 2, 6, generator=generator)
    ours = [tensor.clone().requires_grad_() for tensor in (x, codebook)]
    result = target(vq_lookup, *ours)
    ((result.quantized * weights).sum() + (result.distance * weights[..., 0]).sum()).backward()
    truth = [tensor.double().requires_grad_() for tensor in (x, codebook)]
    quantized, _, distance = vq_lookup_reference(*truth)
    ((quantized * weights).sum() + (distance * weights[..., 0]).sum()).backward()
    for tensor, exact in zip(ours, truth, strict=True):
        torch.testing.assert_close(tensor.grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


def test_leading_axes_and_heads(target: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(6)
    x, codebook = torch.randn(2, 3, 4, 8, generator=generator), torch.randn(4, 10, 8, generator=generator)
    result = target(vq_lookup, x, codebook)
    assert result.quantized.shape == (2, 3, 4, 8) and result.indices.shape == result.distance.shape == (2, 3, 4)
    for head in range(4):
        single = target(vq_lookup, x[:, :, head], codebook[head])
        assert single.quantized.shape == (2, 3, 8) and single.indices.shape == (2, 3)
        assert torch.equal(single.indices, result.indices[:, :, head])
    one = target(vq_lookup, x[0, 0, 0], codebook[0])
    assert one.indices.shape == () and one.indices == result.indices[0, 0, 0]


def test_any_strides(target: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(5, 16, 4, 4, generator=generator)  # channel first, as an encoder gives it
    codebook = torch.randn(16, 20, generator=generator).t()  # (V, D) with unit stride along V
    rows = x.permute(0, 2, 3, 1)
    strided = target(vq_lookup, rows, codebook)
    assert torch.equal(strided.indices, target(vq_lookup, rows.contiguous(), codebook.contiguous()).indices)
    every_other = target(vq_lookup, rows[:, ::2, :, ::2], codebook[:, ::2])
    dense = target(vq_lookup, rows[:, ::2, :, ::2].contiguous(), codebook[:, ::2].contiguous())
    assert torch.equal(every_other.indices, dense.indices)


def test_empty_batch(target: Callable[..., Any]) -> None:
    codebook = torch.randn(2, 5, 4, requires_grad=True)
    result = target(vq_lookup, torch.zeros(0, 2, 4), codebook)
    assert result.quantized.shape == (0, 2, 4) and result.indices.shape == (0, 2)
    result.quantized.sum().backward()
    assert torch.equal(codebook.grad, torch.zeros(2, 5, 4))


def test_non_finite_rows_stay_alone(target: Callable[..., Any]) -> None:
    x, codebook = torch.randn(4, 8, generator=torch.Generator().manual_seed(8)), torch.eye(8)
    expected = target(vq_lookup, x, codebook)
    x[1, 2], x[3, 0] = float("nan"), float("inf")
    result = target(vq_lookup, x, codebook)
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


@pytest.mark.op_targets("vq_statistics")
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("rows", "heads", "codes", "width"), [(0, 1, 4, 4), (1, 1, 1, 4), (300, 3, 17, 5)])
def test_statistics_match_the_reference(
    target: Callable[..., Any], deterministic: bool, rows: int, heads: int, codes: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(rows, heads, width, generator=generator)
    indices = torch.randint(0, codes, (rows, heads), generator=generator, dtype=torch.int32)
    counts, sums = target(vq_statistics, x, indices, codes, deterministic=deterministic)
    exact_counts, exact_sums = vq_statistics_reference(x.double(), indices, codes)
    assert torch.equal(counts.double(), exact_counts)
    torch.testing.assert_close(sums.double(), exact_sums, rtol=1e-5, atol=1e-5)
    if deterministic:
        again = target(vq_statistics, x, indices, codes, deterministic=True)
        assert torch.equal(again[1], sums)


@pytest.mark.op_targets("vq_statistics")
@pytest.mark.parametrize("deterministic", [False, True])
def test_statistics_of_codes_that_most_rows_chose(target: Callable[..., Any], deterministic: bool) -> None:
    """Runs of one code longer than the blocks that are added apart, ending within a block or on its edge."""
    generator = torch.Generator().manual_seed(21)
    x = torch.randn(1024, 2, 5, generator=generator)
    for runs in ((1, 700, 256, 0, 67), (256, 0, 512, 256, 0), (0, 0, 1024, 0, 0), (300, 1, 1, 1, 721)):
        codes = torch.repeat_interleave(torch.arange(5), torch.tensor(runs))
        indices = torch.stack((codes, codes[torch.randperm(1024, generator=generator)]), 1)
        counts, sums = target(vq_statistics, x, indices, 5, deterministic=deterministic)
        exact_counts, exact_sums = vq_statistics_reference(x.double(), indices, 5)
        assert torch.equal(counts.double(), exact_counts)
        torch.testing.assert_close(sums.double(), exact_sums, rtol=1e-5, atol=1e-4)
        if deterministic:
            assert torch.equal(target(vq_statistics, x, indices, 5, deterministic=True)[1], sums)


def test_rows_at_the_end_of_float32(target: Callable[..., Any]) -> None:
    """Halves of a number that rounds up beyond float32's end stay finite where products are split."""
    codebook = torch.randn(1, 30, 8, generator=torch.Generator().manual_seed(22))
    x = torch.full((4, 1, 8), torch.finfo(torch.float32).max) * torch.tensor([1.0, -1.0, 0.5, 1e-3])[:, None, None]
    assert_same_or_tied(x, codebook, target(vq_lookup, x, codebook).indices)


@pytest.mark.op_targets("vq_statistics")
def test_statistics_have_leading_axes_and_no_gradient(target: Callable[..., Any]) -> None:
    x = torch.randn(2, 3, 2, 4, requires_grad=True)
    indices = torch.zeros(2, 3, 2, dtype=torch.int64)
    counts, sums = target(vq_statistics, x, indices, 5)
    assert not sums.requires_grad and not counts.requires_grad
    assert torch.equal(counts[:, 0], torch.tensor([6.0, 6.0]))
    torch.testing.assert_close(sums[:, 0], x.detach().sum((0, 1)))


def test_autocast_keeps_the_exact_choice(target: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(10)
    x, codebook = torch.randn(500, 16, generator=generator), torch.randn(300, 16, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = target(vq_lookup, x, codebook)
    assert torch.equal(result.indices, target(vq_lookup, x, codebook).indices)
    assert result.distance.dtype == torch.float32


@pytest.mark.skipif(not dispatch.EXTENSION_BUILT, reason="aime.kernels._cpu is not built")
@pytest.mark.parametrize("instructions", ["avx512", "avx2", "baseline"])
def test_every_instruction_set_finds_the_same_codes(instructions: str) -> None:
    from aime.kernels import _cpu

    if instructions not in _cpu.instruction_sets():
        pytest.skip(f"this processor has no {instructions}")
    generator = torch.Generator().manual_seed(11)
    for rows, heads, codes, width in ((1, 1, 1, 1), (63, 2, 49, 7), (65, 1, 48, 16), (200, 3, 131, 40)):
        x = torch.randn(rows, heads, width, generator=generator)
        codebook = torch.randn(heads, codes, width, generator=generator)
        indices, distance = cpp.assign(x, codebook, instructions)
        _, expected, exact = vq_lookup_reference(x.double(), codebook.double())
        assert torch.equal(indices, expected)
        torch.testing.assert_close(distance.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not dispatch.EXTENSION_BUILT, reason="aime.kernels._cpu is not built")
def test_threads_do_not_change_the_result() -> None:
    x, codebook = torch.randn(2, 5000, 1, 24, generator=torch.Generator().manual_seed(12))[0], torch.eye(24)[None]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = cpp.assign(x, codebook)
        torch.set_num_threads(4)
        together = cpp.assign(x, codebook)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone[0], together[0])
    assert torch.equal(alone[1], together[1])


@pytest.mark.skipif(not dispatch.EXTENSION_BUILT, reason="aime.kernels._cpu is not built")
def test_every_half_is_read_exactly() -> None:
    """All 63,488 finite float16 values and all finite bfloat16 ones, as rows of one value against the code 0."""
    for dtype in (torch.float16, torch.bfloat16):
        values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        values = values[values.isfinite()].view(-1, 1, 1)
        _, distance = cpp.assign(values, torch.zeros(1, 1, 1))
        assert torch.equal(distance.flatten(), values.float().square().flatten())


def test_an_order_that_cannot_be_carried_out_says_why() -> None:
    with pytest.raises(RuntimeError, match="vq_lookup: backend 'cpp' cannot run: it takes float32"):
        vq_lookup(torch.zeros(3, 8).double(), torch.zeros(2, 8).double(), backend="cpp")
    if dispatch.TRITON_INSTALLED and dispatch.TRITON_INTERPRETED:
        with pytest.raises(RuntimeError, match="'triton' cannot run: it takes D from 4 to 512, found 3"):
            vq_lookup(torch.zeros(3, 3), torch.zeros(2, 3), backend="triton")
        with pytest.raises(RuntimeError, match="'triton' cannot run: it takes D from 4 to 512, found 513"):
            vq_lookup(torch.zeros(3, 513), torch.zeros(2, 513), backend="triton")


def test_deterministic_mode_keeps_gradients(target: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(13)
    x, codebook = torch.randn(90, 2, 6, generator=generator), torch.randn(2, 7, 6, generator=generator)
    gradients = []
    for deterministic in (False, True, True):
        leaf = codebook.clone().requires_grad_()
        torch.use_deterministic_algorithms(deterministic)
        try:
            result = target(vq_lookup, x, leaf)
            (result.quantized.sin().sum() + result.distance.sum()).backward()
        finally:
            torch.use_deterministic_algorithms(False)
        gradients.append(leaf.grad)
    assert torch.equal(gradients[1], gradients[2])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)


def test_tf32_split_keeps_float32() -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(14))
    for scale in (1e-30, 1e-4, 1.0, 1e4, 1e30):
        value = scale * x
        high = cublas.round_to_tf32(value)
        low = cublas.round_to_tf32(value - high)
        assert not (high.view(torch.int32) & 0x1FFF).any() and not (low.view(torch.int32) & 0x1FFF).any()
        assert ((value - high).abs() <= 2.0**-11 * value.abs()).all()
        assert ((value.double() - high.double() - low.double()).abs() <= 2.0**-22 * value.double().abs()).all()
    edges = torch.tensor([0.0, float("inf"), float("-inf"), float("nan")])
    assert torch.equal(cublas.round_to_tf32(edges)[:3], edges[:3]) and cublas.round_to_tf32(edges)[3].isnan()


@pytest.mark.parametrize(("rows", "heads", "codes", "width"), [(0, 1, 3, 4), (37, 2, 11, 5), (17, 1, 257, 512)])
def test_cublas_route_matches_the_reference(rows: int, heads: int, codes: int, width: int) -> None:
    """The route on CPU tensors: TF32 values multiply exactly in float32, so only the order of the sum differs."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, heads, width, generator=generator)
    codebook = torch.randn(heads, codes, width, generator=generator)
    for scale in (1e-4, 1.0, 1e4):
        indices = cublas.assign(scale * x, scale * codebook, "exact", scores_per_block=5 * codes)  # several blocks
        assert indices.dtype == torch.int32
        assert torch.equal(indices, vq_lookup_reference(scale * x.double(), scale * codebook.double())[1])


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_cublas_route_among_close_codes(scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    centre = torch.randn(1, 1, 256, generator=generator)
    codebook = scale * (centre + 1e-5 * torch.randn(1, 200, 256, generator=generator))
    x = scale * (centre + 1e-5 * torch.randn(300, 1, 256, generator=generator))
    assert_same_or_tied(x, codebook, cublas.assign(x, codebook, "exact"))
    duplicates = torch.cat((codebook[:, :50], codebook[:, :50]), 1)
    assert (cublas.assign(x, duplicates, "exact") < 50).all()  # ties go to the lowest index
    # codes 3e-3 apart, six times float32's rounding: one TF32 product, as "fast" takes it, mistakes rows
    codebook = scale * (centre + 3e-3 * torch.randn(1, 200, 256, generator=generator))
    x = codebook[0, :, None].contiguous()
    truth = torch.arange(200, dtype=torch.int32)[:, None]
    assert torch.equal(cublas.assign(x, codebook, "exact"), truth)
    assert not torch.equal(cublas.assign(x, codebook, "fast"), truth)


def test_products_are_exact_whatever_the_process_allows() -> None:
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    seen = []
    try:
        products.fp32_precision = "tf32"
        with cublas.float32_products("ieee"):
            seen.append(products.fp32_precision)
        seen.append(products.fp32_precision)
    finally:
        products.fp32_precision = before
    assert seen == ["ieee", "tf32"]


def test_cublas_needs_a_gpu() -> None:
    with pytest.raises(RuntimeError, match="'cublas' cannot run: it needs tensors on an NVIDIA GPU, found cpu"):
        vq_lookup(torch.zeros(3, 8), torch.zeros(2, 8), backend="cublas")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("width", [16, 512])
def test_cublas_on_a_gpu(width: int) -> None:
    generator = torch.Generator().manual_seed(15)
    x, codebook = torch.randn(3000, 2, width, generator=generator), torch.randn(2, 700, width, generator=generator)
    result = vq_lookup(x.cuda(), codebook.cuda(), backend="cublas")
    assert_same_or_tied(x, codebook, result.indices.cpu())
    with cublas.float32_products("tf32"):
        assert_same_or_tied(x, codebook, eager.assign(x.cuda(), codebook.cuda()).cpu())
