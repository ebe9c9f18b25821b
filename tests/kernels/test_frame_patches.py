"""Whitened patches: those of the definition in float64, bit for bit by every backend, continued where frames go on."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aime.kernels import dispatch, frame_patches
from aime.kernels.frame_patches import cpp

BACKENDS = ["torch"]
BACKENDS += ["cpp"] if dispatch.EXTENSION_BUILT else []


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Frames of a shape (B, T, C, H, W), a mean image and a factor (1, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, shape, generator=generator).to(dtype)
    mean = 255 * torch.rand(shape[2:], generator=generator)
    return frames, mean, 0.01 + torch.rand(1, *shape[3:], generator=generator)


def defined(frames: Tensor, mean: Tensor, factor: Tensor, side: int, stack: int, before: Tensor | None) -> Tensor:
    """Value by value, from the definition."""
    white = (frames.double() - mean.double()) * factor.double()
    series = [] if before is None else list(before.double().unbind(1))
    early = len(series)
    series += list(white.unbind(1))
    frames_and_changes = []
    for t in range(frames.shape[1]):
        planes = [series[early + t]]
        for k in range(stack - 1):
            later, earlier = early + t - k, early + t - k - 1
            still = torch.zeros_like(series[0])
            planes.append(series[later] - series[earlier] if earlier >= 0 else still)
        frames_and_changes.append(torch.cat(planes, 1))
    images = torch.stack(frames_and_changes, 1)
    columns = F.unfold(images.flatten(0, 1), side, stride=side)  # (B T, S C p p, L)
    grid = (frames.shape[3] // side, frames.shape[4] // side)
    return columns.mT.unflatten(1, grid).unflatten(0, frames.shape[:2])


CASES = [((2, 5, 3, 8, 12), 4, 2), ((1, 1, 3, 16, 24), 8, 2), ((3, 4, 1, 6, 10), 2, 4), ((2, 3, 2, 5, 7), 1, 3)]
CASES += [((0, 2, 3, 8, 8), 4, 2), ((2, 2, 3, 4, 4), 4, 1), ((1, 2, 3, 64, 64), 4, 2)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize(("shape", "side", "stack"), CASES)
def test_values_are_those_of_the_definition(
    shape: tuple[int, ...], side: int, stack: int, continued: bool, dtype: torch.dtype, backend: str
) -> None:
    frames, mean, factor = drawn(shape, dtype)
    before = None
    if continued:
        before = torch.randn(shape[0], stack - 1, *shape[2:], generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"patch_size": side, "stack": stack, "backend": backend}
    found = frame_patches(frames, mean, factor, before, **options)
    torch.testing.assert_close(found.double(), defined(frames, mean, factor, side, stack, before), rtol=1e-6, atol=1e-4)
    halves = frame_patches(frames, mean, factor, before, dtype=torch.bfloat16, **options)
    assert torch.equal(halves, found.to(torch.bfloat16))


@pytest.mark.skipif(not dispatch.EXTENSION_BUILT, reason="aime.kernels._cpu is not built")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_no_bit_depends_on_backend_instructions_threads_or_strides(dtype: torch.dtype) -> None:
    from aime.kernels import _cpu

    frames, mean, factor = drawn((2, 3, 3, 8, 20), dtype)
    before = torch.randn(2, 1, 3, 8, 20, generator=torch.Generator().manual_seed(1))
    arguments = (mean, factor, before, 4, 2)
    for result in (torch.float32, torch.bfloat16):
        expected = cpp.frame_patches(frames, *arguments, result)
        turned = frames.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        apart = frames.repeat_interleave(2, 0)[::2].transpose(0, 1).contiguous().transpose(0, 1)
        others = [cpp.frame_patches(given, *arguments, result) for given in (turned, apart)]
        others += [cpp.frame_patches(frames, *arguments, result, name) for name in _cpu.instruction_sets()]
        others.append(frame_patches(frames, mean, factor, before, patch_size=4, stack=2, dtype=result, backend="torch"))
        threads = torch.get_num_threads()
        try:
            for count in (2, 3):
                torch.set_num_threads(count)
                others.append(cpp.frame_patches(frames, *arguments, result))
        finally:
            torch.set_num_threads(threads)
        assert all(itertools.starmap(torch.equal, [(expected, other) for other in others]))


@pytest.mark.skipif(not dispatch.EXTENSION_BUILT, reason="aime.kernels._cpu is not built")
def test_rounding_to_bfloat16_is_pytorchs() -> None:
    from aime.kernels import _cpu

    bits = torch.arange(0, 2**32, 65521, dtype=torch.int64).to(torch.int32)[: 65536 - 64]
    ties = (torch.arange(0, 64, dtype=torch.int64) * 65536 + 32768 + 0x3F800000).to(torch.int32)
    values = torch.cat([bits, ties]).view(torch.float32).view(1, 1, 1, 256, 256)
    zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    for name in _cpu.instruction_sets():
        found = cpp.frame_patches(values, zero, one, None, 4, 1, torch.bfloat16, name)
        wide = cpp.frame_patches(values, zero, one, None, 4, 1, torch.float32, name)
        expected = wide.to(torch.bfloat16)
        assert torch.equal(found.isnan(), wide.isnan())
        assert torch.equal(found.nan_to_num(7.0, 8.0, 9.0), expected.nan_to_num(7.0, 8.0, 9.0))


def test_what_cpp_cannot_take_pytorch_takes_and_an_order_says_why() -> None:
    frames, mean, factor = drawn((1, 2, 3, 6, 6), torch.float32)
    frames.requires_grad_()
    frame_patches(frames, mean, factor, patch_size=2, stack=2).square().sum().backward()
    assert frames.grad is not None and bool(frames.grad.any())
    if dispatch.EXTENSION_BUILT:
        with pytest.raises(RuntimeError, match="it has no gradient"):
            frame_patches(frames, mean, factor, patch_size=2, backend="cpp")
        with pytest.raises(RuntimeError, match="takes whole patches of 4, found 6 x 6 pixels"):
            frame_patches(frames.detach(), mean, factor, patch_size=4, backend="cpp")
    padded = frame_patches(frames.detach(), mean, factor, patch_size=4)
    assert padded.shape == (1, 2, 2, 2, 48)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f, m, s: (f[0], m, s), ValueError, r"frames: expected shape \(B, T, C, H, W\)"),
        (lambda f, m, s: (f.long(), m, s), TypeError, "frames: expected uint8 or floating point, found torch.int64"),
        (lambda f, m, s: (f, m[:, :3], s), ValueError, r"mean: expected to broadcast to \(C, H, W\) \(3, 8, 8\)"),
        (lambda f, m, s: (f, m, s.half()), TypeError, "factor: expected float32 or float64, found torch.float16"),
        (lambda f, m, s: (f, m, s, f[:, :2].float()), ValueError, "before: expected shape"),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        frame_patches(*change(*drawn((1, 2, 3, 8, 8))), stack=2)
