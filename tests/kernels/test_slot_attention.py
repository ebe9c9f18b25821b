"""Slot attention: the op (absorbed projections) against the published textbook form in float64.

On a GPU the same cases run there too, under pytest.mark.cuda (conftest.py).
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aime.kernels import SlotAttentionWeights, slot_attention
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


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_absorbed_equals_textbook(target: Callable[..., Any], shape: tuple[int, ...], bias: bool) -> None:
    batch, count, slots, channels, width, hidden = shape
    weights = random_weights(channels, width, hidden, bias)
    tensors = (*random_inputs(batch, count, slots, channels, width), weights)
    exact = run(slot_attention_reference, leaves_of(*tensors, torch.float64))
    ours = run(slot_attention, leaves_of(*tensors, torch.float32))
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
def test_variants_equal_textbook(heads: int, masked: bool, implicit: bool, activation: str) -> None:
    weights = random_weights(6, 8, 12, bias=True)
    tensors = (*random_inputs(2, 11, 3, 6, 8), weights)
    mask = torch.rand(2, 11, generator=torch.Generator().manual_seed(2)) < 0.6 if masked else None
    options = {"heads": heads, "mask": mask, "implicit": implicit, "activation": activation, "iters": 2}
    exact = run(slot_attention_reference, leaves_of(*tensors, torch.float64), **options)
    ours = run(slot_attention, leaves_of(*tensors, torch.float64), backend="torch", **options)
    for value, truth in zip((ours[0], ours[1], *ours[2]), (exact[0], exact[1], *exact[2]), strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-10)


def test_masked_inputs_have_no_say(target: Callable[..., Any]) -> None:
    weights = SlotAttentionWeights(*(t if t is None else t.float() for t in random_weights(6, 8, 12)))
    inputs, slots = (tensor.float() for tensor in random_inputs(2, 10, 3, 6, 8))
    mask = torch.arange(10) < 7
    short, _ = target(slot_attention, inputs[:, :7], slots, weights)
    masked, _ = target(slot_attention, inputs, slots, weights, mask=mask.expand(2, 10))
    torch.testing.assert_close(masked, short, rtol=1e-5, atol=1e-6)


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


def test_gradcheck() -> None:
    tensors = (*random_inputs(1, 4, 2, 3, 4), random_weights(3, 4, 5, bias=True))
    leaves = tuple(tensor.requires_grad_() for tensor in (tensors[0], tensors[1], *tensors[2]))

    def op(inputs: Tensor, slots: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        return slot_attention(inputs, slots, SlotAttentionWeights(*weights), iters=2, backend="torch")

    assert torch.autograd.gradcheck(op, leaves, fast_mode=True)


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
