"""slot_attention: all iterations of slot attention as one op."""

import torch
from torch import Tensor

from ..dispatch import (
    FLOAT32_AND_HALVES,
    TRITON_INTERPRETED,
    Obstacle,
    choose_backend,
    extension_obstacle,
    triton_obstacle,
)
from ..shapes import FLOATING, check_floating, check_shape
from . import cpp, eager
from .cpp_operator import run as attend_in_cpp
from .fused_operator import slot_attention_op
from .reference import ACTIVATIONS
from .weights import SlotAttentionWeights

TRITON_WIDTHS = (4, 512)  # of C and of D
TRITON_COLUMNS = (32, 16)  # slots times heads, each rounded up to a power of two: of one head, of several

WEIGHT_AXES = {
    "norm_inputs_weight": ("C",),
    "norm_inputs_bias": ("C",),
    "norm_slots_weight": ("D",),
    "norm_slots_bias": ("D",),
    "query_weight": ("D", "D"),
    "key_weight": ("D", "C"),
    "value_weight": ("D", "C"),
    "gru_weight_ih": ("3D", "D"),
    "gru_weight_hh": ("3D", "D"),
    "gru_bias_ih": ("3D",),
    "gru_bias_hh": ("3D",),
    "norm_mlp_weight": ("D",),
    "norm_mlp_bias": ("D",),
    "mlp_in_weight": ("F", "D"),
    "mlp_in_bias": ("F",),
    "mlp_out_weight": ("D", "F"),
    "mlp_out_bias": ("D",),
    "query_bias": ("D",),
    "key_bias": ("D",),
    "value_bias": ("D",),
}


def _fits(inputs: Tensor, slots: Tensor, weights: SlotAttentionWeights) -> bool:
    """Whether `_check` would find nothing wrong with the tensors; quick, as it keeps no names for an error."""
    if not isinstance(inputs, Tensor) or inputs.dtype not in FLOATING:
        return False
    dtype, device = inputs.dtype, inputs.device
    for tensor in (slots, *weights):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor) or tensor.device != device:
            return False
        if tensor.dtype != dtype and tensor.dtype not in FLOATING:
            return False
    if inputs.dim() != 3 or slots.dim() != 3 or weights.mlp_in_bias.dim() != 1:
        return False
    batch, _, c = inputs.shape
    d, f = slots.shape[2], weights.mlp_in_bias.shape[0]
    vector = (d,)
    expected = (
        *((c,), (c,), vector, vector, (d, d), (d, c), (d, c), (3 * d, d), (3 * d, d), (3 * d,), (3 * d,)),
        *(vector, vector, (f, d), (f,), (d, f), vector, vector, vector, vector),
    )  # in the order of WEIGHT_AXES
    for weight, shape in zip(weights, expected, strict=True):
        if weight is not None and weight.shape != shape:
            return False
    return slots.shape[0] == batch


def _check_tensors(inputs: Tensor, slots: Tensor, weights: SlotAttentionWeights) -> None:
    op = "slot_attention"
    if not _fits(inputs, slots, weights):
        present = {name: tensor for name, tensor in weights._asdict().items() if tensor is not None}
        check_floating(op, inputs=inputs, slots=slots, **present)
        sizes: dict[str, int] = {}
        check_shape(op, "inputs", inputs, ("B", "N", "C"), sizes)
        check_shape(op, "slots", slots, ("B", "S", "D"), sizes)
        sizes["3D"] = 3 * sizes["D"]
        for name, tensor in present.items():
            check_shape(op, name, tensor, WEIGHT_AXES[name], sizes)
    count, number = inputs.shape[1], slots.shape[1]
    if count == 0 or number == 0:
        raise ValueError(f"{op}: expected at least one input and one slot, found N={count}, S={number}")


def _check_options(width: int, iters: int, activation: str, heads: int) -> None:
    op = "slot_attention"
    if iters < 1:
        raise ValueError(f"{op}: iters: expected at least 1, found {iters}")
    if heads < 1 or width % heads:
        raise ValueError(f"{op}: heads: expected a divisor of D={width}, found {heads}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation: expected one of {sorted(ACTIVATIONS)}, found {activation!r}")


def _take_out(inputs: Tensor, mask: Tensor) -> Tensor:
    """Inputs with zeros in the place of those that the mask leaves out: a weight of 0 would leave NaN times 0."""
    if mask.dtype != torch.bool:
        raise TypeError(f"slot_attention: mask: expected bool, found {mask.dtype}")
    if mask.device != inputs.device:
        raise ValueError(f"slot_attention: mask is on {mask.device}, but inputs is on {inputs.device}")
    check_shape("slot_attention", "mask", mask, ("B", "N"), {"B": inputs.shape[0], "N": inputs.shape[1]})
    return torch.where(mask.unsqueeze(-1), inputs, 0.0)


def _cpp_obstacle(inputs: Tensor, slots: Tensor, weights: SlotAttentionWeights, known: int, heads: int) -> str | None:
    if heads != 1:
        return f"it takes one head, found {heads}"
    if known != cpp.UNKNOWN:
        return None
    return extension_obstacle(inputs, slots, *(weight for weight in weights if weight is not None))


def _triton_obstacle(inputs: Tensor, slots: Tensor, weights: SlotAttentionWeights, heads: int) -> str | None:
    low, high = TRITON_WIDTHS
    for axis, size in (("C", inputs.shape[-1]), ("D", slots.shape[-1])):
        if not low <= size <= high:
            return f"it takes {axis} from {low} to {high}, found {size}"
    columns = (1 << (slots.shape[1] - 1).bit_length()) * (1 << (heads - 1).bit_length())
    most = TRITON_COLUMNS[1 if heads > 1 else 0]  # torch.compile follows no bool into a tuple
    if columns > most:
        found = f"S={slots.shape[1]}, heads={heads}"
        return f"it takes S times heads, each rounded up to a power of two, up to {most}, found {found}"
    # float64 compiles to something slow where it compiles: it serves gradient checks under the interpreter
    allowed = (*FLOAT32_AND_HALVES, torch.float64) if TRITON_INTERPRETED else FLOAT32_AND_HALVES
    return triton_obstacle(inputs, slots, *(weight for weight in weights if weight is not None), allowed=allowed)


def slot_attention(
    inputs: Tensor,
    slots: Tensor,
    weights: SlotAttentionWeights,
    iters: int = 3,
    eps: float = 1e-8,
    *,
    activation: str = "gelu",
    heads: int = 1,
    mask: Tensor | None = None,
    implicit: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Slots compete for inputs (Locatello et al., 2020, "Object-Centric Learning with Slot Attention").

    Per iteration: logits = q.k / sqrt(D) with q from LayerNorm(slots) and k, v from LayerNorm(inputs); softmax over
    slots; plus eps; weighted mean of v over inputs; GRU cell; residual MLP behind a LayerNorm.

    Args:
        inputs: (B, N, C).
        slots: (B, S, D) initial slots.
        weights: `SlotAttentionWeights`.
        iters: iterations, at least 1.
        eps: added to the attention before it is normalised over inputs.
        activation: of the MLP, "gelu" or "relu".
        heads: D is split; each head competes by itself; the heads' updates are concatenated.
        mask: (B, N) bool, False = this input takes no part, whatever it holds, NaN included: zeros are put in its place
            and it gets no gradient; every row needs a True.
        implicit: gradient through the last iteration only (Chang et al., 2022, first-order implicit differentiation).
        backend: None, "torch", "cpp" (CPU, one head; all iterations are one call each way) or "triton" (GPU; C
            and D in 4..512, S up to 32, with several heads S times heads up to 16; everything is fused).

    Returns:
        slots (B, S, D) in the dtype of the given ones; attention (B, S, N) of the last iteration, float32 or wider,
        summing to 1 over S (before eps; the mean of heads).

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, unknown activation or backend.
        RuntimeError: a backend that cannot run.
    """
    known = cpp.look(inputs, slots, weights)
    if known == cpp.UNKNOWN:
        _check_tensors(inputs, slots, weights)
    width = slots.shape[-1]
    _check_options(width, iters, activation, heads)
    if mask is not None:
        inputs = _take_out(inputs, mask)
    obstacles: dict[str, Obstacle] = {
        "torch": None,
        "triton": lambda: _triton_obstacle(inputs, slots, weights, heads),
        "cpp": lambda: _cpp_obstacle(inputs, slots, weights, known, heads),
    }
    chosen = choose_backend("slot_attention", backend, slots.device.type, obstacles, width)
    if chosen == "torch":
        attend = eager.AttendInputs(inputs, weights, eps, heads, mask)
        return eager.slot_attention(slots, weights, attend, iters, activation, heads, implicit)
    gelu = activation == "gelu"
    if chosen == "triton":
        out, attention, *_ = slot_attention_op(inputs, slots, *weights, mask, iters, eps, gelu, heads, implicit)
        return out, attention
    wanted = torch.is_grad_enabled() and known != cpp.NO_GRADIENT
    if known == cpp.UNKNOWN or wanted or mask is not None:
        out, attention, _ = attend_in_cpp(inputs, slots, *weights, mask, iters, eps, gelu, implicit, wanted)
    else:
        out, attention, _ = cpp.forward(inputs, slots, weights, mask, iters, eps, gelu, save=False)
    return out, attention
