"""mixture_logistics_nll: image likelihood and its differentiable mean in one op."""

import torch
from torch import Tensor

from ..dispatch import FLOAT32_AND_HALVES, Obstacle, choose_backend, extension_obstacle, triton_obstacle
from ..shapes import accumulation_dtype, alike, check_floating, check_shape, constant
from . import eager
from .operators import direct_nll

TRITON_DTYPES = (*FLOAT32_AND_HALVES, torch.float64)


def _fits(x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor, coefficients: Tensor) -> bool:
    """Whether the shapes belong together, with at least one component; names nothing."""
    if logits.dim() != 4 or logits.shape[1] == 0:
        return False
    batch, components, height, width = logits.shape
    if x.shape != (batch, 3, height, width) or means.shape != (batch, components, 3, height, width):
        return False
    return log_scales.shape == means.shape and coefficients.shape == means.shape


def mixture_logistics_nll(
    x: Tensor,
    logits: Tensor,
    means: Tensor,
    log_scales: Tensor,
    coefficients: Tensor,
    weights: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Discretised mixture of logistics with RGB coupling (Salimans et al., 2017, "PixelCNN++").

    Green's centre is shifted by tanh(coefficients[:, :, 0]) red, blue's by tanh(coefficients[:, :, 1]) red +
    tanh(coefficients[:, :, 2]) green. Bins are 2/255 wide, those at -1 and 1 are open to their side.

    Args:
        x: (B, 3, H, W) in [-1, 1], values k / 127.5 - 1; no gradient flows into it.
        logits: (B, M, H, W) of the mixture, not normalised.
        means: (B, M, 3, H, W).
        log_scales: (B, M, 3, H, W), clamped from below at -7.
        coefficients: (B, M, 3, H, W) before the tanh.
        weights: (B, H, W) multiplies each pixel's term of the sum, a precision; no gradient flows into it.
        backend: None, "torch", "cpp" (CPU, no float64) or "triton" (GPU).

    Returns:
        nll (B,) in nats, summed over channels and (weighted) pixels; mean (B, 3, H, W) of the mixture, channels coupled
        through the components' own means in the same order, not clamped; both differentiable in the four parameters,
        float32 whatever the autocast state (float64 if an input is).

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, an unknown backend.
        RuntimeError: a backend that cannot run.
    """
    op = "mixture_logistics_nll"
    if not (alike(x, logits, means, log_scales, coefficients) and _fits(x, logits, means, log_scales, coefficients)):
        check_floating(op, x=x, logits=logits, means=means, log_scales=log_scales, coefficients=coefficients)
        sizes = {"C": 3}
        check_shape(op, "x", x, ("B", "C", "H", "W"), sizes)
        check_shape(op, "logits", logits, ("B", "M", "H", "W"), sizes)
        for name, tensor in (("means", means), ("log_scales", log_scales), ("coefficients", coefficients)):
            check_shape(op, name, tensor, ("B", "M", "C", "H", "W"), sizes)
        if sizes["M"] == 0:
            raise ValueError(f"{op}: logits: expected at least one component, found M=0")
    if weights is not None:
        check_floating(op, x=x, weights=weights)
        batch, _, height, width = x.shape
        check_shape(op, "weights", weights, ("B", "H", "W"), {"B": batch, "H": height, "W": width})
        weights = constant(weights)
    parameters = (logits, means, log_scales, coefficients)
    given = (x, *parameters) if weights is None else (x, *parameters, weights)
    obstacles: dict[str, Obstacle] = {
        "torch": None,
        "triton": lambda: triton_obstacle(x, *parameters, allowed=TRITON_DTYPES),
        "cpp": lambda: extension_obstacle(*given),
    }
    chosen = choose_backend(op, backend, x.device.type, obstacles)
    dtype = accumulation_dtype(x, *parameters)
    if chosen != "torch":
        wide = dtype == torch.float64  # half types are read as they are
        tensors: tuple[Tensor, ...] = (constant(x), *parameters)
        if wide:
            tensors = tuple([tensor.to(dtype) for tensor in tensors])
        nll, mean, _, _ = direct_nll(*tensors, weights, chosen)
        return nll, mean
    with torch.autocast(x.device.type, enabled=False):
        precision = None if weights is None else weights.to(dtype)
        return eager.mixture_logistics_nll(
            x.detach().to(dtype),
            logits.to(dtype),
            means.to(dtype),
            log_scales.to(dtype),
            coefficients.to(dtype),
            precision,
        )
