"""Squared errors against whitened frames: those of float64, gradients too, whatever computes them."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from aime.kernels import dispatch, frame_error
from aime.kernels.frame_error import cpp
from aime.kernels.frame_error.reference import frame_error_reference
from tests.kernels.test_frame_patches import BACKENDS, drawn


def images(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 2) -> Tensor:
    """Decoded images (N, C, H, W), channels-last in memory."""
    batch, channels, height, width = shape
    values = torch.randn(batch, height, width, channels, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).permute(0, 3, 1, 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("stored", [torch.uint8, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 3, 7, 9), (2, 1, 4, 4), (2, 5, 3, 33), (0, 3, 4, 4), (2, 3, 64, 64)])
def test_values_and_gradients_match_float64(
    shape: tuple[int, ...], dtype: torch.dtype, stored: torch.dtype, weighted: bool, backend: str
) -> None:
    frames, mean, factor = drawn((1, *shape), stored)
    frames, factor = frames[0], factor / 64
    generator = torch.Generator().manual_seed(3)
    weights = torch.rand(shape[0], *shape[2:], generator=generator) if weighted else None
    upstream = torch.randn(shape[0], generator=generator)
    decoded = images(shape, dtype).requires_grad_()
    found = frame_error(decoded, frames, mean, factor, weights, backend=backend)
    (gradient,) = torch.autograd.grad(found, decoded, upstream)

    exact = decoded.detach().double().requires_grad_()
    wide = None if weights is None else weights.double()
    truth = frame_error_reference(exact, frames.double(), mean.double(), factor.double(), wide)
    (exact_gradient,) = torch.autograd.grad(truth, exact, upstream.double())
    assert found.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(found.double(), truth, rtol=2e-6, atol=1e-5)
    tolerance = 2e-5 if dtype == torch.float32 else 2**-8  # bfloat16 keeps 8 bits
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=tolerance, atol=2e-5)


@pytest.mark.skipif(not dispatch.EXTENSION_BUILT, reason="aime.kernels._cpu is not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_strides_change_no_bit(dtype: torch.dtype) -> None:
    frames, mean, factor = drawn((1, 4, 3, 6, 10))
    frames, factor = frames[0], factor / 64
    cropped = images((4, 3, 8, 16), dtype)[..., :6, :10]
    decoded = cropped.contiguous(memory_format=torch.channels_last)
    weights, upstream = torch.rand(4, 6, 10), torch.randn(4)

    def both(decoded: Tensor, frames: Tensor, weights: Tensor, instructions: str = "") -> tuple[Tensor, Tensor]:
        arguments = (decoded, frames, mean, factor, weights, instructions)
        return cpp.frame_error(*arguments), cpp.frame_error_backward(upstream, *arguments)

    expected = both(decoded, frames, weights)
    turned = frames.contiguous(memory_format=torch.channels_last)
    found = [both(cropped, turned, weights.mT.contiguous().mT)]
    threads = torch.get_num_threads()
    try:
        for count in (2, 3):
            torch.set_num_threads(count)
            found.append(both(decoded, frames, weights))
    finally:
        torch.set_num_threads(threads)
    for other in found:
        assert all(itertools.starmap(torch.equal, zip(expected, other, strict=True)))


@pytest.mark.skipif(not dispatch.EXTENSION_BUILT, reason="aime.kernels._cpu is not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_instruction_set_gives_the_same(dtype: torch.dtype) -> None:
    from aime.kernels import _cpu

    frames, mean, factor = drawn((1, 3, 3, 5, 11))
    arguments = (images((3, 3, 5, 11), dtype), frames[0], mean, factor / 64, torch.rand(3, 5, 11))
    upstream = torch.randn(3)
    for name in _cpu.instruction_sets():
        torch.testing.assert_close(cpp.frame_error(*arguments, name), cpp.frame_error(*arguments, "baseline"))
        mine, plain = (cpp.frame_error_backward(upstream, *arguments, n) for n in (name, "baseline"))
        torch.testing.assert_close(mine, plain, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


def test_what_cpp_cannot_take_pytorch_takes_and_an_order_says_why() -> None:
    frames, mean, factor = drawn((1, 2, 3, 4, 4))
    planar = torch.randn(2, 3, 4, 4)
    wide = frame_error(planar.double(), frames[0], mean, factor)
    assert wide.dtype == torch.float64
    torch.testing.assert_close(frame_error(planar, frames[0], mean, factor).double(), wide)
    if dispatch.EXTENSION_BUILT:
        with pytest.raises(RuntimeError, match="channels last in memory, found strides"):
            frame_error(planar, frames[0], mean, factor, backend="cpp")
        with pytest.raises(RuntimeError, match="takes torch|takes float32, bfloat16, found torch.float64"):
            frame_error(images((2, 3, 4, 4), torch.float64), frames[0], mean, factor, backend="cpp")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, f, m, s: (d[:1], f, m, s), "frames: expected shape"),
        (lambda d, f, m, s: (d, f, m, s, d[:, 0, 1:]), "weights: expected shape"),
        (lambda d, f, m, s: (d, f, m[:2], s), "mean: expected to broadcast"),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[..., Any], message: str) -> None:
    frames, mean, factor = drawn((1, 2, 3, 4, 4))
    with pytest.raises(ValueError, match=message):
        frame_error(*change(images((2, 3, 4, 4), torch.float32), frames[0], mean, factor))
