"""Discretised mixture of logistics with RGB coupling in plain PyTorch: the truth in every test.

From the definition (Salimans et al., 2017, "PixelCNN++"), meant for float64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_BIN = 1 / 255  # images are k / 127.5 - 1, so that a bin is 2 / 255 wide
LEFT_EDGE, RIGHT_EDGE = -0.999, 0.999  # beyond them the bin is open
MIN_LOG_SCALE = -7.0
# From here on half a bin over the scale, h, is below 1e-11 and the mass of a bin 2 h (1 - h) to every digit.
WIDE_LOG_SCALE = 20.0


def mixture_logistics_nll_reference(
    x: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    coefficients: Tensor,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood (B,) in nats and mixture mean (B, 3, H, W); arguments as the op."""
    c0, c1, c2 = coefficients.tanh().unbind(2)  # (B, M, H, W)
    red, green, _ = x[:, None].unbind(2)  # (B, 1, H, W)
    centres = torch.stack(
        (means[:, :, 0], means[:, :, 1] + c0 * red, means[:, :, 2] + c1 * red + c2 * green), 2
    )  # (B, M, 3, H, W)
    scales = log_scales.clamp(min=MIN_LOG_SCALE).exp()
    value = x[:, None]
    upper = (value + HALF_BIN - centres) / scales
    lower = (value - HALF_BIN - centres) / scales
    # log of sigmoid(upper) - sigmoid(lower) = sigmoid(upper) sigmoid(-lower) (1 - exp(lower - upper)): the difference
    # itself cancels in wide components and vanishes far from the centre
    above, below = F.logsigmoid(upper), F.logsigmoid(-lower)
    log_probability = above + below + torch.log(-torch.expm1(-2 * HALF_BIN / scales))
    log_probability = torch.where(value > RIGHT_EDGE, below, log_probability)
    log_probability = torch.where(value < LEFT_EDGE, above, log_probability)
    log_joint = logits.log_softmax(1) + log_probability.sum(2)  # (B, M, H, W)
    pixel_nll = -log_joint.logsumexp(1)  # (B, H, W)
    nll = (pixel_nll if weights is None else pixel_nll * weights).sum((1, 2))

    mean_red = means[:, :, 0]
    mean_green = means[:, :, 1] + c0 * mean_red
    mean_blue = means[:, :, 2] + c1 * mean_red + c2 * mean_green
    component_means = torch.stack((mean_red, mean_green, mean_blue), 2)
    mean = (logits.softmax(1)[:, :, None] * component_means).sum(1)
    return nll, mean
