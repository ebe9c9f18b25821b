"""slot_attention: all iterations of slot attention as one op."""

import torch
from torch import Tensor

from ..dispatch import choose_backend, extension_obstacle, triton_obstacle
from ..shapes import check_floating, check_shape
from . import eager
from .reference import ACTIVATIONS
from .weights import SlotAttentionWeights

TRITON_MASKED_CHANNELS = 64
TRITON_SLOTS_BY_CHANNELS = {64: 32, 128: 16}  # most slots up to so many channels; beyond, the compiler spills

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


def _check(
    inputs: Tensor, slots: Tensor, weights: SlotAttentionWeights, iters: int, activation: str, heads: int
) -> dict[str, int]:
    op = "slot_attention"
    sizes: dict[str, int] = {}
    check_shape(op, "inputs", inputs, ("B", "N", "C"), sizes)
    check_shape(op, "slots", slots, ("B", "S", "D"), sizes)
    sizes["3D"] = 3 * sizes["D"]
    present = {name: tensor for name, tensor in weights._asdict().items() if tensor is not None}
    check_floating(op, inputs=inputs, slots=slots, **present)
    for name, tensor in present.items():
        check_shape(op, name, tensor, WEIGHT_AXES[name], sizes)
    if sizes["N"] == 0 or sizes["S"] == 0:
        raise ValueError(f"{op}: expected at least one input and one slot, found N={sizes['N']}, S={sizes['S']}")
    if iters < 1:
        raise ValueError(f"{op}: iters: expected at least 1, found {iters}")
    if heads < 1 or sizes["D"] % heads:
        raise ValueError(f"{op}: heads: expected a divisor of D={sizes['D']}, found {heads}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation: expected one of {sorted(ACTIVATIONS)}, found {activation!r}")
    return sizes


def _triton_obstacle(inputs: Tensor, slots: Tensor, heads: int, mask: Tensor | None) -> str | None:
    channels, count = inputs.shape[-1], slots.shape[1]
    most = next((most for width, most in TRITON_SLOTS_BY_CHANNELS.items() if channels <= width), 0)
    if count > most:
        ranges = " or ".join(f"S up to {most} with C up to {width}" for width, most in TRITON_SLOTS_BY_CHANNELS.items())
        return f"it takes {ranges}, found S={count}, C={channels}"
    if mask is not None and channels > TRITON_MASKED_CHANNELS:
        return f"it takes masks with C up to {TRITON_MASKED_CHANNELS}, found C={channels}"
    return _one_head(heads) or triton_obstacle(inputs, slots)


def _one_head(heads: int) -> str | None:
    return None if heads == 1 else f"it takes one head, found {heads}"


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
        mask: (B, N) bool, False = this input takes no part; every row needs a True.
        implicit: gradient through the last iteration only (Chang et al., 2022, first-order implicit differentiation).
        backend: None, "torch", "cpp" (CPU) or "triton" (GPU); the latter two take one head and make the pass over the
            inputs one kernel each way.

    Returns:
        slots (B, S, D) in the dtype of the given ones; attention (B, S, N) of the last iteration, float32 or wider,
        summing to 1 over S (before eps; the mean of heads).

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, unknown activation or backend.
        RuntimeError: a backend that cannot run.
    """
    sizes = _check(inputs, slots, weights, iters, activation, heads)
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"slot_attention: mask: expected bool, found {mask.dtype}")
        check_shape("slot_attention", "mask", mask, ("B", "N"), sizes)
    obstacles = {
        "torch": None,
        "triton": _triton_obstacle(inputs, slots, heads, mask),
        "cpp": _one_head(heads) or extension_obstacle(inputs, slots),
    }
    chosen = choose_backend("slot_attention", backend, slots.device.type, obstacles)
    attend: eager.AttendInputs | eager.AttendInputsFused
    if chosen != "torch":
        attend = eager.AttendInputsFused(inputs, weights, eps, mask, chosen)
    else:
        attend = eager.AttendInputs(inputs, weights, eps, heads, mask)
    return eager.slot_attention(slots, weights, attend, iters, activation, heads, implicit)
