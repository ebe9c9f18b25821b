"""Discretised mixture of logistics: normalised, equal to the definition in float64, finite at the edges.

On a GPU the same cases run there too, under pytest.mark.cuda (conftest.py).
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from aime.kernels import dispatch, mixture_logistics_nll
from aime.kernels.mixture_logistics.reference import mixture_logistics_nll_reference

SHAPES = [(1, 1, 1, 1), (2, 10, 5, 3), (3, 4, 8, 8), (2, 2, 16, 17), (0, 2, 2, 2)]  # B, M, H, W


def levels(values: Tensor) -> Tensor:
    return values.double() / 127.5 - 1


def arguments(batch: int, components: int, height: int, width: int, seed: int = 0) -> list[Tensor]:
    """x, logits, means, log_scales, coefficients in float64; x covers both open bins."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = levels(torch.randint(0, 256, (batch, 3, height, width), generator=generator))
    if batch:
        x[0, 0, 0, 0], x[0, 1, 0, 0] = -1.0, 1.0
    shape = (batch, components, 3, height, width)
    return [x, normal(batch, components, height, width), 0.5 * normal(*shape), 0.5 * normal(*shape) - 2, normal(*shape)]


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("log_scale", [19.9, 20.1, 84.0, 104.0, 300.0])
def test_components_of_any_width(target: Callable[..., Any], log_scale: float, alone: bool) -> None:
    """Values and gradients where half a bin over the scale is no float32 number any more; alone or beside others."""
    x, logits, means, log_scales, coefficients = (tensor.float() for tensor in arguments(2, 3, 3, 2))
    log_scales[:, 0 if not alone else slice(None)] = log_scale

    def run(dtype: torch.dtype, op: Callable[..., Any]) -> list[Tensor]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (logits, means, log_scales, coefficients)]
        nll, mean = op(x.to(dtype), *leaves)
        (nll.sum() + mean.sin().sum()).backward()
        return [nll.detach(), mean.detach(), *(leaf.grad for leaf in leaves)]

    exact = run(torch.float64, mixture_logistics_nll_reference)
    for ours, truth in zip(run(torch.float32, lambda *t: target(mixture_logistics_nll, *t)), exact, strict=True):
        # responsibilities carry the rounding of a log density of up to 3 x 300
        torch.testing.assert_close(ours.double(), truth, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("batch", "components", "height", "width"), SHAPES)
def test_values_and_gradients_match_the_reference(
    target: Callable[..., Any], batch: int, components: int, height: int, width: int, weighted: bool
) -> None:
    tensors = arguments(batch, components, height, width)
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(batch, height, width, generator=generator, dtype=torch.float64) if weighted else None
    direction = torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64)

    def run(dtype: torch.dtype) -> tuple[Tensor, Tensor, list[Tensor]]:
        # the parameters are rounded to float32 first, so that both sides see the same numbers
        leaves = [tensor.float().to(dtype).requires_grad_() for tensor in tensors[1:]]
        x, precision = tensors[0].to(dtype), None if weights is None else weights.float().to(dtype)
        if dtype == torch.float64:
            nll, mean = mixture_logistics_nll_reference(x, *leaves, precision)
        else:
            nll, mean = target(mixture_logistics_nll, x, *leaves, precision)
        (nll.sum() + (mean * direction.to(dtype)).sum()).backward()
        return nll.detach(), mean.detach(), [leaf.grad for leaf in leaves]

    exact_nll, exact_mean, exact_gradients = run(torch.float64)
    nll, mean, gradients = run(torch.float32)
    assert nll.dtype == mean.dtype == torch.float32
    torch.testing.assert_close(nll.double(), exact_nll, rtol=2e-6, atol=1e-4)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-5, atol=1e-5)
    for gradient, exact in zip(gradients, exact_gradients, strict=True):
        # x rounds to float32 (6e-8) and is divided by a scale down to e^-6: 2e-5 of a standardised residual
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-3, atol=1e-3)


def test_gradcheck() -> None:
    x, *parameters = arguments(2, 3, 2, 2)
    leaves = tuple(tensor.requires_grad_() for tensor in parameters)
    weights = torch.rand(2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(lambda *p: mixture_logistics_nll(x, *p, weights, backend="torch"), leaves)


@pytest.mark.parametrize("log_scale", [-6.0, -3.0, 0.0, 2.0])
def test_probabilities_of_all_levels_sum_to_one(log_scale: float) -> None:
    """Sum over the 256 levels of one channel, the others fixed: the last channel conditions on both."""
    generator = torch.Generator().manual_seed(3)
    x = torch.full((256, 3, 1, 1), 0.25)
    x[:, 0], x[:, 1] = levels(torch.tensor(40)).item(), levels(torch.tensor(200)).item()
    x[:, 2, 0, 0] = levels(torch.arange(256)).float()
    logits, mean = torch.randn(1, 4, 1, 1, generator=generator), torch.randn(1, 4, 3, 1, 1, generator=generator)
    scales, coefficients = torch.full((1, 4, 3, 1, 1), log_scale), torch.randn(1, 4, 3, 1, 1, generator=generator)
    # P(b | r, g) = P(r, g, b) / P(r, g); P(r, g) is the sum itself only if it is normalised, so compare two sums
    expanded = [tensor.expand(256, *tensor.shape[1:]) for tensor in (logits, mean, scales, coefficients)]
    log_joint = -mixture_logistics_nll(x, *expanded, backend="torch")[0].double()
    marginal = _log_prob_red_green(x[0].double(), *(tensor[0].double() for tensor in expanded))
    torch.testing.assert_close(log_joint.logsumexp(0), marginal, rtol=2e-5, atol=1e-4)


def _log_prob_red_green(x: Tensor, logits: Tensor, mean: Tensor, log_scales: Tensor, coefficients: Tensor) -> Tensor:
    """log P(red, green) of one pixel by the definition, in 100 digits."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(100):
        total = mpmath.mpf(0)
        for k, share in enumerate(logits[:, 0, 0].softmax(0).tolist()):
            green = float(mean[k, 1, 0, 0] + coefficients[k, 0, 0, 0].tanh() * x[0, 0, 0])
            probability = mpmath.mpf(share)
            for channel, centre in ((0, float(mean[k, 0, 0, 0])), (1, green)):
                scale = mpmath.exp(float(log_scales[k, channel, 0, 0]))
                edges = [(float(x[channel, 0, 0]) + sign / 255 - centre) / scale for sign in (1, -1)]
                probability *= 1 / (1 + mpmath.exp(-edges[0])) - 1 / (1 + mpmath.exp(-edges[1]))
            total += probability
        return torch.tensor(float(mpmath.log(total)), dtype=torch.float64)


def test_finite_at_the_edges(target: Callable[..., Any]) -> None:
    x = levels(torch.tensor([0, 127, 255])).float().view(1, 3, 1, 1).expand(1, 3, 2, 2).clone()
    logits = torch.tensor([-80.0, 0.0, 80.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2).clone().requires_grad_()
    shape = (1, 3, 3, 2, 2)
    for mean, log_scale in ((30.0, -9.0), (-30.0, -7.0), (0.0, 12.0), (1.0, 0.0)):
        means = torch.full(shape, mean, requires_grad=True)
        log_scales = torch.full(shape, log_scale, requires_grad=True)
        coefficients = torch.full(shape, 40.0, requires_grad=True)
        nll, image = target(mixture_logistics_nll, x, logits, means, log_scales, coefficients)
        (nll.sum() + image.sum()).backward()
        for tensor in (nll, image, means.grad, log_scales.grad, coefficients.grad, logits.grad):
            assert tensor.isfinite().all(), (mean, log_scale)
        if log_scale < -7:
            assert torch.equal(log_scales.grad, torch.zeros(shape))  # below the clamp


def test_the_mean_of_sharp_components_is_their_value(target: Callable[..., Any]) -> None:
    means = torch.tensor([0.5, -0.25, 0.125]).view(1, 1, 3, 1, 1)
    zeros = torch.zeros(1, 1, 3, 1, 1)
    _, image = target(mixture_logistics_nll, torch.zeros(1, 3, 1, 1), zeros[:, :, 0], means, zeros, zeros)
    assert torch.equal(image.flatten(), means.flatten())


def test_autocast_and_half_inputs_give_float32(target: Callable[..., Any]) -> None:
    tensors = [tensor.bfloat16() for tensor in arguments(1, 2, 3, 3)]
    expected, _ = mixture_logistics_nll_reference(*(tensor.double() for tensor in tensors))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nll, mean = target(mixture_logistics_nll, *tensors)
    assert nll.dtype == mean.dtype == torch.float32
    torch.testing.assert_close(nll.double(), expected, rtol=1e-5, atol=1e-3)


def test_any_strides(target: Callable[..., Any]) -> None:
    tensors = [tensor.float() for tensor in arguments(2, 3, 4, 4)]
    expected = target(mixture_logistics_nll, *tensors)
    strided = [tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for tensor in tensors]
    for ours, dense in zip(target(mixture_logistics_nll, *strided), expected, strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-6, atol=1e-5)


def test_errors_name_the_axes() -> None:
    x, logits, means, log_scales, coefficients = arguments(2, 3, 4, 5)
    with pytest.raises(
        ValueError, match=re.escape("x: expected shape (B, C=3, H, W), found (2, 1, 4, 5); axis C is 1")
    ):
        mixture_logistics_nll(x[:, :1], logits, means, log_scales, coefficients)
    with pytest.raises(ValueError, match=re.escape("means: expected shape (B=2, M=3, C=3, H=4, W=5), found (2, 2, 3")):
        mixture_logistics_nll(x, logits, means[:, :2], log_scales, coefficients)
    with pytest.raises(ValueError, match=re.escape("weights: expected shape (B=2, H=4, W=5), found (2, 5, 4)")):
        mixture_logistics_nll(x, logits, means, log_scales, coefficients, torch.ones(2, 5, 4))
    with pytest.raises(ValueError, match="at least one component"):
        mixture_logistics_nll(x, logits[:, :0], means[:, :0], log_scales[:, :0], coefficients[:, :0])


@pytest.mark.skipif(not dispatch.TRITON_INSTALLED, reason="triton is not installed")
def test_more_images_than_a_second_grid_axis_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's grid ends at 65,535 along its second and third axis, at 2^31 - 1 along the first."""
    from aime.kernels.mixture_logistics import triton as op

    class Recorder:
        def __init__(self) -> None:
            self.grids: list[tuple[int, ...]] = []

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            self.grids.append(grid)
            return lambda *_, **__: None

    recorder = Recorder()
    monkeypatch.setattr(op, "nll_kernel", recorder)
    monkeypatch.setattr(op, "nll_backward_kernel", recorder)
    batch = 70_000
    x, plane = torch.zeros(1, 3, 1, 300).expand(batch, 3, 1, 300), torch.zeros(1, 1, 300).expand(batch, 1, 300)
    logits, parameters = plane[:, None], torch.zeros(1, 1, 3, 1, 300).expand(batch, 1, 3, 1, 300)
    tensors = (x, logits, parameters, parameters, parameters, None)
    with torch.device("meta"):  # no memory for results that nobody writes
        op.mixture_logistics_nll(*(t if t is None else t.to("meta") for t in tensors))
        nll = torch.zeros(batch)
        moved = [t if t is None else t.to("meta") for t in (nll, x, x, plane, plane, *tensors)]
        op.mixture_logistics_nll_backward(*moved)
    assert recorder.grids == [(2 * batch,), (3 * batch,)]  # 256 pixels a program forward, 128 backward
