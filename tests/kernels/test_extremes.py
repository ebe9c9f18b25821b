"""Drawn cases of every op on every backend: odd sizes and layouts, wide scales, poison in one row, wrong arguments.

Each draw is a seed: the failing parameter's id is enough to repeat it.
"""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from aime.kernels import (
    SlotAttentionWeights,
    dispatch,
    mixture_kl,
    mixture_log_prob,
    mixture_logistics_nll,
    slot_attention,
    stick_log_weights,
    vq_lookup,
    vq_statistics,
)
from aime.kernels.mixture_kl.reference import (
    mixture_kl_reference,
    mixture_log_prob_reference,
    stick_log_weights_reference,
)
from aime.kernels.mixture_logistics.reference import mixture_logistics_nll_reference
from aime.kernels.slot_attention.reference import slot_attention_reference
from aime.kernels.vq_lookup.reference import vq_lookup_reference

BACKENDS = ["torch"]
BACKENDS += ["cpp"] if dispatch.EXTENSION_BUILT else []
BACKENDS += ["triton"] if dispatch.TRITON_INSTALLED and dispatch.TRITON_INTERPRETED else []
DRAWS = {"torch": 12, "cpp": 12, "triton": 3}


class Case(NamedTuple):
    """A drawn call: tensors by argument, which of their axes counts rows, and the op with its other options."""

    tensors: dict[str, Tensor]
    row_axis: dict[str, int]  # of results too: "0", "1", ...
    op: Callable[..., Any]
    reference: Callable[..., Any]
    fixed: tuple[str, ...] = ()  # arguments without a gradient


class Draw:
    """Sizes, scales, layouts and normal numbers from one seed."""

    def __init__(self, seed: int) -> None:
        self.choice = random.Random(seed).choice
        self.shuffle = random.Random(seed + 1).shuffle
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def layout(self, tensor: Tensor) -> Tensor:
        """The same numbers: as they are, with axes permuted in memory, between NaN, or at an odd address."""
        kind = self.choice(("plain", "permuted", "sparse", "odd"))
        if kind == "permuted":
            order = list(range(tensor.dim()))
            self.shuffle(order)
            return tensor.permute(order).contiguous().permute([order.index(axis) for axis in range(tensor.dim())])
        if kind == "sparse":
            around = tensor.new_full([2 * size + 1 for size in tensor.shape], torch.nan)
            return around[tuple(slice(1, None, 2) for _ in tensor.shape)].copy_(tensor)
        if kind == "odd":
            return torch.cat((tensor.new_zeros(1), tensor.flatten()))[1:].view(tensor.shape)
        return tensor


def sticks_case(draw: Draw, rows: int) -> Case:
    shape = (rows, draw.choice((0, 1, 2, 5, 33)))
    spread = draw.choice((0.1, 0.7, 1.5))
    tensors = {name: draw.normal(*shape).clamp(-2, 2) * spread for name in ("log_a", "log_b")}
    tensors["u"] = torch.rand(*shape, generator=draw.generator) * 0.98 + 0.01
    axes = dict.fromkeys((*tensors, "0", "1", "2"), 0)
    return Case(tensors, axes, stick_log_weights, stick_log_weights_reference, ("u",))


def mixture_case(draw: Draw, rows: int, *, posterior: bool) -> Case:
    samples, components, width = draw.choice((1, 2, 5)), draw.choice((1, 2, 7, 33)), draw.choice((1, 2, 7, 65))
    scale, log_scale = draw.choice(((1.0, 0.0), (1e-3, -6.0), (1e3, 6.0), (1e-10, -22.0), (1e10, 22.0)))
    shape = (rows, components, width)
    mixture = {
        "log_pi": draw.normal(rows, components),
        "means": scale * draw.normal(*shape),
        "log_scales": 0.3 * draw.normal(*shape) + log_scale,
    }
    rows_of_mixture = dict.fromkeys(mixture, 0)
    if components > 1:
        mixture["log_pi"][:, 0] = -torch.inf
    if not posterior:
        tensors = {"z": scale * draw.normal(samples, rows, width), **mixture}
        axes = {"z": 1, **rows_of_mixture, "0": 1}
        return Case(tensors, axes, mixture_log_prob, mixture_log_prob_reference)
    q = {"mean_q": scale * draw.normal(rows, width), "log_scale_q": 0.3 * draw.normal(rows, width) + log_scale - 1}
    tensors = {**q, **mixture, "eps": draw.normal(samples, rows, width)}
    axes = {"mean_q": 0, "log_scale_q": 0, **rows_of_mixture, "eps": 1, "0": 0}
    return Case(tensors, axes, mixture_kl, mixture_kl_reference, ("eps",))


def logistics_case(draw: Draw, rows: int) -> Case:
    components, pixels = draw.choice((1, 2, 10)), (draw.choice((1, 3, 8)), draw.choice((1, 2, 17)))
    shape = (rows, components, 3, *pixels)
    tensors = {
        "x": torch.randint(0, 256, (rows, 3, *pixels), generator=draw.generator) / 127.5 - 1,
        "logits": draw.choice((1.0, 30.0)) * draw.normal(rows, components, *pixels),
        "means": draw.choice((0.0, 0.5, 3.0)) * draw.normal(*shape),
        "log_scales": 0.5 * draw.normal(*shape) + draw.choice((-6.0, -2.0, 0.0, 20.0, 90.0)),
        "coefficients": draw.choice((1.0, 20.0)) * draw.normal(*shape),
    }
    axes = dict.fromkeys((*tensors, "0", "1"), 0)
    return Case(tensors, axes, mixture_logistics_nll, mixture_logistics_nll_reference, ("x",))


WEIGHT_SHAPES = {
    "norm_inputs_weight": "C", "norm_inputs_bias": "C", "norm_slots_weight": "D", "norm_slots_bias": "D",
    "query_weight": "DD", "key_weight": "DC", "value_weight": "DC", "gru_weight_ih": "3D", "gru_weight_hh": "3D",
    "gru_bias_ih": "3", "gru_bias_hh": "3", "norm_mlp_weight": "D", "norm_mlp_bias": "D",
    "mlp_in_weight": "FD", "mlp_in_bias": "F", "mlp_out_weight": "DF", "mlp_out_bias": "D",
    "query_bias": "D", "key_bias": "D", "value_bias": "D",
}  # fmt: skip


def slot_case(draw: Draw, rows: int, *, heads: int) -> Case:
    sizes = {"C": draw.choice((4, 5, 17)), "D": heads * draw.choice((4, 6)), "F": draw.choice((1, 6))}
    sizes["3"] = 3 * sizes["D"]
    names = list(WEIGHT_SHAPES) if draw.choice((True, False)) else list(WEIGHT_SHAPES)[:-3]
    weights = {name: 0.3 * draw.normal(*(sizes[axis] for axis in WEIGHT_SHAPES[name])) for name in names}
    inputs = draw.choice((1.0, 1e-3, 1e3, 1e15)) * draw.normal(rows, draw.choice((1, 9, 70)), sizes["C"])
    options: dict[str, Any] = {"iters": draw.choice((1, 2)), "heads": heads, "implicit": draw.choice((True, False))}
    if draw.choice((True, False)):
        options["mask"] = torch.rand(inputs.shape[:2], generator=draw.generator) < 0.6
        options["mask"][:, 0] = True

    def call(op: Callable[..., Any]) -> Callable[..., Any]:
        def packed(inputs: Tensor, slots: Tensor, *weights: Tensor, **backend: str) -> Any:
            return op(inputs, slots, SlotAttentionWeights(*weights), **options, **backend)

        return packed

    tensors = {"inputs": inputs, "slots": draw.normal(rows, draw.choice((1, 2, 5)), sizes["D"]), **weights}
    axes = dict.fromkeys(("inputs", "slots", "0", "1"), 0)
    return Case(tensors, axes, call(slot_attention), call(slot_attention_reference))


CASES: dict[str, Callable[[Draw, int], Case]] = {
    "stick_log_weights": sticks_case,
    "mixture_log_prob": lambda draw, rows: mixture_case(draw, rows, posterior=False),
    "mixture_kl": lambda draw, rows: mixture_case(draw, rows, posterior=True),
    "mixture_logistics_nll": logistics_case,
    "slot_attention": lambda draw, rows: slot_case(draw, rows, heads=1),
    "slot_attention, two heads": lambda draw, rows: slot_case(draw, rows, heads=2),
}


def backends(op: str) -> list[str]:
    return [name for name in BACKENDS if name != "cpp" or "heads" not in op]


EVERY = [(op, backend) for op in CASES for backend in backends(op)]


def evaluate(case: Case, op: Callable[..., Any], dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """Results, and the gradients of a weighted sum of them, in the order of the arguments."""
    leaves = {name: tensor.to(dtype).detach() for name, tensor in case.tensors.items()}
    wanted = [leaf.requires_grad_() for name, leaf in leaves.items() if name not in case.fixed]
    results = op(*leaves.values(), **options)
    results = results if isinstance(results, tuple) else (results,)
    loss = torch.zeros((), dtype=torch.float64)
    for result in results:
        ramp = torch.linspace(0.7, 1.3, result.numel(), dtype=torch.float64)
        loss = loss + (result.double().flatten() * ramp).sum()
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True) if loss.requires_grad else [None] * len(wanted)
    filled = (torch.zeros_like(leaf) if g is None else g for g, leaf in zip(gradients, wanted, strict=True))
    return [*(result.detach() for result in results), *filled]


def distance(ours: Tensor, exact: Tensor) -> float:
    """Difference relative to the tensor: entries that cancel keep the rounding of their terms."""
    assert ours.shape == exact.shape
    assert torch.equal(ours.isfinite(), exact.isfinite())
    finite = exact.isfinite()
    return float((ours.double() - exact)[finite].norm() / (exact[finite].norm() + 1e-3)) if finite.any() else 0.0


@pytest.mark.parametrize(("op", "backend"), EVERY)
def test_values_and_gradients(op: str, backend: str) -> None:
    for seed in range(DRAWS[backend]):
        draw = Draw(seed)
        case = CASES[op](draw, draw.choice((0, 1, 2, 7)))
        case = case._replace(tensors={name: draw.layout(tensor) for name, tensor in case.tensors.items()})
        exact = evaluate(case, case.reference, torch.float64)
        ours = evaluate(case, case.op, torch.float32, backend=backend)
        worst = [distance(*pair) for pair in zip(ours, exact, strict=True)]
        assert max(worst) < 2e-3, (seed, worst)  # of gradients; logits of 30 and densities of 1e4 round their exponents


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize(("op", "backend"), EVERY)
def test_poison_stays_in_its_row(op: str, backend: str, poison: float) -> None:
    """Whatever one row of any argument holds, the others' results and gradients are the same bits."""
    draw = Draw(100)
    case = CASES[op](draw, 3)
    clean = evaluate(case, case.op, torch.float32, backend=backend)
    names = [name for name in case.row_axis if not name.isdigit()]
    results = [axis for name, axis in case.row_axis.items() if name.isdigit()]
    of_gradients = [case.row_axis.get(name) for name in case.tensors if name not in case.fixed]
    for name in names:
        tensor = case.tensors[name].clone()
        row = tensor.select(case.row_axis[name], 1)
        row.view(-1)[-1:] = poison
        poisoned = evaluate(
            case._replace(tensors={**case.tensors, name: tensor}), case.op, torch.float32, backend=backend
        )
        for found, expected, axis in zip(poisoned, clean, [*results, *of_gradients], strict=True):
            if axis is not None:  # weights are shared by all rows
                for other in (0, 2):
                    assert torch.equal(found.select(axis, other), expected.select(axis, other)), name


def wrong(name: str, tensor: Tensor) -> dict[str, Any]:
    """Arguments that do not fit, by what is wrong."""
    mistakes: dict[str, Any] = {
        "one axis more": tensor[None],
        "not a tensor": tensor.tolist(),
        "integers": tensor.long(),
    }
    if tensor.dim():
        mistakes["one axis less"] = tensor[0]
    for axis in range(tensor.dim()):
        if (name, axis) in {("z", 0), ("eps", 0), ("inputs", 1), ("slots", 1)}:
            continue  # any size will do
        grown = list(tensor.shape)
        grown[axis] += 1
        mistakes[f"axis {axis} longer"] = torch.zeros(grown)
    return mistakes


@pytest.mark.parametrize("op", CASES)
def test_wrong_arguments_are_named(op: str) -> None:
    draw = Draw(7)
    case = CASES[op](draw, 3)
    for name, tensor in case.tensors.items():
        for mistake, value in wrong(name, tensor).items():
            arguments = {**case.tensors, name: value}
            with pytest.raises((TypeError, ValueError)) as caught:
                case.op(*arguments.values())
            message = str(caught.value)
            # of two that do not fit together either may be named
            assert message.startswith(op.partition(",")[0] + ": "), (name, mistake, message)
            assert "\n" not in message and any(f"{other}:" in message for other in case.tensors), (
                name,
                mistake,
                message,
            )


@pytest.mark.parametrize("backend", BACKENDS)
def test_vq_lookup(backend: str) -> None:
    """Index, code and distance over sizes, scales and layouts; gradients of both arguments."""
    for seed in range(DRAWS[backend]):
        draw = Draw(seed)
        rows, heads, codes, width = (draw.choice(sizes) for sizes in ((0, 1, 7, 70), (1, 3), (1, 2, 65), (4, 7, 33)))
        scale = draw.choice((1.0, 1e-30, 1e-12, 1e12, 1e30))
        x, codebook = scale * draw.normal(rows, heads, width), scale * draw.normal(heads, codes, width)
        if codes > 2:
            codebook[:, codes // 2 :] = codebook[:, : codes - codes // 2].clone()  # ties
            codebook[0, 1] = draw.choice((torch.nan, torch.inf))
        exact = vq_lookup_reference(x.double(), codebook.double())
        leaves = [draw.layout(x).requires_grad_(), draw.layout(codebook).requires_grad_()]
        result = vq_lookup(*leaves, backend=backend)
        assert torch.equal(result.indices, exact[1]), seed
        assert torch.equal(result.quantized.double(), exact[0]), seed
        torch.testing.assert_close(result.distance, exact[2].float(), rtol=1e-5, atol=0)
        result.quantized.sum().backward()
        counts, sums = vq_statistics(x, exact[1], codes, backend="torch")
        torch.testing.assert_close(leaves[1].grad, counts[..., None].expand_as(codebook))
        assert leaves[0].grad is None and sums.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", [-1, 5])
def test_indices_beyond_the_codes_are_refused(backend: str, index: int) -> None:
    """Not written beside the sums, nor into another head's."""
    indices = torch.zeros(6, 2, dtype=torch.int32)
    indices[3, 0] = index
    with pytest.raises(ValueError, match=r"vq_statistics: indices: expected 0 to 4, found .*(-1|5)"):
        vq_statistics(torch.ones(6, 2, 4), indices, 5, backend=backend)
