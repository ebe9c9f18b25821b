# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, import-not-found"
"""Discretised mixture of logistics in Triton: one pass over the parameters forward, one backward.

A program owns BLOCK pixels of one image (programs on one grid axis: CUDA's others end at 65,535) and walks over the
components with two online log-sum-exps, of the joint and of the weights alone; likelihood and mixture mean come from
the same reading. Saved for the backward pass are those two sums: 2 numbers a pixel beside the 10 M parameters.

A channel takes three exponentials, as in csrc/kernels/mixture_logistics_block.inl. With r the standardised residual and
h half a bin over the scale, near = exp(h - |r|) <= 75, e = exp(-2 h), far = near e = exp(-h - |r|), mass = 1 - e:
    log(sigmoid(r + h) - sigmoid(r - h)) = h - |r| + log(mass / ((1 + far) (1 + near)))
and the three channels share one logarithm: a mass is above 1e-11 (components as wide as that take its logarithm from
their log scale), a divisor below 151, so that the product of three quotients is a normal float32.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..elementary import all_registers, expm1, tanh
from ..launch import launcher
from .reference import HALF_BIN, LEFT_EDGE, MIN_LOG_SCALE, RIGHT_EDGE, WIDE_LOG_SCALE

BLOCK = 256  # pixels a program forward, two a thread: 128 registers
BLOCK_BACKWARD = 128  # one a thread: two take 203 registers, which leaves 8 warps a processor, one 127 and 16
HALF = tl.constexpr(HALF_BIN)
LEFT = tl.constexpr(LEFT_EDGE)
RIGHT = tl.constexpr(RIGHT_EDGE)
LOWEST = tl.constexpr(MIN_LOG_SCALE)
WIDE = tl.constexpr(WIDE_LOG_SCALE)
LOG_BIN = tl.constexpr(math.log(2 * HALF_BIN))
START = tl.constexpr(torch.finfo(torch.float32).min)  # of a running maximum; finite, so that differences are numbers


@triton.jit
def decay_and_mass(x, ACC: tl.constexpr):
    """exp(-x) and 1 - exp(-x), x >= 0: below .5 by the series, whose next term is 1e-8 of it."""
    decay = tl.exp(-x)
    if tl.float64 == ACC:
        return decay, -expm1(-x)
    series = 1.0 - x * (1.0 / 7) * (1.0 - x * (1.0 / 8))
    series = 1.0 - x * (1.0 / 4) * (1.0 - x * (1.0 / 5) * (1.0 - x * (1.0 / 6) * series))
    series = 1.0 - x * (1.0 / 3) * series
    return decay, tl.where(x < 0.5, x * (1.0 - 0.5 * x * series), 1.0 - decay)


@triton.jit
def make_bin(value, centre, log_scale, ACC: tl.constexpr):
    """A bin's log mass as linear + log(mass / divisor), and what its gradient is made of.

    near and far are 0 where the bin is open and has no such factor; `reach` says where near counts.
    """
    log_size = tl.where(log_scale < LOWEST, LOWEST, log_scale)
    inverse = tl.exp(-log_size)
    residual = (value - centre) * inverse
    half = HALF * inverse
    distance = tl.abs(residual)
    right, left = value > RIGHT, value < LEFT
    closed = (value <= RIGHT) & (value >= LEFT)
    positive = residual >= 0.0
    reach = closed | (positive & right) | ((residual < 0.0) & left)
    near = tl.exp(half - distance)
    decay, mass = decay_and_mass(2.0 * half, ACC)
    far = tl.where(closed | (positive & left) | ((residual < 0.0) & right), near * decay, 0.0)
    wide = log_scale > WIDE  # the mass is 2 h (1 - h), and h may be too small for a number
    linear = tl.where(reach, half - distance, 0.0)
    linear += tl.where(closed & wide, LOG_BIN - log_size - half, 0.0)
    near = tl.where(reach, near, 0.0)
    return linear, tl.where(closed & (log_scale <= WIDE), mass, 1.0), near, far, residual, half, inverse, decay, reach


@triton.jit
def bin_gradient(value, residual, half, inverse, decay, mass, near, far, reach, reciprocal, log_scale):
    """Derivatives of the log mass in centre and log scale; reciprocal of mass (1 + near) (1 + far)."""
    inner = tl.where(reach, reciprocal * mass * (1.0 + far), 0.0)  # 1 / (1 + near)
    outer = reciprocal * mass * (1.0 + near) * far  # far / (1 + far)
    along = outer - inner
    width = tl.where(log_scale > WIDE, 1.0, 2.0 * half * decay * reciprocal * (1.0 + near) * (1.0 + far))
    width = tl.where((value > RIGHT) | (value < LEFT), 0.0, width)
    in_scale = -(tl.abs(residual) * along + half * (outer + inner) + width)
    in_centre = tl.where(residual < 0.0, inverse * along, -inverse * along)
    return in_centre, tl.where(log_scale < LOWEST, 0.0, in_scale)


@triton.jit
def add_to_sum(value, highest, total):
    """Running log-sum-exp with one exponential: (highest, total), and what earlier and new terms are multiplied by."""
    difference = value - highest
    smaller = tl.exp(-tl.abs(difference))
    above = difference > 0.0
    shrink, share = tl.where(above, smaller, 1.0), tl.where(above, 1.0, smaller)
    return tl.where(above, value, highest), total * shrink + share, shrink, share


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
    high_joint = tl.full((BLOCK_P,), START, ACC)
    high_logit = tl.full((BLOCK_P,), START, ACC)
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
        e_g = m_g + c_0 * m_r
        linear, mass_r, near_r, far_r, _, _, _, _, _ = make_bin(red, m_r, s_r, ACC)
        linear_g, mass_g, near_g, far_g, _, _, _, _, _ = make_bin(green, m_g + c_0 * red, s_g, ACC)
        linear_b, mass_b, near_b, far_b, _, _, _, _, _ = make_bin(blue, m_b + c_1 * red + c_2 * green, s_b, ACC)
        divisor = (1.0 + near_r) * (1.0 + far_r) * (1.0 + near_g) * (1.0 + far_g) * (1.0 + near_b) * (1.0 + far_b)
        joint = logit + linear + linear_g + linear_b + tl.log(mass_r * mass_g * mass_b / divisor)
        high_joint, sum_joint, _, _ = add_to_sum(joint, high_joint, sum_joint)
        high_logit, sum_logit, shrink, share = add_to_sum(logit, high_logit, sum_logit)
        mean_r = mean_r * shrink + share * m_r
        mean_g = mean_g * shrink + share * e_g
        mean_b = mean_b * shrink + share * (m_b + c_1 * m_r + c_2 * e_g)
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
        linear, mass_r, near_r, far_r, residual_r, half_r, inverse_r, decay_r, reach_r = make_bin(red, m_r, s_r, ACC)
        linear_g, mass_g, near_g, far_g, residual_g, half_g, inverse_g, decay_g, reach_g = make_bin(
            green, m_g + c_0 * red, s_g, ACC
        )
        linear_b, mass_b, near_b, far_b, residual_b, half_b, inverse_b, decay_b, reach_b = make_bin(
            blue, m_b + c_1 * red + c_2 * green, s_b, ACC
        )
        over_r = 1.0 / (mass_r * (1.0 + near_r) * (1.0 + far_r))
        over_g = 1.0 / (mass_g * (1.0 + near_g) * (1.0 + far_g))
        over_b = 1.0 / (mass_b * (1.0 + near_b) * (1.0 + far_b))
        # squares of masses beside reciprocals of masses: each pair first, so that nothing under- or overflows
        quotient = (mass_r * (mass_r * over_r)) * (mass_g * (mass_g * over_g)) * (mass_b * (mass_b * over_b))
        bins = linear + linear_g + linear_b + tl.log(quotient)
        share = tl.exp(logit - logit_sum)  # weight of the component
        blame = upstream * tl.exp(logit + bins - joint_sum)  # responsibility x gradient
        d_r, ds_r = bin_gradient(
            red, residual_r, half_r, inverse_r, decay_r, mass_r, near_r, far_r, reach_r, over_r, s_r
        )
        d_g, ds_g = bin_gradient(
            green, residual_g, half_g, inverse_g, decay_g, mass_g, near_g, far_g, reach_g, over_g, s_g
        )
        d_b, ds_b = bin_gradient(
            blue, residual_b, half_b, inverse_b, decay_b, mass_b, near_b, far_b, reach_b, over_b, s_b
        )
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
    x: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    coefficients: Tensor,
    weights: Tensor | None,
    block: int,
) -> tuple[list[Tensor], Tensor, tuple[int, ...], dict[str, object]]:
    """Tensors with joined pixels, weights (or anything, when there are none), strides and compile-time arguments."""
    tensors = [pixels_joined(tensor) for tensor in (x, logits, means, log_scales, coefficients)]
    strides = tuple(stride for tensor in tensors for stride in tensor.stride()[:-2])
    options = {
        "WEIGHTED": weights is not None,
        "ACC": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "BLOCK_P": block,
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
        tensors, precision, strides, options = _common(x, logits, means, log_scales, coefficients, weights, BLOCK)
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
        tensors, precision, strides, options = _common(
            x, logits, means, log_scales, coefficients, weights, BLOCK_BACKWARD
        )
        blocks = triton.cdiv(pixels, BLOCK_BACKWARD)
        nll_backward_kernel[(batch * blocks,)](
            *tensors, precision, mean, lse_joint, lse_logits, g_nll.contiguous(), g_mean.contiguous(),
            *outputs, components, pixels, blocks, *strides, **options,
        )  # fmt: skip
    g_logits, g_means, g_log_scales, g_coefficients = outputs
    return g_logits, g_means, g_log_scales, g_coefficients
