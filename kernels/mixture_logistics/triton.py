# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""Discretised mixture of logistics in Triton: one pass over the parameters forward, one backward.

A program owns BLOCK pixels of one image (programs on one grid axis: CUDA's others end at 65,535) and walks over the
components with two online log-sum-exps, of the joint and of the weights alone; likelihood and mixture mean come from
the same reading. Saved for the backward pass are those two sums: 2 numbers a pixel beside the 10 M parameters.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..elementary import all_registers, expm1, log_sigmoid, tanh
from ..launch import launcher
from .reference import HALF_BIN, LEFT_EDGE, MIN_LOG_SCALE, RIGHT_EDGE, WIDE_LOG_SCALE

BLOCK = 256  # pixels a program, two a thread
HALF = tl.constexpr(HALF_BIN)
LEFT = tl.constexpr(LEFT_EDGE)
RIGHT = tl.constexpr(RIGHT_EDGE)
LOWEST = tl.constexpr(MIN_LOG_SCALE)
WIDE = tl.constexpr(WIDE_LOG_SCALE)
LOG_BIN = tl.constexpr(math.log(2 * HALF_BIN))


@triton.jit
def log_bin(value, centre, log_scale):
    """log of a bin's mass; also the standardised residual and half bin."""
    inverse = tl.exp(-tl.where(log_scale < LOWEST, LOWEST, log_scale))
    residual = (value - centre) * inverse
    half = HALF * inverse
    upper = tl.where(value > RIGHT, 0.0, log_sigmoid(residual + half))
    lower = tl.where(value < LEFT, 0.0, log_sigmoid(half - residual))
    edge = (value > RIGHT) | (value < LEFT)
    wide = log_scale > WIDE  # the mass is 2 h (1 - h), and h may be too small for a number
    mass = tl.where(wide, LOG_BIN - log_scale - half, tl.log(-expm1(tl.where(wide, -1.0, -2.0 * half))))
    return upper + lower + tl.where(edge, 0.0, mass), residual, half, inverse


@triton.jit
def bin_gradient(value, residual, half, inverse, log_scale):
    """Derivatives of the log mass in centre and log scale."""
    upper = tl.where(value > RIGHT, 0.0, 1.0 / (1.0 + tl.exp(residual + half)))
    lower = tl.where(value < LEFT, 0.0, 1.0 / (1.0 + tl.exp(half - residual)))
    edge = (value > RIGHT) | (value < LEFT)
    wide = log_scale > WIDE
    width = tl.where(wide, 1.0, 2.0 * half / expm1(tl.where(wide, 1.0, 2.0 * half)))
    along = upper - lower
    in_scale = -(residual * along + half * (upper + lower) + tl.where(edge, 0.0, width))
    return -inverse * along, tl.where(log_scale < LOWEST, 0.0, in_scale)


@triton.jit
def load_component(means, log_scales, coefficients, m_at, s_at, c_at, m_c, s_c, c_c, mask, ACC: tl.constexpr):
    m_r = tl.load(means + m_at, mask=mask, other=0.0).to(ACC)
    m_g = tl.load(means + m_at + m_c, mask=mask, other=0.0).to(ACC)
    m_b = tl.load(means + m_at + 2 * m_c, mask=mask, other=0.0).to(ACC)
    s_r = tl.load(log_scales + s_at, mask=mask, other=0.0).to(ACC)
    s_g = tl.load(log_scales + s_at + s_c, mask=mask, other=0.0).to(ACC)
    s_b = tl.load(log_scales + s_at + 2 * s_c, mask=mask, other=0.0).to(ACC)
    c_0 = tanh(tl.load(coefficients + c_at, mask=mask, other=0.0).to(ACC))
    c_1 = tanh(tl.load(coefficients + c_at + c_c, mask=mask, other=0.0).to(ACC))
    c_2 = tanh(tl.load(coefficients + c_at + 2 * c_c, mask=mask, other=0.0).to(ACC))
    return m_r, m_g, m_b, s_r, s_g, s_b, c_0, c_1, c_2


@triton.jit
def nll_kernel(
    x, logits, means, log_scales, coefficients, weights, partial, mean, lse_joint, lse_logits, M, PIXELS, BLOCKS,
    x_b, x_c, l_b, l_m, m_b_, m_m, m_c, s_b_, s_m, s_c, c_b_, c_m, c_c,
    WEIGHTED: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    image = (tl.program_id(0) // BLOCKS).to(tl.int64)
    block = tl.program_id(0) % BLOCKS
    pixel = (block * BLOCK_P + tl.arange(0, BLOCK_P)).to(tl.int64)
    mask = pixel < PIXELS
    red = tl.load(x + image * x_b + pixel, mask=mask, other=0.0).to(ACC)
    green = tl.load(x + image * x_b + x_c + pixel, mask=mask, other=0.0).to(ACC)
    blue = tl.load(x + image * x_b + 2 * x_c + pixel, mask=mask, other=0.0).to(ACC)
    high_joint = tl.full((BLOCK_P,), float("-inf"), ACC)
    high_logit = tl.full((BLOCK_P,), float("-inf"), ACC)
    sum_joint = tl.zeros((BLOCK_P,), ACC)
    sum_logit = tl.zeros((BLOCK_P,), ACC)
    mean_r = tl.zeros((BLOCK_P,), ACC)
    mean_g = tl.zeros((BLOCK_P,), ACC)
    mean_b = tl.zeros((BLOCK_P,), ACC)
    for m in range(M):
        k = tl.zeros((), tl.int64) + m
        logit = tl.load(logits + image * l_b + k * l_m + pixel, mask=mask, other=0.0).to(ACC)
        m_r, m_g, m_b, s_r, s_g, s_b, c_0, c_1, c_2 = load_component(
            means, log_scales, coefficients, image * m_b_ + k * m_m + pixel, image * s_b_ + k * s_m + pixel,
            image * c_b_ + k * c_m + pixel, m_c, s_c, c_c, mask, ACC,
        )  # fmt: skip
        bin_r, _, _, _ = log_bin(red, m_r, s_r)
        bin_g, _, _, _ = log_bin(green, m_g + c_0 * red, s_g)
        bin_b, _, _, _ = log_bin(blue, m_b + c_1 * red + c_2 * green, s_b)
        joint = logit + bin_r + bin_g + bin_b
        peak = tl.maximum(high_joint, joint)
        anchor = tl.where(peak == float("-inf"), 0.0, peak)
        sum_joint = sum_joint * tl.exp(high_joint - anchor) + tl.exp(joint - anchor)
        high_joint = peak
        peak = tl.maximum(high_logit, logit)
        anchor = tl.where(peak == float("-inf"), 0.0, peak)
        shrink = tl.exp(high_logit - anchor)
        share = tl.exp(logit - anchor)
        sum_logit = sum_logit * shrink + share
        e_g = m_g + c_0 * m_r
        mean_r = mean_r * shrink + share * m_r
        mean_g = mean_g * shrink + share * e_g
        mean_b = mean_b * shrink + share * (m_b + c_1 * m_r + c_2 * e_g)
        high_logit = peak
    joint = high_joint + tl.log(sum_joint)
    normaliser = high_logit + tl.log(sum_logit)
    at = image * PIXELS + pixel
    tl.store(lse_joint + at, joint, mask=mask)
    tl.store(lse_logits + at, normaliser, mask=mask)
    plane = image * 3 * PIXELS + pixel
    tl.store(mean + plane, mean_r / sum_logit, mask=mask)
    tl.store(mean + plane + PIXELS, mean_g / sum_logit, mask=mask)
    tl.store(mean + plane + 2 * PIXELS, mean_b / sum_logit, mask=mask)
    nll = normaliser - joint
    if WEIGHTED:
        nll *= tl.load(weights + at, mask=mask, other=0.0).to(ACC)
    tl.store(partial + image * BLOCKS + block, tl.sum(tl.where(mask, nll, 0.0), 0))


@triton.jit
def nll_backward_kernel(
    x, logits, means, log_scales, coefficients, weights, mean, lse_joint, lse_logits, g_nll, g_image,
    g_logits, g_means, g_log_scales, g_coefficients, M, PIXELS, BLOCKS,
    x_b, x_c, l_b, l_m, m_b_, m_m, m_c, s_b_, s_m, s_c, c_b_, c_m, c_c,
    WEIGHTED: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    image = (tl.program_id(0) // BLOCKS).to(tl.int64)
    pixel = (tl.program_id(0) % BLOCKS * BLOCK_P + tl.arange(0, BLOCK_P)).to(tl.int64)
    mask = pixel < PIXELS
    red = tl.load(x + image * x_b + pixel, mask=mask, other=0.0).to(ACC)
    green = tl.load(x + image * x_b + x_c + pixel, mask=mask, other=0.0).to(ACC)
    blue = tl.load(x + image * x_b + 2 * x_c + pixel, mask=mask, other=0.0).to(ACC)
    at = image * PIXELS + pixel
    plane = image * 3 * PIXELS + pixel
    u_r = tl.load(g_image + plane, mask=mask, other=0.0).to(ACC)
    u_g = tl.load(g_image + plane + PIXELS, mask=mask, other=0.0).to(ACC)
    u_b = tl.load(g_image + plane + 2 * PIXELS, mask=mask, other=0.0).to(ACC)
    average = u_r * tl.load(mean + plane, mask=mask, other=0.0).to(ACC)
    average += u_g * tl.load(mean + plane + PIXELS, mask=mask, other=0.0).to(ACC)
    average += u_b * tl.load(mean + plane + 2 * PIXELS, mask=mask, other=0.0).to(ACC)
    joint_sum = tl.load(lse_joint + at, mask=mask, other=0.0)
    logit_sum = tl.load(lse_logits + at, mask=mask, other=0.0)
    upstream = tl.load(g_nll + image).to(ACC) + tl.zeros((BLOCK_P,), ACC)
    if WEIGHTED:
        upstream *= tl.load(weights + at, mask=mask, other=0.0).to(ACC)
    for m in range(M):
        k = tl.zeros((), tl.int64) + m
        logit = tl.load(logits + image * l_b + k * l_m + pixel, mask=mask, other=0.0).to(ACC)
        m_r, m_g, m_b, s_r, s_g, s_b, c_0, c_1, c_2 = load_component(
            means, log_scales, coefficients, image * m_b_ + k * m_m + pixel, image * s_b_ + k * s_m + pixel,
            image * c_b_ + k * c_m + pixel, m_c, s_c, c_c, mask, ACC,
        )  # fmt: skip
        bin_r, residual_r, half_r, inverse_r = log_bin(red, m_r, s_r)
        bin_g, residual_g, half_g, inverse_g = log_bin(green, m_g + c_0 * red, s_g)
        bin_b, residual_b, half_b, inverse_b = log_bin(blue, m_b + c_1 * red + c_2 * green, s_b)
        share = tl.exp(logit - logit_sum)  # weight of the component
        blame = upstream * tl.exp(logit + bin_r + bin_g + bin_b - joint_sum)  # responsibility x gradient
        d_r, ds_r = bin_gradient(red, residual_r, half_r, inverse_r, s_r)
        d_g, ds_g = bin_gradient(green, residual_g, half_g, inverse_g, s_g)
        d_b, ds_b = bin_gradient(blue, residual_b, half_b, inverse_b, s_b)
        # the mean, channel by channel backwards
        e_g = m_g + c_0 * m_r
        e_b = m_b + c_1 * m_r + c_2 * e_g
        t_b = share * u_b
        t_g = share * u_g + c_2 * t_b
        t_r = share * u_r + c_1 * t_b + c_0 * t_g
        in_logit = upstream * share - blame + share * (u_r * m_r + u_g * e_g + u_b * e_b - average)
        tl.store(g_logits + (image * M + k) * PIXELS + pixel, in_logit, mask=mask)
        own = (image * M + k) * 3 * PIXELS + pixel
        tl.store(g_means + own, t_r - blame * d_r, mask=mask)
        tl.store(g_means + own + PIXELS, t_g - blame * d_g, mask=mask)
        tl.store(g_means + own + 2 * PIXELS, t_b - blame * d_b, mask=mask)
        tl.store(g_log_scales + own, -blame * ds_r, mask=mask)
        tl.store(g_log_scales + own + PIXELS, -blame * ds_g, mask=mask)
        tl.store(g_log_scales + own + 2 * PIXELS, -blame * ds_b, mask=mask)
        in_0 = (1.0 - c_0 * c_0) * (t_g * m_r - blame * d_g * red)
        in_1 = (1.0 - c_1 * c_1) * (t_b * m_r - blame * d_b * red)
        in_2 = (1.0 - c_2 * c_2) * (t_b * e_g - blame * d_b * green)
        tl.store(g_coefficients + own, in_0, mask=mask)
        tl.store(g_coefficients + own + PIXELS, in_1, mask=mask)
        tl.store(g_coefficients + own + 2 * PIXELS, in_2, mask=mask)


def pixels_joined(tensor: Tensor) -> Tensor:
    """The tensor with its pixels as one axis of stride 1, copied only if they are not."""
    height, width = tensor.shape[-2:]
    if tensor.stride(-1) == 1 and (height == 1 or tensor.stride(-2) == width):
        return tensor
    return tensor.contiguous()


def _common(
    x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor, coefficients: Tensor, weights: Tensor | None
) -> tuple[list[Tensor], Tensor, tuple[int, ...], dict[str, object]]:
    """Tensors with joined pixels, weights (or anything, when there are none), strides and compile-time arguments."""
    tensors = [pixels_joined(tensor) for tensor in (x, logits, means, log_scales, coefficients)]
    strides = tuple(stride for tensor in tensors for stride in tensor.stride()[:-2])
    options = {
        "WEIGHTED": weights is not None,
        "ACC": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "BLOCK_P": BLOCK,
        "num_warps": 4,
        **all_registers(),
    }
    return tensors, tensors[0] if weights is None else weights.contiguous(), strides, options


@launcher
def mixture_logistics_nll(
    x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor, coefficients: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """nll (B,), mean (B, 3, H, W), and the two sums (B, H, W) for the backward pass."""
    batch, components, height, width = logits.shape
    pixels = height * width
    blocks = triton.cdiv(pixels, BLOCK)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    partial = torch.zeros(batch, blocks, dtype=dtype, device=x.device)
    mean = torch.empty(batch, 3, height, width, dtype=dtype, device=x.device)
    lse_joint, lse_logits = (torch.empty(batch, height, width, dtype=dtype, device=x.device) for _ in range(2))
    if batch and pixels:
        tensors, precision, strides, options = _common(x, logits, means, log_scales, coefficients, weights)
        nll_kernel[(batch * blocks,)](
            *tensors, precision, partial, mean, lse_joint, lse_logits, components, pixels, blocks, *strides, **options
        )
    return partial.sum(1), mean, lse_joint, lse_logits


@launcher
def mixture_logistics_nll_backward(
    g_nll: Tensor,
    g_mean: Tensor,
    mean: Tensor,
    lse_joint: Tensor,
    lse_logits: Tensor,
    x: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    coefficients: Tensor,
    weights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of logits, means, log_scales and coefficients."""
    batch, components, height, width = logits.shape
    pixels = height * width
    outputs = [
        torch.empty(tensor.shape, dtype=mean.dtype, device=x.device)
        for tensor in (logits, means, log_scales, coefficients)
    ]
    if batch and pixels:
        tensors, precision, strides, options = _common(x, logits, means, log_scales, coefficients, weights)
        blocks = triton.cdiv(pixels, BLOCK)
        nll_backward_kernel[(batch * blocks,)](
            *tensors, precision, mean, lse_joint, lse_logits, g_nll.contiguous(), g_mean.contiguous(),
            *outputs, components, pixels, blocks, *strides, **options,
        )  # fmt: skip
    g_logits, g_means, g_log_scales, g_coefficients = outputs
    return g_logits, g_means, g_log_scales, g_coefficients
