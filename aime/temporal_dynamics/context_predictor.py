"""Context from memory alone: what the perception of the coming frame will say, as far as the state can tell."""

from torch import Tensor, nn
from torch.nn import functional as F

from aime.nn import mlp


class ContextPredictor(nn.Module):
    """c^_t = f(h_{t-1}): stands in for the Perceiver's c_t in the prior and in imagination. (..., Hd) -> (..., Cc).

    Args:
        hidden_dim: Hd.
        context_dim: Cc.
        width: hidden units, Hd when None.
    """

    def __init__(self, hidden_dim: int, context_dim: int, width: int | None = None) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.network = mlp((hidden_dim, hidden_dim if width is None else width, context_dim))

    def forward(self, hidden: Tensor) -> Tensor:
        """Predicted context for the frame after `hidden`.

        Raises:
            ValueError: the last axis is not Hd.
        """
        if hidden.shape[-1] != self.hidden_dim:
            raise ValueError(f"hidden: expected (..., Hd={self.hidden_dim}), found {tuple(hidden.shape)}")
        predicted: Tensor = self.network(hidden)
        return predicted


def context_prediction_loss(predicted: Tensor, context: Tensor) -> Tensor:
    """Squared error to the context, averaged over its entries; no gradient into the target. (..., Cc) -> (...).

    Without the stop-gradient the cheapest way to be predictable is a constant context.
    """
    return F.mse_loss(predicted.float(), context.detach().float(), reduction="none").mean(-1)
