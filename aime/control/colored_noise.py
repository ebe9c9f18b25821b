"""Gaussian noise with a power-law spectrum over time (Timmer & Koenig 1995)."""

from __future__ import annotations

import torch
from torch import Tensor


def colored_noise(
    shape: tuple[int, ...], steps: int, exponent: float, generator: torch.Generator | None = None
) -> Tensor:
    """Series (*shape, steps) whose power falls as frequency^-exponent, each entry of variance 1.

    The lowest frequency stands in for frequency 0, so that a series may have an offset.

    Args:
        shape: leading axes; series are independent along them.
        steps: length of a series.
        exponent: 0 white, 1 pink, 2 red.
        generator: source of randomness.
    """
    if steps == 1 or exponent == 0:
        return torch.randn(*shape, steps, generator=generator)
    frequencies = torch.fft.rfftfreq(steps)
    frequencies[0] = frequencies[1]
    amplitude = frequencies ** (-exponent / 2)  # (F,)
    real, imaginary = torch.randn(2, *shape, len(amplitude), generator=generator) * amplitude
    # Frequency 0, and the highest of an even length, are real: they carry the power of both parts in one.
    ends = [0, -1] if steps % 2 == 0 else [0]
    for end in ends:
        imaginary[..., end] = 0.0
        real[..., end] *= 2**0.5
    series: Tensor = torch.fft.irfft(torch.complex(real, imaginary), n=steps)
    power = 4 * amplitude.square()  # a frequency between the ends stands for its mirror image too
    for end in ends:
        power[end] /= 2
    scaled: Tensor = series * (steps / power.sum().sqrt())
    return scaled
