"""Rivals of vq_lookup and slot attention: other packages, and their operations in plain lines where those are absent.

A machine without network has torch alone. What a package computes there is written again here, operation for operation
as its documentation and its paper describe it, so that a table has its row: named "plain, ...".
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aime.kernels.slot_attention.weights import SlotAttentionWeights
from bench.kernels.case import Run

Lookup = Callable[[Tensor, Tensor], object]


def installed(package: str) -> bool:
    """Whether a package is there, without importing it."""
    return importlib.util.find_spec(package) is not None


def addmm_argmin(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of all rows and codes at once, then argmin and gather."""
    half = codebook.square().sum(-1) / 2
    indices = torch.addmm(half, x, codebook.t(), alpha=-1).argmin(-1)
    return indices, codebook[indices]


def cdist_argmin(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of all rows and codes at once, then argmin and gather."""
    indices = torch.cdist(x, codebook).argmin(-1)
    return indices, codebook[indices]


def streamed_assign(x: Tensor, codebook: Tensor, tile: int = 256) -> tuple[Tensor, Tensor]:
    """Codes tile by tile with a running minimum: the pattern of fast k-means assignment (flash-kmeans)."""
    half = codebook.square().sum(-1) / 2
    best = torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)
    indices = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for start in range(0, len(codebook), tile):
        scores = torch.addmm(half[start : start + tile], x, codebook[start : start + tile].t(), alpha=-1)
        value, place = scores.min(-1)
        nearer = value < best
        best, indices = torch.where(nearer, value, best), torch.where(nearer, place + start, indices)
    return indices, codebook[indices]


def euclidean_codebook(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """vector-quantize-pytorch's Euclidean codebook in evaluation: negative distances, argmax, one-hot, gather."""
    squares = x.square().sum(-1, keepdim=True) + codebook.square().sum(-1) - 2 * x @ codebook.t()
    distances = -squares.clamp_min(0).sqrt()
    indices = distances.argmax(-1)
    F.one_hot(indices, len(codebook)).to(x.dtype)
    quantized = codebook[indices]
    return indices, x + (quantized - x)


def iterated_attention(inputs: Tensor, initial: Tensor, weights: SlotAttentionWeights, iters: int) -> Any:
    """Locatello et al. 2020, algorithm 1, as lucidrains' package runs it: keys and values, two einsums a turn."""
    w, width = weights, initial.shape[-1]
    x = F.layer_norm(inputs, inputs.shape[-1:], w.norm_inputs_weight, w.norm_inputs_bias)
    keys, values = F.linear(x, w.key_weight), F.linear(x, w.value_weight)
    slots, attention = initial, initial
    for _ in range(iters):
        queries = F.linear(F.layer_norm(slots, (width,), w.norm_slots_weight, w.norm_slots_bias), w.query_weight)
        attention = torch.einsum("bid,bjd->bij", queries, keys).mul(width**-0.5).softmax(1) + 1e-8
        updates = torch.einsum("bjd,bij->bid", values, attention / attention.sum(-1, keepdim=True))
        flat = torch.gru_cell(
            updates.flatten(0, 1), slots.flatten(0, 1), w.gru_weight_ih, w.gru_weight_hh, w.gru_bias_ih, w.gru_bias_hh
        )
        hidden = F.layer_norm(flat, (width,), w.norm_mlp_weight, w.norm_mlp_bias)
        hidden = F.linear(F.relu(F.linear(hidden, w.mlp_in_weight, w.mlp_in_bias)), w.mlp_out_weight, w.mlp_out_bias)
        slots = (flat + hidden).view_as(slots)
    return slots, attention


def packaged_lookups(x: Tensor, codebook: Tensor) -> Iterator[tuple[str, Run, float]]:
    """Name, call and bytes held: packages where they are installed, else vector-quantize-pytorch in plain lines."""
    scores = 4.0 * len(x) * len(codebook)
    if installed("vector_quantize_pytorch") and x.dtype == torch.float32:
        yield "vector-quantize-pytorch", vector_quantize_pytorch(x, codebook), 3 * scores
    else:
        yield "plain, vector-quantize-pytorch", lambda: euclidean_codebook(x, codebook), 3 * scores
    if x.is_cuda:
        yield "plain, streamed tiles", lambda: streamed_assign(x, codebook), 0.0
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return
    if installed("faiss"):
        yield "FAISS IndexFlatL2", faiss_search(x, codebook), 0.0
    if installed("sklearn"):
        yield "scikit-learn argmin", sklearn_argmin(x, codebook), 0.0


def vector_quantize_pytorch(x: Tensor, codebook: Tensor) -> Run:
    """The package in evaluation mode with the same codes."""
    module: Any = importlib.import_module("vector_quantize_pytorch")
    quantizer = (
        module.VectorQuantize(dim=x.shape[-1], codebook_size=len(codebook), kmeans_init=False).to(x.device).eval()
    )
    quantizer.codebook = codebook
    rows = x[None]

    def run() -> object:
        with torch.no_grad():
            return quantizer(rows)

    return run


def faiss_search(x: Tensor, codebook: Tensor) -> Run:
    """Exact search of one neighbour on as many threads; the index is built outside, and codes are not gathered."""
    faiss: Any = importlib.import_module("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(x.shape[-1])
    index.add(codebook.numpy())
    rows = x.numpy()
    return lambda: index.search(rows, 1)


def sklearn_argmin(x: Tensor, codebook: Tensor) -> Run:
    """Fused distances and argmin of scikit-learn, without a gather."""
    metrics: Any = importlib.import_module("sklearn.metrics")
    rows, codes = x.numpy(), codebook.numpy()
    return lambda: metrics.pairwise_distances_argmin(rows, codes)


def lucidrains(inputs: Tensor, slots: int, iters: int) -> Run:
    """The package at the same sizes on the same inputs; it draws its slots and has a ReLU."""
    width = inputs.shape[-1]
    module: Any = importlib.import_module("slot_attention").SlotAttention(slots, width, iters, hidden_dim=2 * width)
    module = module.to(inputs.device, inputs.dtype)
    leaves = [inputs, *module.parameters()]
    return lambda: torch.autograd.grad(module(inputs).sum(), leaves)
