"""LPIPS and FVD: distances between images and between videos as trained networks see them.

Their weights are not part of this package and are never downloaded: both take files by path.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime.evaluation.metrics import PEAK
from aime.nn import expect_shape
from aime.tensor_files import read_tensors

# ImageNet's mean and standard deviation for images in [-1, 1], as LPIPS has them.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
#: AlexNet's convolutions: entry of torchvision's `features`, channels, kernel, stride, padding; a 3x3 pool of stride 2
#: stands before the second and the third
CONVOLUTIONS: tuple[tuple[int, int, int, int, int, int], ...] = (
    (0, 3, 64, 11, 4, 2),
    (3, 64, 192, 5, 1, 2),
    (6, 192, 384, 3, 1, 1),
    (8, 384, 256, 3, 1, 1),
    (10, 256, 256, 3, 1, 1),
)
POOLED_BEFORE = (3, 6)
CLIP_SIZE = 224
"""Side in pixels to which videos are resized for the network of FVD."""
CONVERT = (
    "python -c 'import sys, safetensors.torch as s; from torch import load; "
    "s.save_file(load(sys.argv[1], weights_only=True), sys.argv[2])' IN.pth OUT.safetensors"
)
"""What turns a published file of weights into one that is read here."""
SHORTEST_CLIP = 9
"""Frames below which I3D has no output."""


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity on AlexNet (Zhang et al. 2018), version 0.1.

    Args:
        backbone: AlexNet's weights as torchvision publishes them (alexnet-owt-*.pth), as safetensors.
        linear: the five weightings of channels that LPIPS publishes (lpips/weights/v0.1/alex.pth), as safetensors.

    Raises:
        FileNotFoundError: a file is missing; it is named, and what it should be.
        ValueError: a file holds other tensors.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: str | Path, linear: str | Path) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(before, channels, kernel, stride, padding)
            for _, before, channels, kernel, stride, padding in CONVOLUTIONS
        )
        self.weights = nn.ParameterList(torch.zeros(1, channels, 1, 1) for _, _, channels, *_ in CONVOLUTIONS)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)
        tensors = read_weights(backbone, "torchvision's AlexNet")
        for (entry, *_), layer in zip(CONVOLUTIONS, self.layers, strict=True):
            for name, parameter in layer.named_parameters():
                fill(parameter, tensors, f"features.{entry}.{name}", backbone)
        tensors = read_weights(linear, "LPIPS's weightings for AlexNet")
        for index, parameter in enumerate(self.weights):
            fill(parameter, tensors, f"lin{index}.model.1.weight", linear)
        self.requires_grad_(False).eval()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Distances (N,) of images (N, 3, H, W), at least 32 pixels a side, scale [0, 255]; 0 for equal ones."""
        sizes = expect_shape(prediction, "N C H W", "prediction", C=3)
        expect_shape(target, "N C H W", "target", **sizes)
        if min(sizes["H"], sizes["W"]) < 32:
            raise ValueError(f"lpips: expected images of at least 32 pixels a side, found {sizes['H']} x {sizes['W']}")
        both = torch.cat([prediction.clamp(0.0, PEAK).float(), target.float()])
        x = (both / (PEAK / 2) - 1.0 - self.shift) / self.scale  # (2 N, 3, H, W)
        total = x.new_zeros(len(prediction))
        for (entry, *_), layer, weight in zip(CONVOLUTIONS, self.layers, self.weights, strict=True):
            x = layer(F.max_pool2d(x, 3, 2) if entry in POOLED_BEFORE else x).relu()  # (2 N, F, h, w)
            unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
            ours, theirs = unit.chunk(2)
            total = total + ((ours - theirs).square() * weight).sum(1).mean((1, 2))  # (N,)
        return total


class VideoFeatures:
    """The network in which FVD measures (Unterthiner et al. 2018): I3D trained on Kinetics-400, as TorchScript.

    Args:
        path: a TorchScript module from videos (N, 3, T, 224, 224) in [-1, 1] to features (N, F). One whose forward
            takes rescale, resize and return_features, as the commonly used file does, is told not to do the first two.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no TorchScript module.
    """

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: expected I3D as TorchScript for FVD, found no file")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, in which the file comes
                self._network: Any = torch.jit.load(str(path), map_location="cpu").eval()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{path}: expected I3D as TorchScript for FVD, found another file ({reason})") from error
        names = {argument.name for argument in self._network.forward.schema.arguments}
        wanted = {"rescale": False, "resize": False, "return_features": True}
        self._options = {name: value for name, value in wanted.items() if name in names}

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Tensor:
        """Features (N, F) float64 of videos (N, T, 3, H, W), scale [0, 255], T >= 9."""
        sizes = expect_shape(videos, "N T C H W", "videos", C=3)
        if sizes["T"] < SHORTEST_CLIP:
            raise ValueError(f"fvd: expected videos of at least {SHORTEST_CLIP} frames, found {sizes['T']}")
        frames = videos.clamp(0.0, PEAK).float().flatten(0, 1) / (PEAK / 2) - 1.0  # (N T, 3, H, W)
        frames = F.interpolate(frames.cpu(), (CLIP_SIZE, CLIP_SIZE), mode="bilinear", align_corners=False)
        clips = frames.unflatten(0, (sizes["N"], sizes["T"])).transpose(1, 2)  # (N, 3, T, 224, 224)
        features: Tensor = self._network(clips, **self._options)
        return features.flatten(1).double()


@dataclass(frozen=True)
class LearnedMetrics:
    """Networks that an evaluation may measure in; None: that figure is null."""

    lpips: LPIPS | None = None
    video: VideoFeatures | None = None


def frechet_distance(ours: Tensor, theirs: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (N, F) and (M, F), N and M at least 2.

    |m - m'|^2 + tr(S + S' - 2 (S S')^1/2). The trace of the root is the sum of the singular values of A A'^T, A and A'
    being the centred features over the root of their number less one: a matrix (N, M), however many features there are.

    Raises:
        ValueError: fewer than two samples, or another number of features.
    """
    if ours.shape[1:] != theirs.shape[1:] or min(len(ours), len(theirs)) < 2:
        found = f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
        raise ValueError(f"features (N, F) and (M, F): expected at least two samples of each and one F, found {found}")
    means, roots = [], []
    for features in (ours.double(), theirs.double()):
        means.append(features.mean(0))
        roots.append((features - means[-1]) / (len(features) - 1) ** 0.5)  # (N, F), S = root^T root
    traces = roots[0].square().sum() + roots[1].square().sum()
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return max(float((means[0] - means[1]).square().sum() + traces - 2 * shared), 0.0)


def read_weights(path: str | Path, what: str) -> Mapping[str, Tensor]:
    """Tensors by name from safetensors; nothing is unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another one; for a .pth, how to convert it.
    """
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"{place}: expected {what}, found no file")
    if place.suffix != ".safetensors":
        raise ValueError(f"{place}: expected {what} as .safetensors, found {place.suffix or 'no suffix'}: {CONVERT}")
    return read_tensors(place)


def fill(parameter: nn.Parameter, tensors: Mapping[str, Tensor], name: str, place: str | Path) -> None:
    """Copy a tensor of this name; ValueError where there is none of this shape."""
    found = tensors.get(name)
    if not isinstance(found, Tensor) or found.shape != parameter.shape:
        shown = tuple(found.shape) if isinstance(found, Tensor) else "none"
        raise ValueError(f"{place}: expected {name} of shape {tuple(parameter.shape)}, found {shown}")
    parameter.data.copy_(found)
