"""frame_patches: what a trunk's first layer multiplies, from frames as they are stored."""

import torch
from torch import Tensor

from ..dispatch import Obstacle, choose_backend, extension_obstacle
from ..shapes import check_pixels, check_shape
from .operators import direct_patches
from .reference import frame_patches_reference


def frame_patches(
    frames: Tensor,
    mean: Tensor,
    factor: Tensor,
    before: Tensor | None = None,
    *,
    patch_size: int = 1,
    stack: int = 1,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Tensor:
    """Whitened frames (x - mean) factor, each with the S - 1 changes before it, cut into patches.

    A convolution of kernel and stride p over the frame and its changes is one matrix product with these rows, whose
    order is that of its weights (S C, p, p). Change k leads from frame t - k to frame t - k + 1.

    Args:
        frames: (B, T, C, H, W) uint8 or floating point.
        mean, factor: float32 or float64, broadcast to (C, H, W); no gradient flows into them.
        before: (B, S - 1, C, H, W) whitened frames before these; the first frame has always stood still when absent.
        patch_size: p, side of a patch; 1 gives whitened pixels with their channels last. Frames are continued at the
            bottom and the right edge to whole patches.
        stack: S, the frame and its S - 1 changes.
        dtype: of the result; rounded once, at the end.
        backend: None, "torch", "cpp" (CPU; uint8 or float32 frames of whole patches without gradient, float32 or
            bfloat16 results) or "triton", for which PyTorch's operations stand in.

    Returns:
        (B, T, H / p, W / p, S C p p), in the order (S C, p, p).

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, an unknown backend.
        RuntimeError: a backend that cannot run.
    """
    op = "frame_patches"
    sizes: dict[str, int] = {}
    check_shape(op, "frames", frames, ("B", "T", "C", "H", "W"), sizes)
    check_pixels(op, frames, mean, factor, (sizes["C"], sizes["H"], sizes["W"]))
    if before is not None:
        check_shape(op, "before", before, ("B", "S - 1", "C", "H", "W"), {**sizes, "S - 1": stack - 1})
    if patch_size < 1 or stack < 1:
        raise ValueError(f"{op}: expected patch_size >= 1 and stack >= 1, found {patch_size} and {stack}")

    def obstacle() -> str | None:
        if frames.requires_grad or (before is not None and before.requires_grad):
            return "it has no gradient, and the frames or those before require one"
        if dtype not in (torch.float32, torch.bfloat16):
            return f"it gives torch.float32 or torch.bfloat16, not {dtype}"
        if sizes["H"] % patch_size or sizes["W"] % patch_size:
            return f"it takes whole patches of {patch_size}, found {sizes['H']} x {sizes['W']} pixels"
        given = (mean, factor, *(() if before is None else (before,)))
        return extension_obstacle(frames, allowed=(torch.uint8, torch.float32)) or extension_obstacle(
            *given, allowed=(torch.float32,)
        )

    obstacles: dict[str, Obstacle] = {"torch": None, "triton": None, "cpp": obstacle}
    if choose_backend(op, backend, frames.device.type, obstacles) == "cpp":
        return direct_patches(frames, mean.detach(), factor.detach(), before, patch_size, stack, dtype)  # type: ignore[no-any-return]
    return frame_patches_reference(frames, mean.detach(), factor.detach(), before, patch_size, stack, dtype)
