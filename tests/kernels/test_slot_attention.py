"""Slot attention: the op (absorbed projections) against the published textbook form in float64.

On a GPU the same cases run there too, under pytest.mark.cuda (conftest.py).
"""

import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from aime.kernels import SlotAttentionWeights, dispatch, slot_attention
from aime.kernels.slot_attention.op import WEIGHT_AXES, _fits
from aime.kernels.slot_attention.reference import slot_attention_reference

SHAPES = [(1, 1, 1, 4, 4, 4), (2, 9, 4, 8, 8, 16), (3, 33, 5, 6, 12, 24), (1, 130, 8, 16, 16, 32)]  # B, N, S, C, D, F


def random_weights(channels: int, width: int, hidden: int, bias: bool = False, seed: int = 0) -> SlotAttentionWeights:
    """float64 weights of the size that initialisation gives, LayerNorms away from identity."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    def norm(size: int) -> tuple[Tensor, Tensor]:
        return 1 + normal(size, scale=0.2), normal(size, scale=0.2)

    inputs, slots, mlp = norm(channels), norm(width), norm(width)
    bias_of = (lambda: normal(width, scale=0.3)) if bias else (lambda: None)
    return SlotAttentionWeights(
        *inputs,
        *slots,
        query_weight=normal(width, width, scale=width**-0.5),
        key_weight=normal(width, channels, scale=channels**-0.5),
        value_weight=normal(width, channels, scale=channels**-0.5),
        gru_weight_ih=normal(3 * width, width, scale=width**-0.5),
        gru_weight_hh=normal(3 * width, width, scale=width**-0.5),
        gru_bias_ih=normal(3 * width, scale=0.1),
        gru_bias_hh=normal(3 * width, scale=0.1),
        norm_mlp_weight=mlp[0],
        norm_mlp_bias=mlp[1],
        mlp_in_weight=normal(hidden, width, scale=width**-0.5),
        mlp_in_bias=normal(hidden, scale=0.1),
        mlp_out_weight=normal(width, hidden, scale=hidden**-0.5),
        mlp_out_bias=normal(width, scale=0.1),
        query_bias=bias_of(),
        key_bias=bias_of(),
        value_bias=bias_of(),
    )


def random_inputs(
    batch: int, count: int, slots: int, channels: int, width: int, seed: int = 1
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(batch, count, channels, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(batch, slots, width, generator=generator, dtype=torch.float64)


def leaves_of(inputs: Tensor, slots: Tensor, weights: SlotAttentionWeights, dtype: torch.dtype) -> list[Tensor | None]:
    return [t if t is None else t.detach().to(dtype).requires_grad_() for t in (inputs, slots, *weights)]


def run(op, leaves: list[Tensor | None], **options) -> tuple[Tensor, Tensor, list[Tensor]]:  # type: ignore[no-untyped-def]
    """Outputs, and gradients of a loss that reads both of them."""
    inputs, slots, *rest = leaves
    out, attention = op(inputs, slots, SlotAttentionWeights(*rest), **options)
    ramp = torch.linspace(-1, 1, attention.numel(), dtype=attention.dtype).view(attention.shape)
    (out.sin().sum() + (attention * ramp).sum()).backward()
    gradients = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves if leaf is not None]
    return out.detach(), attention.detach(), gradients


class OnTarget:
    """The op by a backend on its device, weights of the tuple moved one by one."""

    def __init__(self, target: Callable[..., Any]) -> None:
        self.target = target

    def __call__(self, inputs: Tensor, slots: Tensor, weights: SlotAttentionWeights, **options: Any) -> Any:
        return self.target(slot_attention, inputs, slots, weights, **options)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_absorbed_equals_textbook(target: Callable[..., Any], shape: tuple[int, ...], bias: bool) -> None:
    batch, count, slots, channels, width, hidden = shape
    weights = random_weights(channels, width, hidden, bias)
    tensors = (*random_inputs(batch, count, slots, channels, width), weights)
    exact = run(slot_attention_reference, leaves_of(*tensors, torch.float64))
    ours = run(OnTarget(target), leaves_of(*tensors, torch.float32))
    assert ours[0].dtype == torch.float32 and ours[1].dtype == torch.float32
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(ours[1].double(), exact[1], rtol=1e-4, atol=1e-5)
    for gradient, truth in zip(ours[2], exact[2], strict=True):
        # relative to the tensor: entries that cancel keep the rounding of their terms
        assert (gradient.double() - truth).norm() <= 1e-4 * truth.norm() + 1e-5


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_variants_equal_textbook(
    target: Callable[..., Any], heads: int, masked: bool, implicit: bool, activation: str
) -> None:
    if target.backend == "cpp" and heads > 1:
        pytest.skip("it takes one head")
    weights = random_weights(6, 8, 12, bias=implicit)
    tensors = (*random_inputs(2, 11, 3, 6, 8), weights)
    mask = torch.rand(2, 11, generator=torch.Generator().manual_seed(2)) < 0.6 if masked else None
    options = {"heads": heads, "mask": mask, "implicit": implicit, "activation": activation, "iters": 2}
    exact = run(slot_attention_reference, leaves_of(*tensors, torch.float64), **options)
    # float64 is for interpreted kernels only
    double = target.device == "cpu" and target.backend != "cpp"
    ours = run(OnTarget(target), leaves_of(*tensors, torch.float64 if double else torch.float32), **options)
    tolerance = {"rtol": 1e-9, "atol": 1e-10} if double else {"rtol": 1e-3, "atol": 1e-4}
    for value, truth in zip((ours[0], ours[1], *ours[2]), (exact[0], exact[1], *exact[2]), strict=True):
        torch.testing.assert_close(value.double(), truth, **tolerance)


# more channels than a chunk, more tiles than programs share, slots times heads at the limit, one slot, one input
WIDE = [(1, 70, 3, 150, 20, 1, 1), (1, 40, 4, 20, 24, 3, 2), (2, 65, 1, 4, 4, 1, 1), (2, 1, 16, 16, 16, 1, 1)]


@pytest.mark.parametrize(("batch", "count", "slots", "channels", "width", "heads", "iters"), WIDE)
def test_beyond_one_tile(
    target: Callable[..., Any], batch: int, count: int, slots: int, channels: int, width: int, heads: int, iters: int
) -> None:
    if target.backend == "cpp" and heads > 1:
        pytest.skip("it takes one head")
    tensors = (*random_inputs(batch, count, slots, channels, width), random_weights(channels, width, 70, bias=True))
    mask = torch.arange(count).expand(batch, count) % 5 != 1
    options = {"heads": heads, "iters": iters, "mask": mask}
    exact = run(slot_attention_reference, leaves_of(*tensors, torch.float64), **options)
    ours = run(OnTarget(target), leaves_of(*tensors, torch.float32), **options)
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[1].double(), exact[1], rtol=1e-4, atol=1e-5)
    for gradient, truth in zip(ours[2], exact[2], strict=True):
        assert (gradient.double() - truth).norm() <= 2e-4 * truth.norm() + 1e-5


def test_a_program_walks_over_several_tiles(target: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if target.backend == "triton":
        from aime.kernels.slot_attention import fused_entry
        from aime.kernels.slot_attention import triton as kernels

        monkeypatch.setattr(kernels, "PROGRAMS", 2)  # of 5 tiles
        monkeypatch.setattr(fused_entry, "ENTRY_WIDTH", 0)  # small slots have a program for an entry otherwise
    tensors = (*random_inputs(1, 300, 4, 6, 8), random_weights(6, 8, 12))
    exact = run(slot_attention_reference, leaves_of(*tensors, torch.float64))
    ours = run(OnTarget(target), leaves_of(*tensors, torch.float32))
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-4, atol=2e-5)
    for gradient, truth in zip(ours[2], exact[2], strict=True):
        assert (gradient.double() - truth).norm() <= 1e-4 * truth.norm() + 1e-5


@pytest.mark.parametrize("own_program", [False, True])
def test_weights_gradients_of_several_parts_and_both_structures(
    target: Callable[..., Any], own_program: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if target.backend != "triton":
        pytest.skip("others have one structure")
    from aime.kernels.slot_attention import fused_entry, triton_weights

    monkeypatch.setattr(triton_weights, "PART_ROWS", 32)  # of 72 rows
    if not own_program:
        monkeypatch.setattr(fused_entry, "ENTRY_WIDTH", 0)
    tensors = (*random_inputs(6, 5, 4, 6, 8), random_weights(6, 8, 40, bias=True))
    exact = run(slot_attention_reference, leaves_of(*tensors, torch.float64))
    ours = run(OnTarget(target), leaves_of(*tensors, torch.float32))
    for gradient, truth in zip(ours[2], exact[2], strict=True):
        assert (gradient.double() - truth).norm() <= 1e-4 * truth.norm() + 1e-5


@pytest.mark.skipif(not dispatch.TRITON_INSTALLED, reason="triton is not installed")
def test_products_of_weights_that_nobody_asks_for_are_not_made() -> None:
    """Their place keeps what was in it."""
    from aime.kernels.slot_attention import triton_weights

    device, (width, hidden, rows) = "cuda" if torch.cuda.is_available() else "cpu", (8, 12, 20)
    sizes = [(1, rows, 10 * width + 2 * hidden), (1, rows, 3 * width), (2, rows, 9 * width + hidden)]
    spaces = [torch.ones(*size, device=device) for size in (*sizes, (1, rows, 4 * width), (1, rows, 2))]
    spaces[2] = spaces[2][:1]
    wanted = {"key_bias", "mlp_out_weight", "norm_inputs_weight"}
    with mock.patch.object(torch, "empty", lambda *size, **options: torch.full(size, torch.nan, **options)):
        found = triton_weights.fused_weight_gradients(*spaces, width, width, hidden, wanted)
    made = {"key_weight", "key_bias", "mlp_out_weight", "mlp_out_bias", "norm_inputs_weight", "norm_inputs_bias"}
    assert {name for name, gradient in found.items() if gradient.isfinite().all()} == made
    assert all(gradient.isnan().all() for name, gradient in found.items() if name not in made)


@pytest.mark.parametrize("masked", [False, True])
def test_any_strides(target: Callable[..., Any], masked: bool) -> None:
    weights = SlotAttentionWeights(*(t if t is None else t.float() for t in random_weights(6, 8, 12)))
    inputs, slots = (tensor.float() for tensor in random_inputs(2, 12, 3, 6, 8))
    mask = torch.arange(24).view(2, 12) % 5 > 0 if masked else None
    channel_first = inputs.transpose(1, 2).contiguous().transpose(1, 2)  # as an encoder gives it
    every_other = torch.stack((inputs, torch.full_like(inputs, torch.nan)), 1).transpose(1, 2).flatten(1, 2)[:, ::2]
    turned = weights._replace(query_weight=weights.query_weight.t().contiguous().t())
    expected = run(OnTarget(target), leaves_of(inputs, slots, weights, torch.float32), mask=mask)
    for strided in (channel_first, every_other):
        out, attention, gradients = run(
            lambda x, s, w, like=strided, **o: OnTarget(target)(
                torch.empty_strided(x.shape, like.stride()).copy_(x), s.expand(2, 3, 8), w, **o
            ),
            leaves_of(inputs, slots, turned, torch.float32),
            mask=None if mask is None else mask.t().contiguous().t(),
        )
        # the torch backend's products round by layout
        torch.testing.assert_close(out, expected[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(attention, expected[1], rtol=1e-3, atol=1e-5)
        for gradient, truth in zip(gradients, expected[2], strict=True):
            # relative to the tensor: entries that cancel keep the rounding of their terms
            assert (gradient - truth).norm() <= 1e-3 * truth.norm() + 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(target: Callable[..., Any], dtype: torch.dtype) -> None:
    tensors = (*random_inputs(2, 20, 3, 6, 8), random_weights(6, 8, 12))
    rounded = [t if t is None else t.to(dtype) for t in (tensors[0], tensors[1], *tensors[2])]
    exact = run(slot_attention_reference, [t if t is None else t.double().requires_grad_() for t in rounded])
    ours = run(OnTarget(target), [t if t is None else t.requires_grad_() for t in rounded])
    assert ours[0].dtype == dtype and ours[1].dtype == torch.float32
    # the other backends multiply in the half type on the slot side: .08 of a gradient's norm at worst, in bfloat16
    share = 0.02 if target.backend == "triton" else 0.2
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=share, atol=share)
    for gradient, truth in zip(ours[2], exact[2], strict=True):
        assert gradient.dtype == dtype
        assert (gradient.double() - truth).norm() <= share * truth.norm() + 3e-2


def test_a_nan_input_stays_in_its_batch_entry(target: Callable[..., Any]) -> None:
    weights = SlotAttentionWeights(*(t if t is None else t.float() for t in random_weights(6, 8, 12)))
    inputs, slots = (tensor.float() for tensor in random_inputs(3, 10, 3, 6, 8))
    expected, _ = target(slot_attention, inputs, slots, weights)
    inputs[1, 4, 2] = torch.nan
    out, attention = target(slot_attention, inputs, slots, weights)
    assert out[1].isnan().all() and attention[1, :, 4].isnan().all()
    assert torch.equal(out[::2], expected[::2])


def test_a_gradient_through_attention_or_slots_alone(target: Callable[..., Any]) -> None:
    tensors = (*random_inputs(2, 9, 3, 6, 8), random_weights(6, 8, 12))
    for read in (0, 1):
        gradients = []
        for op, dtype in ((slot_attention_reference, torch.float64), (OnTarget(target), torch.float32)):
            inputs, slots, *rest = leaves_of(*tensors, dtype)
            op(inputs, slots, SlotAttentionWeights(*rest), iters=2)[read].sin().sum().backward()
            gradients.append((inputs.grad.double(), slots.grad.double()))
        for truth, ours in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("wanted", [(1,), (0, 6, 8, 21), (2, 9, 19)])
def test_frozen_tensors_cost_no_gradient_and_change_none(target: Callable[..., Any], wanted: tuple[int, ...]) -> None:
    tensors = (*random_inputs(2, 9, 3, 6, 8), random_weights(6, 8, 12, bias=True))
    found = []
    for frozen in (False, True):
        inputs, slots, *rest = leaves = leaves_of(*tensors, torch.float32)
        for place, leaf in enumerate(leaves):
            leaf.requires_grad_(not frozen or place in wanted)
        OnTarget(target)(inputs, slots, SlotAttentionWeights(*rest), iters=2)[0].sin().sum().backward()
        assert not frozen or all((leaf.grad is None) == (place not in wanted) for place, leaf in enumerate(leaves))
        found.append([leaves[place].grad for place in wanted])
    for every, alone in zip(*found, strict=True):
        torch.testing.assert_close(alone, every, rtol=1e-6, atol=1e-7)


def test_masked_inputs_have_no_say(target: Callable[..., Any]) -> None:
    weights = SlotAttentionWeights(*(t if t is None else t.float() for t in random_weights(6, 8, 12)))
    inputs, slots = (tensor.float() for tensor in random_inputs(2, 10, 3, 6, 8))
    mask = torch.arange(10) < 7
    short, _ = target(slot_attention, inputs[:, :7], slots, weights)
    masked, _ = target(slot_attention, inputs, slots, weights, mask=mask.expand(2, 10))
    torch.testing.assert_close(masked, short, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("heads", [1, 2])
def test_a_masked_input_takes_no_part_whatever_it_holds(target: Callable[..., Any], heads: int, poison: float) -> None:
    """Slots, attention and all gradients are the same bits; the input itself gets no gradient."""
    if target.backend == "cpp" and heads > 1:
        pytest.skip("it takes one head")
    inputs, slots, weights = (*random_inputs(2, 10, 3, 6, 8), random_weights(6, 8, 12))
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[0, 6:] = mask[1, 2] = False
    poisoned = inputs.masked_fill(~mask[:, :, None], poison)
    options = {"mask": mask, "heads": heads, "iters": 2}
    expected, found = (
        run(OnTarget(target), leaves_of(given, slots, weights, torch.float32), **options)
        for given in (inputs, poisoned)
    )
    for ours, truth in zip((*found[:2], *found[2]), (*expected[:2], *expected[2]), strict=True):
        assert torch.equal(ours, truth)
    assert not found[2][0][~mask].any()
    reference = slot_attention_reference(poisoned, slots, weights, **options)
    for ours, truth in zip(found[:2], reference, strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_an_empty_batch(target: Callable[..., Any], heads: int, masked: bool) -> None:
    if target.backend == "cpp" and heads > 1:
        pytest.skip("it takes one head")
    tensors = leaves_of(*random_inputs(0, 5, 3, 6, 8), random_weights(6, 8, 12, bias=True), torch.float32)
    mask = torch.ones(0, 5, dtype=torch.bool) if masked else None
    out, attention, gradients = run(OnTarget(target), tensors, heads=heads, mask=mask)
    assert out.shape == (0, 3, 8) and attention.shape == (0, 3, 5)
    assert not any(gradient.any() for gradient in gradients)


def test_attention_sums_to_one_over_slots(target: Callable[..., Any]) -> None:
    weights = SlotAttentionWeights(*(t if t is None else t.float() for t in random_weights(6, 8, 12)))
    inputs, slots = (tensor.float() for tensor in random_inputs(2, 10, 3, 6, 8))
    _, attention = target(slot_attention, 100 * inputs, 100 * slots, weights)
    torch.testing.assert_close(attention.sum(1), torch.ones(2, 10), rtol=0, atol=1e-6)


def test_permutations_of_slots_and_inputs(target: Callable[..., Any]) -> None:
    weights = SlotAttentionWeights(*(t if t is None else t.float() for t in random_weights(6, 8, 12)))
    inputs, slots = (tensor.float() for tensor in random_inputs(2, 10, 4, 6, 8))
    out, attention = target(slot_attention, inputs, slots, weights)
    order, places = torch.tensor([2, 0, 3, 1]), torch.randperm(10, generator=torch.Generator().manual_seed(3))
    moved, moved_attention = target(slot_attention, inputs[:, places], slots[:, order], weights)
    torch.testing.assert_close(moved, out[:, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved_attention, attention[:, order][:, :, places], rtol=1e-4, atol=1e-5)


def test_matches_torch_modules(target: Callable[..., Any]) -> None:
    """One iteration written with nn.LayerNorm, nn.Linear and nn.GRUCell, weights handed over as they are."""
    torch.manual_seed(4)
    norm_inputs, norm_slots, norm_mlp = nn.LayerNorm(6), nn.LayerNorm(8), nn.LayerNorm(8)
    query, key, value = nn.Linear(8, 8, bias=False), nn.Linear(6, 8, bias=False), nn.Linear(6, 8, bias=False)
    gru, first, second = nn.GRUCell(8, 8), nn.Linear(8, 12), nn.Linear(12, 8)
    inputs, slots = (tensor.float() for tensor in random_inputs(2, 10, 3, 6, 8))
    normed = norm_inputs(inputs)
    attention = (key(normed) @ query(norm_slots(slots)).transpose(1, 2) / 8**0.5).softmax(-1) + 1e-8
    updates = (attention / attention.sum(1, keepdim=True)).transpose(1, 2) @ value(normed)
    expected = gru(updates.reshape(6, 8), slots.reshape(6, 8)).view(2, 3, 8)
    expected = expected + second(torch.relu(first(norm_mlp(expected))))
    weights = SlotAttentionWeights(
        *norm_inputs.parameters(),
        *norm_slots.parameters(),
        query.weight,
        key.weight,
        value.weight,
        *gru.parameters(),
        *norm_mlp.parameters(),
        *first.parameters(),
        *second.parameters(),
    )
    ours, _ = target(slot_attention, inputs, slots, weights, iters=1, activation="relu")
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_gradcheck(target: Callable[..., Any]) -> None:
    if target.device != "cpu" or target.backend == "cpp":
        pytest.skip("float64 is for interpreted kernels only")
    tensors = (*random_inputs(1, 4, 2, 4, 4), random_weights(4, 4, 5, bias=True))
    weights = tensors[2]
    leaves = (tensors[0], tensors[1], weights.key_weight, weights.gru_weight_hh)

    def op(inputs: Tensor, slots: Tensor, key: Tensor, gru: Tensor) -> tuple[Tensor, Tensor]:
        return target(slot_attention, inputs, slots, weights._replace(key_weight=key, gru_weight_hh=gru), iters=2)

    assert torch.autograd.gradcheck(op, tuple(leaf.requires_grad_() for leaf in leaves), fast_mode=True)


def test_autocast_keeps_dtypes(target: Callable[..., Any]) -> None:
    weights = SlotAttentionWeights(*(t if t is None else t.float() for t in random_weights(6, 8, 12)))
    inputs, slots = (tensor.float() for tensor in random_inputs(2, 10, 3, 6, 8))
    expected, _ = target(slot_attention, inputs, slots, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, attention = target(slot_attention, inputs, slots, weights)
    assert out.dtype == torch.float32 and attention.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=0.1, atol=0.1)  # bfloat16 products, eight bits


def test_empty_batch(target: Callable[..., Any]) -> None:
    weights = SlotAttentionWeights(*(t if t is None else t.float() for t in random_weights(6, 8, 12)))
    out, attention = target(slot_attention, torch.zeros(0, 5, 6), torch.zeros(0, 3, 8), weights)
    assert out.shape == (0, 3, 8) and attention.shape == (0, 3, 5)


def test_errors_name_the_axes() -> None:
    weights = random_weights(6, 8, 12)
    inputs, slots = random_inputs(2, 10, 3, 6, 8)
    with pytest.raises(ValueError, match=re.escape("slots: expected shape (B=2, S, D), found (3, 3, 8); axis B is 3")):
        slot_attention(inputs, torch.zeros(3, 3, 8), weights)
    with pytest.raises(ValueError, match=re.escape("norm_inputs_weight: expected shape (C=5), found (6,)")):
        slot_attention(inputs[..., :5], slots, weights)
    with pytest.raises(ValueError, match=re.escape("heads: expected a divisor of D=8, found 3")):
        slot_attention(inputs, slots, weights, heads=3)
    with pytest.raises(ValueError, match="iters: expected at least 1, found 0"):
        slot_attention(inputs, slots, weights, iters=0)
    with pytest.raises(ValueError, match=re.escape("activation: expected one of ['gelu', 'relu'], found 'silu'")):
        slot_attention(inputs, slots, weights, activation="silu")
    with pytest.raises(TypeError, match="mask: expected bool, found torch.float32"):
        slot_attention(inputs, slots, weights, mask=torch.ones(2, 10))
    if dispatch.TRITON_INSTALLED and dispatch.TRITON_INTERPRETED:
        with pytest.raises(RuntimeError, match="'triton' cannot run: it takes C from 4 to 512, found 3"):
            slot_attention(torch.zeros(1, 4, 3), slots[:1], random_weights(3, 8, 12), backend="triton")
        with pytest.raises(RuntimeError, match="power of two, up to 16, found S=9, heads=2"):
            slot_attention(inputs, torch.zeros(2, 9, 8), weights, heads=2, backend="triton")


@pytest.mark.parametrize("name", ["inputs", "slots", *WEIGHT_AXES])
def test_the_quick_check_sees_what_the_full_one_does(name: str) -> None:
    """Both know the shape, dtype and device of every tensor; all sizes differ, so that none stands for another."""
    sizes = {"B": 2, "N": 7, "C": 3, "S": 5, "D": 4, "F": 6, "3D": 12}
    axes = {"inputs": ("B", "N", "C"), "slots": ("B", "S", "D"), **WEIGHT_AXES}
    tensors = {key: torch.zeros([sizes[axis] for axis in value]) for key, value in axes.items()}

    def fits(**changes: torch.Tensor) -> bool:
        inputs, slots, *weights = (tensors | changes).values()
        return _fits(inputs, slots, SlotAttentionWeights(*weights))

    assert fits()
    assert not fits(**{name: tensors[name].int()})
    assert not fits(**{name: tensors[name].to("meta")})
    assert not fits(**{name: tensors[name].unsqueeze(0)})
    if name not in {"inputs", "slots"}:
        assert not fits(**{name: torch.cat([tensors[name]] * 2, -1)})
