"""Small pieces that more than one pillar needs: image ranges, shape checks, residual cells, perceptrons."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def source_device(generator: torch.Generator | None) -> torch.device:
    """Where a generator draws; the CPU without one. A tensor that is drawn anywhere else is an error of PyTorch's."""
    return torch.device("cpu") if generator is None else generator.device


def expect_shape(tensor: Tensor, pattern: str, name: str, **sizes: int) -> dict[str, int]:
    """Check a tensor against named axes and return their sizes.

    Args:
        tensor: the tensor to check.
        pattern: axis names separated by spaces, for example ``"B T C H W"``.
        name: what the tensor is called in the error.
        sizes: required sizes of some axes, for example ``C=3``.

    Raises:
        ValueError: the number of axes or a required size differs; the message shows both shapes with axis names.
    """
    axes = pattern.split()
    expected = ", ".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes)
    if tensor.dim() != len(axes):
        raise ValueError(
            f"{name}: expected {len(axes)} axes ({expected}), found {tensor.dim()} in shape {tuple(tensor.shape)}"
        )
    found = dict(zip(axes, tensor.shape, strict=True))
    if any(found[axis] != size for axis, size in sizes.items() if axis in found):
        shown = ", ".join(f"{axis}={size}" for axis, size in found.items())
        raise ValueError(f"{name}: expected ({expected}), found ({shown})")
    return found


def images_to_float(images: Tensor) -> Tensor:
    """uint8 images in 0..255 to float32 in [-1, 1]; floating-point images are returned unchanged.

    Raises:
        TypeError: the dtype is neither uint8 nor floating point.
    """
    if images.dtype == torch.uint8:
        return images.to(torch.float32).mul_(2.0 / 255.0).sub_(1.0)
    if images.is_floating_point():
        return images
    raise TypeError(f"images: expected uint8 in 0..255 or floating point in [-1, 1], found {images.dtype}")


def images_to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1] to uint8, rounded and clipped."""
    return images.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16 products: CUDA, and CPUs with AVX512-BF16 or AMX."""
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return device.type == "cuda"


def normalisation(channels: int) -> nn.GroupNorm:
    """GroupNorm of at most 8 groups with at least 8 channels each (one group for fewer than 16 channels)."""
    groups = next(
        groups for groups in (8, 4, 2, 1) if channels % groups == 0 and (channels // groups >= 8 or groups == 1)
    )
    return nn.GroupNorm(groups, channels)


def apply_step(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Step unless a gradient is not finite; fused ones take the decision on the device, without a host sync."""
    if not isinstance(optimizer, torch.optim.AdamW) and not optimizer.defaults.get("fused"):
        if bool(finite):
            optimizer.step()
        return
    optimizer.found_inf = 1.0 - finite.float()  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Replicate the bottom and right edge until height and width are multiples of ``multiple``. (N, C, H, W)."""
    height, width = images.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images


class PatchesToImage(nn.Module):
    """Features (N, F, h, w) to images (N, C, h p, w p): each position becomes a patch by one linear map.

    The same function as a transposed convolution of kernel and stride p. On a channels-last CPU tensor it is one matrix
    product and one copy, three times faster than the transposed convolution to a few channels.
    """

    def __init__(self, features: int, channels: int, patch: int) -> None:
        super().__init__()
        self.channels, self.patch = channels, patch
        self.linear = nn.Linear(features, patch * patch * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, h p, w p), channels-last in memory."""
        batch, _, rows, columns = x.shape
        patches = self.linear(x.permute(0, 2, 3, 1))  # (N, h, w, p p C)
        lines = patches.view(batch, rows, columns, self.patch, self.patch * self.channels).transpose(2, 3)
        image: Tensor = lines.reshape(batch, rows * self.patch, columns * self.patch, self.channels)
        return image.permute(0, 3, 1, 2)


class SqueezeExcitation(nn.Module):
    """Channel gates from the global mean (Hu et al. 2018, Squeeze-and-Excitation Networks)."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.gates = nn.Sequential(nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of x (N, C, H, W)."""
        gates: Tensor = self.gates(x.mean((-2, -1)))
        return x * gates[:, :, None, None]


class ResidualCell(nn.Module):
    """Pre-activation residual cell (Vahdat & Kautz 2020, NVAE, figure 3).

    The last convolution starts at zero, so a new cell is the identity and depth costs nothing at the start.

    Args:
        channels: input and output channels.
        depthwise: an inverted bottleneck (1x1, depthwise 5x5, 1x1) instead of two 3x3 convolutions.
        squeeze_excitation: gate the branch by channel.
    """

    def __init__(self, channels: int, *, depthwise: bool = False, squeeze_excitation: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module]
        if depthwise:
            wide = 3 * channels
            layers = [normalisation(channels), nn.Conv2d(channels, wide, 1), nn.SiLU()]
            layers += [nn.Conv2d(wide, wide, 5, padding=2, groups=wide), nn.SiLU(), nn.Conv2d(wide, channels, 1)]
        else:
            layers = [normalisation(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)]
            layers += [normalisation(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)]
        last = layers[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        if squeeze_excitation:
            layers.append(SqueezeExcitation(channels))
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) plus the branch."""
        out: Tensor = x + self.branch(x)
        return out


def mlp(sizes: tuple[int, ...], *, final_norm: bool = False) -> nn.Sequential:
    """Linear layers with LayerNorm and SiLU between them; the last layer is linear unless ``final_norm``."""
    layers: list[nn.Module] = []
    for i, (inner, outer) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(inner, outer))
        if final_norm or i < len(sizes) - 2:
            layers += [nn.LayerNorm(outer), nn.SiLU()]
    return nn.Sequential(*layers)
