"""frame_error: how far decoded images are from frames as they are stored."""

import torch
from torch import Tensor

from ..dispatch import Obstacle, choose_backend, extension_obstacle
from ..shapes import check_pixels, check_shape, constant
from .operators import direct_error
from .reference import frame_error_reference


def frame_error(
    decoded: Tensor,
    frames: Tensor,
    mean: Tensor,
    factor: Tensor,
    weights: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Sum of weight (decoded - (frame - mean) factor)^2 over each image: -2 scale^2 times a Gaussian's log density.

    Args:
        decoded: (N, C, H, W), differentiable.
        frames: (N, C, H, W) uint8 or floating point; no gradient flows into them.
        mean, factor: float32 or float64, broadcast to (C, H, W); no gradient flows into them.
        weights: (N, H, W) of each pixel; no gradient flows into them.
        backend: None, "torch", "cpp" (CPU; decoded float32 or bfloat16 and channels-last in memory, frames uint8 or
            float32) or "triton", for which PyTorch's operations stand in.

    Returns:
        (N,), float32 whatever the autocast state (float64 if decoded or mean is).

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, an unknown backend.
        RuntimeError: a backend that cannot run.
    """
    op = "frame_error"
    sizes: dict[str, int] = {}
    check_shape(op, "decoded", decoded, ("N", "C", "H", "W"), sizes)
    check_shape(op, "frames", frames, ("N", "C", "H", "W"), sizes)
    check_pixels(op, frames, mean, factor, (sizes["C"], sizes["H"], sizes["W"]))
    if weights is not None:
        check_shape(op, "weights", weights, ("N", "H", "W"), sizes)
        weights = constant(weights)
    frames, mean, factor = constant(frames), constant(mean), constant(factor)

    def obstacle() -> str | None:
        channels, width = sizes["C"], sizes["W"]
        if (decoded.stride(1) != 1 and channels > 1) or (decoded.stride(3) != channels and width > 1):
            return f"it takes decoded images with channels last in memory, found strides {decoded.stride()}"
        given = (mean, factor, *(() if weights is None else (weights,)))
        return (
            extension_obstacle(decoded, allowed=(torch.float32, torch.bfloat16))
            or extension_obstacle(frames, allowed=(torch.uint8, torch.float32))
            or extension_obstacle(*given, allowed=(torch.float32,))
        )

    obstacles: dict[str, Obstacle] = {"torch": None, "triton": None, "cpp": obstacle}
    if choose_backend(op, backend, decoded.device.type, obstacles) == "cpp":
        return direct_error(decoded, frames, mean, factor, weights)  # type: ignore[no-any-return]
    with torch.autocast(decoded.device.type, enabled=False):
        return frame_error_reference(decoded, frames, mean, factor, weights)
