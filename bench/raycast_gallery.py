"""One picture of what the ray caster draws: for each benchmark task MuJoCo's frame, ours, and the difference.

    python -m bench.raycast_gallery [--out docs/raycast_gallery.png] [--size 64] [--tasks walker/walk ...]

The difference is |ours - MuJoCo's| times 8, on black.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from bench import golden

OUT = Path(__file__).parents[1] / "docs" / "raycast_gallery.png"
AMPLIFIED = 8
MARGIN = 6
CAPTION = 16


def triple(domain: str, task: str, size: int, pose: int, seed: int) -> list[NDArray[np.uint8]]:
    """MuJoCo's frame, ours and the amplified difference of the pose with this number."""
    truth, ours = list(golden.pairs(domain, task, pose + 1, (size, size), seed))[-1]
    difference = np.abs(ours.pixels.astype(np.int32) - truth.pixels) * AMPLIFIED
    return [truth.pixels, ours.pixels, np.minimum(difference, 255).astype(np.uint8)]


def sheet(tasks: list[tuple[str, str]], size: int, zoom: int, columns: int, pose: int, seed: int) -> Image.Image:
    """All triples in a grid, each under its task's name."""
    side = size * zoom
    block = (3 * side + 2 * MARGIN // 2 + 2 * MARGIN, side + CAPTION + MARGIN)
    rows = -(-len(tasks) // columns)
    image = Image.new("RGB", (columns * block[0] + MARGIN, rows * block[1] + MARGIN), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(12)
    for index, (domain, task) in enumerate(tasks):
        left, top = MARGIN + index % columns * block[0], MARGIN + index // columns * block[1]
        draw.text((left, top), f"{domain} {task}", fill=(0, 0, 0), font=font)
        for position, frame in enumerate(triple(domain, task, size, pose, seed)):
            enlarged = Image.fromarray(frame).resize((side, side), Image.Resampling.NEAREST)
            image.paste(enlarged, (left + position * (side + MARGIN // 2), top + CAPTION))
    return image


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--size", type=int, default=64, help="height and width of the frames")
    parser.add_argument("--zoom", type=int, default=2, help="pixels of the sheet for one of a frame")
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--pose", type=int, default=4, help="which pose of the episode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", nargs="+", help="domain/task pairs; the whole benchmark by default")
    options = parser.parse_args(arguments)
    tasks = list(golden.benchmark_tasks())
    if options.tasks:
        tasks = [(name.split("/")[0], name.split("/")[1]) for name in options.tasks]
    image = sheet(tasks, options.size, options.zoom, min(options.columns, len(tasks)), options.pose, options.seed)
    image.save(options.out, optimize=True)
    size = options.out.stat().st_size / 1e3
    print(f"{options.out}: {len(tasks)} tasks, {image.width} x {image.height}, {size:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
