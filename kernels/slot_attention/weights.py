"""The parameters of slot attention, as one tuple of tensors."""

from typing import NamedTuple

from torch import Tensor


class SlotAttentionWeights(NamedTuple):
    """Tensors of slot attention; C input channels, D slot channels, F hidden width of the residual MLP.

    Linear weights are (out, in) as in torch.nn.Linear; GRU weights as in torch.nn.GRUCell (gates r, z, n). Biases of
    the projections may be None.
    """

    norm_inputs_weight: Tensor  # (C,)
    norm_inputs_bias: Tensor  # (C,)
    norm_slots_weight: Tensor  # (D,)
    norm_slots_bias: Tensor  # (D,)
    query_weight: Tensor  # (D, D)
    key_weight: Tensor  # (D, C)
    value_weight: Tensor  # (D, C)
    gru_weight_ih: Tensor  # (3D, D)
    gru_weight_hh: Tensor  # (3D, D)
    gru_bias_ih: Tensor  # (3D,)
    gru_bias_hh: Tensor  # (3D,)
    norm_mlp_weight: Tensor  # (D,)
    norm_mlp_bias: Tensor  # (D,)
    mlp_in_weight: Tensor  # (F, D)
    mlp_in_bias: Tensor  # (F,)
    mlp_out_weight: Tensor  # (D, F)
    mlp_out_bias: Tensor  # (D,)
    query_bias: Tensor | None = None  # (D,)
    key_bias: Tensor | None = None  # (D,)
    value_bias: Tensor | None = None  # (D,)
