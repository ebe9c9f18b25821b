"""What is measured of vq_statistics."""

from collections.abc import Iterator
from functools import partial

import torch

from aime.kernels import vq_statistics
from aime.kernels.vq_lookup.reference import vq_statistics_reference
from bench.kernels.case import Case, Contestants, nbytes, ours, within


def statistics_cases(device: str, _compiled: bool, large: bool) -> Iterator[Case]:
    """(rows, codes, width) as vq_cases has them, against the product with a one-hot matrix."""
    sizes = [(4096, 256, 32), (8192, 1024, 64), (40960, 1024, 64), (65536, 1024, 64)]
    sizes = [size for size in sizes if within(size[0])]
    for rows, codes, width in sizes if large else sizes[:2]:
        x = torch.randn(rows, 1, width, device=device)
        indices = torch.randint(0, codes, (rows, 1), dtype=torch.int32, device=device)
        contestants = Contestants(device)
        one_hot = 12.0 * rows * codes  # bytes: int64, then float32
        contestants.add("one-hot product", partial(vq_statistics_reference, x, indices, codes), one_hot)
        for name, op in ours(device, vq_statistics, ("torch", "cpp", "triton")):
            contestants.add(name, partial(op, x, indices, codes))
        moved = nbytes(x, indices) + 4.0 * codes * (width + 1)
        size, flops, inputs = f"{rows} x {codes} x {width}", float(rows * (width + 1)), nbytes(x, indices)
        yield Case("vq_statistics", size, contestants.runs, flops, moved, moved, inputs, contestants.left_out)
