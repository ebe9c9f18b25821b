"""The roofline picture of a kernel benchmark: operations a second over operations a byte, in logarithms.

    python -m bench.kernels.roofline [bench/results/kernels-cpu.json [OUT.svg]]

A point is an op at one size: filled for the backend that AIME chooses, hollow for its fastest peer, a line between the
two. The roof is what the machine can do: its memory to the left of the ridge, its arithmetic to the right.
"""

import json
import math
import sys
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT = 1000, 560
LEFT, RIGHT, TOP, BOTTOM = 74, 190, 60, 58
COLOURS = {
    "vq_lookup": "s1",
    "mixture_log_prob": "s2",
    "mixture_kl": "s3",
    "mixture_logistics_nll": "s4",
    "slot_attention": "s5",
    "stick_log_weights": "s6",
}
STYLE = """
    .page { fill: #ffffff; stroke: #c9d1d9; } .grid { stroke: #edf0f4; } .roof { stroke: #14181f; fill: none; }
    text { fill: #14181f; } .head { font-weight: 600; font-size: 16px; }
    .tick, .label { fill: #5c6675; font-size: 12px; }
    .s1 { --c: #2563eb; } .s2 { --c: #0e7490; } .s3 { --c: #b45309; } .s4 { --c: #be185d; } .s5 { --c: #15803d; }
    .s6 { --c: #6d28d9; }
    .ours { fill: var(--c); } .peer { fill: none; stroke: var(--c); stroke-width: 1.6; }
    .gain { stroke: var(--c); stroke-width: 1.2; stroke-opacity: .45; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0e1116; stroke: #2a303a; } .grid { stroke: #222832; } .roof { stroke: #e8ecf2; }
      text { fill: #e8ecf2; } .tick, .label { fill: #97a1b0; }
      .s1 { --c: #60a5fa; } .s2 { --c: #22d3ee; } .s3 { --c: #fbbf24; } .s4 { --c: #f472b6; } .s5 { --c: #4ade80; }
      .s6 { --c: #a78bfa; }
    }"""


class Scale:
    """Logarithmic axes."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x_low, self.x_high = (math.log10(value) for value in x)
        self.y_low, self.y_high = (math.log10(value) for value in y)

    def x(self, value: float) -> float:
        """Operations a byte to a place."""
        share = (math.log10(value) - self.x_low) / (self.x_high - self.x_low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Operations a second to a place."""
        share = (math.log10(value) - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def pairs(record: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """For each case our fastest backend and the fastest peer, if one was run."""
    cases: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in record["measurements"]:
        cases.setdefault((row["op"], row["size"]), []).append(row)
    found = []
    for rows in cases.values():
        ours = [row for row in rows if row["implementation"].startswith("aime ")]
        peers = [row for row in rows if not row["implementation"].startswith("aime ")]
        fastest = [min(group, key=lambda row: row["milliseconds"]) if group else None for group in (ours, peers)]
        if fastest[0] is not None:
            found.append((fastest[0], fastest[1]))
    return found


def rate(row: dict[str, Any]) -> float:
    """Operations a second."""
    return float(row["flops"]) / float(row["milliseconds"]) * 1e3


def decades(low: float, high: float) -> tuple[float, float]:
    """The powers of ten around a range."""
    return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))


def draw(record: dict[str, Any]) -> str:
    """The picture as an SVG file's text."""
    floor, points = record["floor"], pairs(record)
    rates = [rate(row) for pair in points for row in pair if row is not None]
    densities = [ours["flops"] / ours["bytes"] for ours, _ in points]
    ridge = floor["operations"] / floor["bandwidth"]
    x_range = decades(min(*densities, ridge), max(*densities, ridge))
    y_range = decades(min(rates), max(*rates, floor["operations"]))
    scale = Scale(x_range, y_range)
    device = record["machine"]["device"]
    title = f"Roofline of the kernels: {device}, {record['machine']['threads']} threads"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"',
        f'     aria-label="{escape(title)}" font-family="Helvetica, Arial, sans-serif" font-size="13">',
        f"  <style>{STYLE}\n  </style>",
        f'  <rect class="page" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="10"/>',
        f'  <text class="head" x="{LEFT}" y="32">{escape(title)}</text>',
        *axes(scale, x_range, y_range),
        *roof(scale, x_range, floor),
    ]
    for ours, peer in points:
        parts += point(scale, ours, peer)
    parts += legend()
    return "\n".join([*parts, "</svg>"]) + "\n"


def axes(scale: Scale, x_range: tuple[float, float], y_range: tuple[float, float]) -> list[str]:
    parts = []
    for exponent in range(round(math.log10(x_range[0])), round(math.log10(x_range[1])) + 1):
        x = scale.x(10.0**exponent)
        parts.append(f'  <line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        base = HEIGHT - BOTTOM + 18
        parts.append(f'  <text class="tick" x="{x:.1f}" y="{base}" text-anchor="middle">{10.0**exponent:g}</text>')
    for exponent in range(round(math.log10(y_range[0])), round(math.log10(y_range[1])) + 1):
        y = scale.y(10.0**exponent)
        parts.append(f'  <line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        number = f"{10.0 ** (exponent - 9):g}"
        parts.append(f'  <text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'  <text class="label" x="{middle}" y="{HEIGHT - 14}" text-anchor="middle">operations per byte of inputs and '
        "results</text>"
    )
    parts.append(
        f'  <text class="label" transform="translate(22 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        'text-anchor="middle">billion operations per second</text>'
    )
    return parts


def roof(scale: Scale, x_range: tuple[float, float], floor: dict[str, Any]) -> list[str]:
    bandwidth, operations = floor["bandwidth"], floor["operations"]
    ridge = operations / bandwidth
    start = max(x_range[0], 10.0**scale.y_low / bandwidth)
    corner = f"{scale.x(ridge):.1f},{scale.y(operations):.1f}"
    line = f"{scale.x(start):.1f},{scale.y(start * bandwidth):.1f} {corner} {WIDTH - RIGHT},{scale.y(operations):.1f}"
    numbers = f"{operations / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.0f} GB/s"
    x, y = WIDTH - RIGHT + 8, scale.y(operations) + 4
    return [
        f'  <polyline class="roof" stroke-width="1.8" points="{line}"/>',
        f'  <text class="label" x="{x}" y="{y:.1f}">{numbers}</text>',
    ]


def point(scale: Scale, ours: dict[str, Any], peer: dict[str, Any] | None) -> list[str]:
    x, y, colour = scale.x(ours["flops"] / ours["bytes"]), scale.y(rate(ours)), COLOURS.get(ours["op"], "s1")
    tip = f"{ours['op']} {ours['size']}: {ours['implementation']} {ours['milliseconds']:.3g} ms"
    parts = [f'  <g class="{colour}">']
    if peer is not None:
        below = scale.y(rate(peer))
        tip += f", {peer['implementation']} {peer['milliseconds']:.3g} ms"
        parts.append(f'    <line class="gain" x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{below:.1f}"/>')
        parts.append(f'    <circle class="peer" cx="{x:.1f}" cy="{below:.1f}" r="4.5"/>')
    parts.append(f'    <circle class="ours" cx="{x:.1f}" cy="{y:.1f}" r="5.5"><title>{escape(tip)}</title></circle>')
    return [*parts, "  </g>"]


def legend() -> list[str]:
    parts, x = [], WIDTH - RIGHT + 24
    for index, (op, colour) in enumerate(COLOURS.items()):
        y = 190 + 24 * index
        parts.append(f'  <g class="{colour}"><circle class="ours" cx="{x}" cy="{y}" r="5.5"/></g>')
        parts.append(f'  <text x="{x + 14}" y="{y + 4}">{op}</text>')
    y = 190 + 24 * len(COLOURS) + 12
    parts.append(f'  <g class="s1"><circle class="ours" cx="{x}" cy="{y}" r="5.5"/>')
    parts.append(f'    <circle class="peer" cx="{x}" cy="{y + 24}" r="4.5"/></g>')
    parts.append(f'  <text class="label" x="{x + 14}" y="{y + 4}">AIME, fastest backend</text>')
    parts.append(f'  <text class="label" x="{x + 14}" y="{y + 28}">fastest peer</text>')
    return parts


def main(arguments: list[str]) -> int:
    source = Path(arguments[0]) if arguments else ROOT / "bench" / "results" / "kernels-cpu.json"
    target = Path(arguments[1]) if len(arguments) > 1 else ROOT / "docs" / "kernels" / "roofline-cpu.svg"
    target.write_text(draw(json.loads(source.read_text())))
    print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
