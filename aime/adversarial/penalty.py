"""The gradient penalty of WGAN-GP (Gulrajani et al. 2017, equation 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gradient_penalty(
    score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Mean over the batch of (||gradient of the score at a point between real and fake|| - 1)^2.

    Args:
        score: from samples (N, ...) to their scores, N numbers of any shape; differentiable twice.
        real: (N, ...).
        fake: (N, ...).
        generator: source of the N mixing weights, one for each sample (a video is one sample).

    Returns:
        (), differentiable with respect to the parameters of the score; real and fake get no gradient.

    Raises:
        ValueError: real and fake differ in shape.
    """
    if real.shape != fake.shape:
        raise ValueError(f"real and fake: expected one shape, found {tuple(real.shape)} and {tuple(fake.shape)}")
    shape = (real.shape[0], *(1 for _ in real.shape[1:]))
    weight = torch.rand(shape, generator=generator, device=real.device, dtype=real.dtype)
    between = torch.lerp(fake.detach(), real.detach(), weight).requires_grad_()
    (slope,) = torch.autograd.grad(score(between).sum(), between, create_graph=True)
    # The root has no derivative at 0, which a critic that looks at nothing would meet.
    norm = (slope.flatten(1).square().sum(1) + torch.finfo(real.dtype).eps).sqrt()  # (N,)
    return (norm - 1.0).square().mean()
