"""The README's picture: rows of the first rollout in a report, cut out and put side by side with their names.

    python scripts/rollout_picture.py RUN/report.html [--out docs/rollout.png]

The report is that of `aime evaluate RUN --rssm --rssm-tuned`.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import sys
from pathlib import Path

from PIL import Image, ImageDraw

ROWS = {
    "truth": "truth",
    "model, mean of samples": "AIME, mean",
    "model, one sample": "AIME, one rollout",
    "rssm_tuned": "tuned RSSM",
}
"""Rows of the report, and what they are called in the picture."""
SIDE, GAP, NAMES, HEADS = 80, 2, 118, 18  # pixels


def strip(report: str) -> tuple[list[str], dict[str, list[Image.Image]]]:
    """Heads of the columns and the pictures of each row of the first strip; ValueError where there is none."""
    table = re.search(r'<table class="strip">(.*?)</table>', report, re.DOTALL)
    if table is None:
        raise ValueError("expected a report with an open loop beside the truth, found none")
    head, *lines = re.findall(r"<tr>(.*?)</tr>", table[1], re.DOTALL)
    columns = [name for name in re.findall(r"<th[^>]*>([^<]*)</th>", head) if name]
    rows = {}
    for line in lines:
        encoded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", line)
        name = re.search(r"<th[^>]*>(.*?)</th>", line)
        assert name is not None
        rows[name[1]] = [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in encoded]
    return columns, rows


def draw(report: str) -> Image.Image:
    """The picture; ValueError where a row is missing."""
    columns, rows = strip(report)
    if missing := [name for name in ROWS if name not in rows]:
        raise ValueError(f"expected the rows {', '.join(ROWS)}, found no {missing[0]} (aime evaluate --rssm-tuned)")
    step = SIDE + GAP
    picture = Image.new("RGB", (NAMES + step * len(columns) - GAP, HEADS + step * len(ROWS) - GAP), "white")
    pen = ImageDraw.Draw(picture)
    for x, head in enumerate(columns):
        text = f"{head.removeprefix('+')} ahead" if head.startswith("+") else head
        pen.text((NAMES + x * step + 4, 3), text, fill="black")
    for y, (row, name) in enumerate(ROWS.items()):
        pen.text((4, HEADS + y * step + SIDE // 2 - 6), name, fill="black")
        for x, frame in enumerate(rows[row]):
            picture.paste(frame.resize((SIDE, SIDE)), (NAMES + x * step, HEADS + y * step))
    return picture


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "rollout.png")
    arguments = parser.parse_args()
    try:
        picture = draw(arguments.report.read_text())
    except ValueError as error:
        print(f"error: {arguments.report}: {error}", file=sys.stderr)
        return 1
    picture.quantize(128).save(arguments.out, optimize=True)
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
