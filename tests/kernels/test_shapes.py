"""Any shape: ops against their references over drawn sizes and layouts."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aime.kernels import dispatch, mixture_kl, mixture_logistics_nll, slot_attention, vq_lookup
from aime.kernels.mixture_kl.reference import mixture_kl_reference
from aime.kernels.mixture_logistics.reference import mixture_logistics_nll_reference
from aime.kernels.slot_attention.reference import slot_attention_reference
from aime.kernels.slot_attention.weights import SlotAttentionWeights
from aime.kernels.vq_lookup.reference import vq_lookup_reference

BACKENDS = ["torch"]
BACKENDS += ["triton"] if dispatch.TRITON_INSTALLED and dispatch.TRITON_INTERPRETED else []


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_vq_lookup(data: st.DataObject) -> None:
    leading = data.draw(st.lists(st.integers(0, 5), max_size=3))
    heads, codes, width = (data.draw(st.integers(1, 6)), data.draw(st.integers(1, 70)), data.draw(st.integers(4, 40)))
    generator = torch.Generator().manual_seed(14)
    x = torch.randn(*leading, heads, width, generator=generator)
    x = x.permute(*data.draw(st.permutations(range(len(leading)))), -2, -1)
    codebook = torch.randn(heads, codes, width, generator=generator)
    _, expected, _ = vq_lookup_reference(x.reshape(-1, heads, width).double(), codebook.double())
    for backend in (*BACKENDS, *(["cpp"] if dispatch.EXTENSION_BUILT else [])):
        result = vq_lookup(x, codebook, backend=backend)
        assert result.quantized.shape == x.shape
        assert torch.equal(result.indices.reshape(-1, heads), expected)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(0, 9), st.integers(1, 40), st.integers(1, 70), st.booleans())
def test_mixture_kl(samples: int, rows: int, components: int, width: int, shared: bool) -> None:
    shape = (components, width) if shared else (rows, components, width)
    tensors = [normal(rows, width, seed=0), 0.3 * normal(rows, width, seed=1), normal(rows, components, seed=2)]
    tensors += [normal(*shape, seed=3), 0.3 * normal(*shape, seed=4), normal(samples, rows, width, seed=5)]
    exact = mixture_kl_reference(*(tensor.double() for tensor in tensors))
    for backend in BACKENDS:
        torch.testing.assert_close(mixture_kl(*tensors, backend=backend).double(), exact, rtol=1e-5, atol=2e-4)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 20), st.integers(4, 40), st.integers(4, 24), st.booleans())
def test_slot_attention(batch: int, count: int, slots: int, channels: int, width: int, masked: bool) -> None:
    shapes = [(channels,), (channels,), (width,), (width,), (width, width), (width, channels), (width, channels)]
    shapes += [(3 * width, width), (3 * width, width), (3 * width,), (3 * width,), (width,), (width,)]
    shapes += [(5, width), (5,), (width, 5), (width,)]
    weights = [0.4 * normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    inputs, initial = normal(batch, count, channels, seed=30), normal(batch, slots, width, seed=31)
    mask = normal(batch, count, seed=32) > -0.5
    mask[:, 0] = True
    options = {"iters": 2, "mask": mask if masked else None}
    exact_weights = SlotAttentionWeights(*(weight.double() for weight in weights))
    exact, exact_attention = slot_attention_reference(inputs.double(), initial.double(), exact_weights, **options)
    for backend in BACKENDS:
        out, attention = slot_attention(inputs, initial, SlotAttentionWeights(*weights), backend=backend, **options)
        torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(attention.double(), exact_attention, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 3), st.integers(1, 6), st.integers(1, 20), st.integers(1, 20))
def test_mixture_logistics(batch: int, components: int, height: int, width: int) -> None:
    x = torch.randint(0, 256, (batch, 3, height, width), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    shape = (batch, components, 3, height, width)
    logits = normal(batch, components, height, width, seed=1)
    parameters = [logits, 0.5 * normal(*shape, seed=2), 0.3 * normal(*shape, seed=3) - 2, normal(*shape, seed=4)]
    exact = mixture_logistics_nll_reference(x.double(), *(tensor.double() for tensor in parameters))
    for backend in BACKENDS:
        for ours, truth in zip(mixture_logistics_nll(x, *parameters, backend=backend), exact, strict=True):
            torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-3)
