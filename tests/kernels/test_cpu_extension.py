"""What holds for every C++ kernel: each instruction set equals float64; threads and strides change no bit."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from aime.kernels import (
    SlotAttentionWeights,
    dispatch,
    extension,
    mixture_kl,
    mixture_log_prob,
    mixture_logistics_nll,
    slot_attention,
    stick_log_weights,
    vq_statistics,
)
from aime.kernels.mixture_kl import cpp as mixture
from aime.kernels.mixture_kl.reference import (
    mixture_kl_reference,
    mixture_log_prob_reference,
    stick_log_weights_reference,
)
from aime.kernels.mixture_logistics import cpp as logistics
from aime.kernels.mixture_logistics.reference import mixture_logistics_nll_reference
from aime.kernels.slot_attention import cpp as slots
from aime.kernels.slot_attention.reference import slot_attention_reference

pytestmark = pytest.mark.skipif(not dispatch.EXTENSION_BUILT, reason="aime.kernels._cpu is not built")
INSTRUCTIONS = ["avx512", "avx2", "baseline"]


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request: pytest.FixtureRequest) -> str:
    from aime.kernels import _cpu

    if request.param not in _cpu.instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    return str(request.param)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def exact_gradients(function: Callable[..., Any], leaves: list[Tensor], upstream: list[Tensor]) -> list[Tensor]:
    doubles = [leaf.double().requires_grad_() for leaf in leaves]
    outputs = function(*doubles)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return list(torch.autograd.grad(outputs, doubles, [tensor.double() for tensor in upstream]))


def close(ours: Iterator[Tensor] | list[Tensor] | tuple[Tensor, ...], exact: list[Tensor], tolerance: float) -> None:
    for mine, truth in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.double(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("rows", "sticks"), [(0, 3), (1, 1), (5, 0), (7, 14), (700, 3), (3, 40)])
def test_sticks_of_every_instruction_set(instructions: str, rows: int, sticks: int) -> None:
    # beyond 1 the definition itself loses digits in float64; test_mixture_kl.py has the edges against 700 digits
    log_a, log_b = normal(rows, sticks).tanh(), normal(rows, sticks, seed=1).tanh()
    u = torch.rand(rows, sticks, generator=torch.Generator().manual_seed(2)) * 0.98 + 0.01
    ours = mixture.stick_log_weights(log_a, log_b, u, instructions)
    exact = stick_log_weights_reference(log_a.double(), log_b.double(), u.double())
    for mine, truth in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.double(), truth, rtol=2e-5, atol=2e-5)
    upstream = [normal(*tensor.shape, seed=3) for tensor in ours]
    gradients = mixture.stick_log_weights_backward(log_a, log_b, u, *upstream, instructions)
    truths = exact_gradients(lambda a, b: stick_log_weights_reference(a, b, u.double()), [log_a, log_b], upstream)
    close(gradients, truths, 3e-4)


SIZES = [
    (1, 1, 1, 1),
    (2, 3, 1, 16),
    (1, 5, 4, 5),
    (8, 9, 6, 32),
    (5, 4, 33, 18),
    (17, 2, 3, 48),
    (3, 0, 2, 4),
    (0, 2, 3, 4),
]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("samples", "rows", "components", "width"), SIZES)
def test_densities_of_every_instruction_set(
    instructions: str, samples: int, rows: int, components: int, width: int, shared: bool
) -> None:
    shape = (components, width) if shared else (rows, components, width)
    z, log_pi = normal(samples, rows, width), normal(rows, components).log_softmax(-1)
    tensors = [z, log_pi, normal(*shape, seed=1), 0.4 * normal(*shape, seed=2)]
    ours, _ = mixture.mixture_log_prob(*tensors, None, instructions)
    torch.testing.assert_close(
        ours.double(), mixture_log_prob_reference(*(t.double() for t in tensors)), rtol=1e-5, atol=1e-4
    )
    upstream = normal(samples, rows, seed=3)
    gradients = mixture.mixture_log_prob_backward(upstream, ours, *tensors, None, instructions)
    close(gradients, exact_gradients(mixture_log_prob_reference, tensors, [upstream]), 2e-4)
    if samples == 0:
        return
    posterior = (normal(rows, width, seed=4), 0.3 * normal(rows, width, seed=5))
    ours, kl = mixture.mixture_log_prob(*tensors, posterior, instructions)
    assert kl is not None
    leaves = [*posterior, *tensors[1:]]
    exact = mixture_kl_reference(*(t.double() for t in leaves), z.double())
    torch.testing.assert_close(kl.double(), exact, rtol=1e-5, atol=1e-4)
    gradients = mixture.mixture_log_prob_backward(upstream[0], ours, *tensors, posterior, instructions)
    truths = exact_gradients(lambda *t: mixture_kl_reference(*t, z.double()), leaves, [upstream[0]])
    close(gradients, truths, 2e-4)


def pixels(batch: int, components: int, height: int, width: int) -> list[Tensor]:
    """x with both open bins, logits, means, log scales down to below the clamp, coefficients."""
    generator = torch.Generator().manual_seed(height)
    x = torch.randint(-40, 296, (batch, 3, height, width), generator=generator).clamp(0, 255) / 127.5 - 1
    shape = (batch, components, 3, height, width)
    means, scales = 0.5 * normal(*shape, seed=1), normal(*shape, seed=2) - 2
    if scales.numel():
        scales.view(-1)[0] = -9.0
        means.view(-1)[0] = x.view(-1)[0] + 0.01  # near, or the definition divides 0 by 0 in float64
    return [x, normal(batch, components, height, width), means, scales, normal(*shape, seed=3)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("batch", "components", "height", "width"),
    [(1, 1, 1, 1), (2, 3, 5, 7), (1, 10, 16, 17), (2, 1, 16, 16), (0, 2, 3, 3)],
)
def test_logistics_of_every_instruction_set(
    instructions: str, batch: int, components: int, height: int, width: int, weighted: bool
) -> None:
    x, *leaves = pixels(batch, components, height, width)
    weights = torch.rand(batch, height, width, generator=torch.Generator().manual_seed(4)) if weighted else None
    double = None if weights is None else weights.double()
    nll, mean, *saved = logistics.mixture_logistics_nll(x, *leaves, weights, instructions)
    exact, exact_mean = mixture_logistics_nll_reference(x.double(), *(t.double() for t in leaves), double)
    torch.testing.assert_close(nll.double(), exact, rtol=2e-6, atol=1e-4)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-5, atol=1e-5)
    upstream = [normal(batch, seed=5), normal(batch, 3, height, width, seed=6)]
    gradients = logistics.mixture_logistics_nll_backward(*upstream, mean, *saved, x, *leaves, weights, instructions)
    truths = exact_gradients(lambda *t: mixture_logistics_nll_reference(x.double(), *t, double), leaves, upstream)
    close(gradients, truths, 1e-3)  # x rounds to float32 and is divided by a scale down to e^-7


def slot_weights(channels: int, width: int, hidden: int) -> list[Tensor]:
    shapes = [(channels,), (channels,), (width,), (width,), (width, width), (width, channels), (width, channels)]
    shapes += [(3 * width, width), (3 * width, width), (3 * width,), (3 * width,), (width,), (width,)]
    shapes += [(hidden, width), (hidden,), (width, hidden), (width,), (width,), (width,), (width,)]
    return [shape[-1] ** -0.5 * normal(*shape, seed=index) for index, shape in enumerate(shapes)]


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("batch", "count", "number", "channels", "width", "hidden"),
    # rows and columns beside and on the edges of every tile, more inputs than a partial sum, two tiles of slots
    [(1, 1, 1, 4, 4, 4), (2, 7, 3, 6, 5, 33), (1, 16, 4, 16, 16, 16), (7, 33, 9, 20, 48, 80), (1, 1100, 5, 32, 36, 8)],
)
def test_slot_attention_of_every_instruction_set(
    instructions: str,
    batch: int,
    count: int,
    number: int,
    channels: int,
    width: int,
    hidden: int,
    masked: bool,
    activation: str,
) -> None:
    leaves = [3 + normal(batch, count, channels), normal(batch, number, width), *slot_weights(channels, width, hidden)]
    mask = (torch.arange(count) % 3 != 1).expand(batch, count) if masked else None
    options = (mask, 2, 1e-8, activation == "gelu")
    inputs, initial, *weights = leaves
    if mask is not None:  # the op puts zeros there, and gives them no gradient
        inputs = torch.where(mask[..., None], inputs, 0.0)
    out, attention, saved = slots.forward(inputs, initial, weights, *options, True, instructions)
    alone, _, nothing = slots.forward(inputs, initial, weights, *options, False, instructions)
    assert torch.equal(out, alone) and not nothing.numel()

    def reference(x: Tensor, start: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return slot_attention_reference(x, start, SlotAttentionWeights(*rest), 2, mask=mask, activation=activation)

    exact = reference(*(t.double() for t in leaves))
    close((out, attention), list(exact), 1e-4)
    upstream = [normal(*out.shape, seed=5), normal(*attention.shape, seed=6)]
    truths = exact_gradients(reference, leaves, upstream)
    every = (True,) * len(leaves)
    ours = slots.backward(*upstream, saved, inputs, initial, weights, *options, False, every, instructions)
    kept = 1.0 if mask is None else mask[..., None]
    for mine, truth in zip((ours[0] * kept, *ours[1:]), truths, strict=True):
        # relative to the tensor: entries that cancel keep the rounding of their terms
        assert (mine.double() - truth).norm() <= 2e-4 * truth.norm() + 1e-4
    few = [place in {1, 9} for place in range(len(leaves))]
    some = slots.backward(*upstream, saved, inputs, initial, weights, *options, False, few, instructions)
    for wanted, mine, before in zip(few, some, ours, strict=True):
        assert torch.equal(mine, before) if wanted else not mine.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_read_by_the_extension_and_described_in_python_are_the_same(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where PyTorch does not offer its tensors for exchange, Python describes them."""
    leaves = [t.to(dtype) for t in (normal(2, 9, 6).transpose(0, 1).contiguous().transpose(0, 1), normal(2, 3, 8))]
    leaves += [t.to(dtype) for t in slot_weights(6, 8, 12)]
    call = cases()["slots"][0]
    assert slots.look(*leaves[:2], leaves[2:]) == slots.NO_GRADIENT
    expected = results(call, leaves)
    monkeypatch.setattr(extension, "reads_tensors", lambda: False)
    assert slots.look(*leaves[:2], leaves[2:]) == slots.UNKNOWN
    assert all(itertools.starmap(torch.equal, zip(expected, results(call, leaves), strict=True)))


def test_what_the_quick_look_passes_on() -> None:
    """Anything but plain float32 or half tensors on the CPU is left to Python, which knows what to do or to say."""
    inputs, initial, *weights = normal(2, 9, 6), normal(2, 3, 8), *slot_weights(6, 8, 12)

    class Kind(Tensor):
        pass

    def look(place: int, tensor: Any) -> int:
        changed = [inputs, initial, *weights]
        changed[place] = tensor
        return slots.look(changed[0], changed[1], changed[2:])

    assert look(4, torch.nn.Parameter(weights[2])) == 1
    assert look(4, torch.nn.Parameter(weights[2], requires_grad=False)) == look(21, None) == slots.NO_GRADIENT
    negative = torch.complex(inputs, inputs).conj().imag
    others = [inputs.double(), inputs.long(), inputs.to("meta"), inputs[0], inputs.to_sparse(), negative, None, 3]
    for other in (*others, inputs.as_subclass(Kind), inputs[:, :0], inputs[..., :5], inputs[:1]):
        assert look(0, other) == slots.UNKNOWN
    assert look(4, weights[2][:7]) == look(18, None) == slots.UNKNOWN
    with torch.autograd.forward_ad.dual_level():
        assert look(0, inputs) == slots.UNKNOWN


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_statistics_read_any_strides_and_types(dtype: torch.dtype) -> None:
    x, generator = normal(3, 5, 4, 130).to(dtype), torch.Generator().manual_seed(1)
    indices = torch.randint(0, 6, (3, 5, 4), generator=generator)
    expected = vq_statistics(x.float(), indices, 6, backend="torch")
    turned = x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0), indices.int().permute(2, 0, 1).contiguous()
    gaps = x.repeat_interleave(2, -1)[..., ::2], indices.repeat_interleave(2, -1)[..., ::2]
    for rows, codes in ((x, indices), (turned[0], turned[1].permute(1, 2, 0)), gaps):
        for found, truth in zip(vq_statistics(rows, codes, 6, backend="cpp"), expected, strict=True):
            assert torch.equal(found, truth)  # both add rows in their order


def results(call: Callable[..., Any], leaves: list[Tensor]) -> list[Tensor]:
    """Values and gradients."""
    fresh = [leaf.detach().requires_grad_() for leaf in leaves]
    outputs = call(*fresh)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    scalar = sum((output.double().sin().sum() for output in outputs), torch.zeros((), dtype=torch.float64))
    return [*(output.detach() for output in outputs), *torch.autograd.grad(scalar, fresh)]


def cases() -> dict[str, tuple[Callable[..., Any], list[Tensor]]]:
    x, *parameters = pixels(3, 4, 24, 20)
    u, eps = torch.full((500, 9), 0.3), normal(4, 300, 12)
    mixtures = [normal(300, 7), normal(300, 7, 12, seed=1), 0.3 * normal(300, 7, 12, seed=2)]
    shared = [mixtures[0], mixtures[1][0], mixtures[2][0]]
    options = {"backend": "cpp"}
    posterior = [normal(300, 12, seed=6), 0.2 * normal(300, 12, seed=7)]
    return {
        "sticks": (lambda a, b: stick_log_weights(a, b, u, **options), [normal(500, 9), normal(500, 9, seed=1)]),
        "density": (lambda *t: mixture_log_prob(*t, **options), [eps, *mixtures]),
        "shared": (lambda *t: mixture_log_prob(*t, **options), [eps, *shared]),
        "kl": (lambda *t: mixture_kl(*t, eps, **options), [*posterior, *mixtures]),
        "slots": (
            lambda x, s, *w: slot_attention(x, s, SlotAttentionWeights(*w), 2, **options),
            [normal(3, 1050, 32), normal(3, 40, 32, seed=1), *slot_weights(32, 32, 24)],
        ),
        "logistics": (lambda *t: mixture_logistics_nll(x, *t, **options), parameters),
    }


CASES = list(cases())


@pytest.mark.parametrize("name", CASES)
def test_threads_change_no_bit(name: str) -> None:
    call, leaves = cases()[name]
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(results(call, leaves))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(itertools.starmap(torch.equal, zip(found[0], others, strict=True)))


@pytest.mark.parametrize("name", CASES)
def test_strides_change_no_bit(name: str) -> None:
    call, leaves = cases()[name]
    dense = results(call, leaves)
    turned = results(call, [leaf.transpose(0, -1).contiguous().transpose(0, -1) for leaf in leaves])
    gaps = results(call, [leaf.repeat_interleave(2, -1)[..., ::2] for leaf in leaves])
    for first, second, third in zip(dense, turned, gaps, strict=True):
        assert torch.equal(first, second) and torch.equal(first, third)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_half_types_are_read_as_they_are(name: str, dtype: torch.dtype) -> None:
    call, leaves = cases()[name]
    halves = [leaf.to(dtype) for leaf in leaves]
    count = len(results(call, halves)) - len(halves)
    for half, full in zip(
        results(call, halves)[:count], results(call, [h.float() for h in halves])[:count], strict=True
    ):
        # slots come in the dtype of the given ones
        assert half.dtype == torch.float32 or (name == "slots" and half.dtype == dtype)
        assert torch.equal(half, full.to(half.dtype))


def test_a_nan_pixel_spoils_its_image_alone() -> None:
    x, *parameters = pixels(3, 4, 6, 6)
    expected, mean = mixture_logistics_nll(x, *parameters, backend="cpp")
    for tensor in parameters:
        tensor[1].view(-1)[0] = math.nan
        nll, image = mixture_logistics_nll(x, *parameters, backend="cpp")
        assert nll[1].isnan()
        assert torch.equal(nll[::2], expected[::2]) and torch.equal(image[::2], mean[::2])


def test_infinite_log_weights_switch_a_component_off() -> None:
    x, logits, *rest = pixels(2, 3, 4, 4)
    expected, mean = mixture_logistics_nll(x, logits, *rest, backend="cpp")
    wider = [torch.cat((tensor, tensor[:, :1]), 1) for tensor in rest]
    off = torch.cat((logits, torch.full_like(logits[:, :1], -math.inf)), 1)
    nll, image = mixture_logistics_nll(x, off, *wider, backend="cpp")
    torch.testing.assert_close(nll, expected, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(image, mean)


def test_float64_is_refused_with_the_reason() -> None:
    tensors = [tensor.double() for tensor in pixels(1, 2, 2, 2)]
    with pytest.raises(RuntimeError, match="takes float32, bfloat16, float16, found torch.float64"):
        mixture_logistics_nll(*tensors, backend="cpp")
    assert mixture_logistics_nll(*tensors)[0].dtype == torch.float64  # left open, PyTorch's kernels take it


def test_an_unknown_instruction_set_is_named() -> None:
    sticks = torch.full((2, 3), 0.5)
    with pytest.raises(ValueError, match="stick_log_weights: this processor cannot run instruction set 'mmx'"):
        mixture.stick_log_weights(sticks, sticks, sticks, "mmx")


@pytest.mark.parametrize(
    "wrong",
    [
        (0, 3, (2, 3), (3, 1)),  # a dtype that there is not
        (0, 0, (2, 3), (1,)),  # a stride missing
        (0, 0, [2, 3], [3, 1]),  # lists
        (-1, 0, (2, 3), (3, 1)),
        (0, 0, (2, 2**70), (3, 1)),
        (0, 0, (2, 3.0), (3, 1)),
        (0, 0, (2, 3)),
        None,
    ],
)
def test_a_tensor_that_is_none_is_refused(wrong: Any) -> None:
    """A kernel reads what it is told to: descriptions that fit no tensor end in Python's error, not in memory."""
    from aime.kernels import _cpu

    with pytest.raises(TypeError, match="incompatible function arguments"):
        _cpu.stick_log_weights((wrong, wrong, wrong), [0, 0, 0], 1)
