"""Discretised mixture of logistics with PyTorch's own kernels, stable in float32."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import HALF_BIN, LEFT_EDGE, MIN_LOG_SCALE, RIGHT_EDGE, WIDE_LOG_SCALE

LOG_BIN = math.log(2 * HALF_BIN)


def mixture_logistics_nll(
    x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor, coefficients: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """nll (B,) and mean (B, 3, H, W).

    The bin in log space: with p and m the standardised upper and lower edges,
    log(sigmoid(p) - sigmoid(m)) = log sigmoid(p) + log sigmoid(-m) + log(1 - exp(m - p)), exact and without
    cancellation; p - m = bin / scale does not depend on x. An open bin drops the terms of its missing edge.
    """
    c0, c1, c2 = coefficients.tanh().unbind(2)  # (B, M, H, W)
    red, green, _ = x[:, None].unbind(2)  # (B, 1, H, W)
    mean_r, mean_g, mean_b = means.unbind(2)
    centres = torch.stack((mean_r, torch.addcmul(mean_g, c0, red), mean_b + c1 * red + c2 * green), 2)
    log_scales = log_scales.clamp(min=MIN_LOG_SCALE)
    inverse = torch.exp(-log_scales)  # (B, M, 3, H, W)
    value = x[:, None]
    residual = (value - centres) * inverse
    half = HALF_BIN * inverse
    right, left = value > RIGHT_EDGE, value < LEFT_EDGE  # (B, 1, 3, H, W)
    zero = residual.new_zeros(())
    log_bin = torch.where(right, zero, F.logsigmoid(residual + half))
    log_bin = log_bin + torch.where(left, zero, F.logsigmoid(half - residual))
    # of a wide component from its log scale, since half vanishes; the other branch stays away from that, for gradients
    narrow = torch.log(-torch.expm1(-2 * HALF_BIN * torch.exp(-log_scales.clamp(max=WIDE_LOG_SCALE))))
    mass = torch.where(log_scales > WIDE_LOG_SCALE, LOG_BIN - log_scales - half, narrow)
    log_bin = log_bin + torch.where(right | left, zero, mass)
    log_joint = logits.log_softmax(1) + log_bin.sum(2)  # (B, M, H, W)
    pixel_nll = -log_joint.logsumexp(1)  # (B, H, W)
    nll = (pixel_nll if weights is None else pixel_nll * weights).sum((1, 2))

    mean_g = torch.addcmul(mean_g, c0, mean_r)
    mean_b = mean_b + c1 * mean_r + c2 * mean_g
    shares = logits.softmax(1)
    mean = torch.stack([(shares * component).sum(1) for component in (mean_r, mean_g, mean_b)], 1)
    return nll, mean
