"""The convolutional trunk: one pass over the pixels, whose feature maps serve posterior, tokenizer and slots alike."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from aime.nn import ResidualCell, expect_shape, pad_to_multiple


class ImageTrunk(nn.Module):
    """Images to feature maps, finest first: patches by one convolution, then convolutions of kernel 4 and stride 2.

    No map is finer than the patches: most of the cost of the usual stem lies at full resolution, and 4 x 4 patches
    lose nothing that a pole two pixels wide needs. Any H, W >= 32: image and maps are padded at their edge to whole
    patches and pairs of cells, so level i has ceil(H / (patch_size 2^i)) rows.

    Args:
        height, width: of the images, in pixels.
        input_channels: image channels, those of earlier frames included.
        channels: channels of each level, finest first.
        patch_size: side of the patches in pixels.
        cells_per_level: residual cells (Vahdat and Kautz 2020, NVAE) after each level's convolution; 0 for none.
        squeeze_excitation: channel gates in the residual cells.

    Raises:
        ValueError: an image side under 32.
    """

    def __init__(
        self,
        height: int,
        width: int,
        input_channels: int = 3,
        channels: tuple[int, ...] = (64, 128, 192),
        *,
        patch_size: int = 4,
        cells_per_level: int = 0,
        squeeze_excitation: bool = False,
    ) -> None:
        super().__init__()
        if min(height, width) < 32:
            raise ValueError(f"height, width: expected at least 32 pixels, found {height} x {width}")
        self.image_shape, self.patch_size = (input_channels, height, width), patch_size
        self.channels = tuple(channels)
        rows, columns = -(-height // patch_size), -(-width // patch_size)
        self.sizes: list[tuple[int, int]] = [(rows, columns)]
        """(rows, columns) of each level's map."""
        for _ in self.channels[1:]:
            self.sizes.append((-(-self.sizes[-1][0] // 2), -(-self.sizes[-1][1] // 2)))

        def cells(width: int) -> nn.Sequential:
            found = [ResidualCell(width, squeeze_excitation=squeeze_excitation) for _ in range(cells_per_level)]
            return nn.Sequential(*found)

        self.patches = nn.Conv2d(input_channels, self.channels[0], patch_size, stride=patch_size)
        self.halvings = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(self.channels))
        self.cells = nn.ModuleList(cells(width) for width in self.channels)

    def level_of(self, side: int) -> int:
        """The coarsest level whose map has at least ``side`` rows, the finest when none has."""
        fitting = [level for level, (rows, _) in enumerate(self.sizes) if rows >= side]
        return fitting[-1] if fitting else 0

    def forward(self, images: Tensor, *, as_patches: bool = False) -> tuple[Tensor, ...]:
        """Feature maps (N, F_i, H_i, W_i), finest first, channels-last in memory.

        Args:
            images: (N, C, H, W), or with ``as_patches`` what :func:`aime.kernels.frame_patches` makes of them,
                (N, H / p, W / p, C p p): the convolution is then one matrix product, whose gradient takes half as long.
            as_patches: which of the two.
        """
        channels, height, width = self.image_shape
        if as_patches:
            (rows, columns), weight = self.sizes[0], self.patches.weight.flatten(1)  # (F_0, C p p)
            expect_shape(images, "N H W P", "images", H=rows, W=columns, P=weight.shape[1])
            x = F.conv2d(images.permute(0, 3, 1, 2), weight[:, :, None, None], self.patches.bias)
        else:
            expect_shape(images, "N C H W", "images", C=channels, H=height, W=width)
            x = self.patches(pad_to_multiple(images, self.patch_size))
        maps = [self.cells[0](F.silu(x))]  # (N, F_0, H / p, W / p)
        for halving, cells in zip(self.halvings, list(self.cells)[1:], strict=True):
            even = pad_to_multiple(maps[-1], 2)
            maps.append(cells(F.silu(halving(even))))  # (N, F_i, H_i, W_i)
        return tuple(maps)
