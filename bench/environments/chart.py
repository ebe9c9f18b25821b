"""The benchmark as one SVG file that stands alone: light and dark after the reader's system, no script, no fonts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, PANEL = 1000, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 66, 34
#: contestant -> colour class; ours first and in the colours that stand out
COLORS = {
    "ours": "c1",
    "ours, exact": "c1",
    "ours, high": "c2",
    "ours, fast": "c3",
    "ours, raycast": "c4",
    "EnvPool": "c5",
    "mujoco.rollout": "c6",
    "AsyncVectorEnv": "c7",
    "dm_control": "c8",
}
STYLE = """
    .page { fill: #ffffff; stroke: #c9d1d9; } text { fill: #1f2328; } .muted { fill: #57606a; }
    .title { font-size: 15px; font-weight: 600; } .small { font-size: 11.5px; } .value { font-size: 10.5px; }
    .grid { stroke: #e2e6ec; } .line { stroke: #57606a; stroke-dasharray: 5 4; } .axis { stroke: #8b949e; }
    .c1 { fill: #2563eb; } .c2 { fill: #60a5fa; } .c3 { fill: #93c5fd; } .c4 { fill: #059669; }
    .c5 { fill: #b45309; } .c6 { fill: #9333ea; } .c7 { fill: #94a3b8; } .c8 { fill: #64748b; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; stroke: #30363d; } text { fill: #e6edf3; } .muted { fill: #9aa4af; }
      .grid { stroke: #222832; } .line { stroke: #9aa4af; } .axis { stroke: #6b7280; }
      .c1 { fill: #60a5fa; } .c2 { fill: #2f6db5; } .c3 { fill: #1e4a80; } .c4 { fill: #34d399; }
      .c5 { fill: #fbbf24; } .c6 { fill: #c084fc; } .c7 { fill: #64748b; } .c8 { fill: #94a3b8; }
    }
"""


@dataclass(frozen=True)
class Panel:
    """One row of grouped bars.

    Attributes:
        title, note: its heading, and what a bar's length is.
        values: task -> contestant -> ratio.
        height: ratio -> share of the panel's height, in [0, 1].
        ticks: ratios with a line and a label.
        reference: the ratio of the dashed line.
        top: where the panel begins.
    """

    title: str
    note: str
    values: Mapping[str, Mapping[str, float]]
    height: Callable[[float], float]
    ticks: Sequence[float]
    reference: float
    top: int
    unit: str


def ratios(results: Mapping[str, Mapping[str, Any]], base: str) -> dict[str, dict[str, float]]:
    """task -> contestant -> rate over the base's rate, the base left out; tasks without the base are left out."""
    return {
        task: {name: rate["per_second"] / rates[base]["per_second"] for name, rate in rates.items() if name != base}
        for task, rates in results.items()
        if base in rates
    }


def ticks_of(most: float) -> list[float]:
    """Powers of two from 1/2 that cover `most`."""
    return [2.0**power for power in range(-1, max(2, math.ceil(math.log2(most))) + 1)]


def chart(record: Mapping[str, Any]) -> str:
    """The chart of a stored run: control steps as shares of mj_step, pictures as multiples of dm_control."""
    panels: list[Panel] = []
    steps = ratios(record.get("control_steps", {}), "mj_step")
    if steps:
        highest = max(1.0, *(value for row in steps.values() for value in row.values()))
        levels = [index / 5 for index in range(math.ceil(5 * highest - 1e-9) + 1)]
        panels.append(
            Panel(
                "Control steps per second",
                "share of what mj_step alone does in C++ threads (dashed)",
                steps,
                lambda ratio: ratio / levels[-1],
                levels,
                1.0,
                0,
                "%",
            )
        )
    pictures = ratios(record.get("pictures", {}), "dm_control")
    if pictures:
        marks = ticks_of(max(value for row in pictures.values() for value in row.values()))
        span = math.log2(marks[-1] / marks[0])
        size = record["settings"]["size"]
        panels.append(
            Panel(
                f"Pictures of {size} x {size} per second",
                "times dm_control (dashed), logarithmic",
                pictures,
                lambda ratio: min(1.0, max(0.0, math.log2(ratio / marks[0]) / span)),
                marks,
                1.0,
                PANEL * len(panels),
                "x",
            )
        )
    height = PANEL * len(panels) + 30
    machine, settings = record["machine"], record["settings"]
    title = "Environments against their peers"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}"',
        '     font-family="Helvetica, Arial, sans-serif" font-size="13">',
        f"  <title>{title}</title>",
        f"  <style>{STYLE}  </style>",
        f'  <rect class="page" x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="10"/>',
    ]
    for panel in panels:
        lines += drawn(panel)
    foot = (
        f"{machine['cpu']}, {settings['threads']} threads, action repeat {settings['action_repeat']}, "
        f"{settings['num_envs']} environments ({settings['pixel_envs']} with pictures), "
        f"median of {settings['rounds']} interleaved rounds"
    )
    lines.append(f'  <text class="muted small" x="{LEFT}" y="{height - 14}">{escape(foot)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def drawn(panel: Panel) -> list[str]:
    """Heading, legend, axis and bars of a panel."""
    names = list(dict.fromkeys(name for row in panel.values.values() for name in row))
    base, room = panel.top + PANEL - BOTTOM, PANEL - TOP - BOTTOM
    y, note = panel.top + 28, escape(panel.note)
    lines = [
        f'  <text class="title" x="{LEFT}" y="{y}">{escape(panel.title)}</text>',
        f'  <text class="muted small" x="{WIDTH - RIGHT}" y="{y}" text-anchor="end">{note}</text>',
    ]
    x = float(LEFT)
    for name in names:
        lines.append(f'  <rect class="{COLORS[name]}" x="{x:.0f}" y="{panel.top + 39}" width="10" height="10" rx="2"/>')
        lines.append(f'  <text class="small" x="{x + 15:.0f}" y="{panel.top + 48}">{escape(name)}</text>')
        x += 34 + 6.4 * len(name)
    for tick in panel.ticks:
        level = base - room * panel.height(tick)
        kind = "line" if tick == panel.reference else "grid"
        text = f"{100 * tick:.0f} %" if panel.unit == "%" else f"{tick:g}x"
        lines.append(f'  <line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{level:.1f}" y2="{level:.1f}"/>')
        lines.append(f'  <text class="muted small" x="{LEFT - 8}" y="{level + 4:.1f}" text-anchor="end">{text}</text>')
    group = (WIDTH - LEFT - RIGHT) / max(1, len(panel.values))
    bar = min(26.0, 0.8 * group / len(names))
    for index, (task, row) in enumerate(panel.values.items()):
        begin = LEFT + index * group + (group - bar * len(names)) / 2
        for place, name in enumerate(names):
            if name not in row:
                continue
            ratio, left = row[name], begin + place * bar
            tall = max(1.0, room * panel.height(ratio))
            tip = f"{task}, {name}: {ratio:.2f} of the dashed line"
            lines.append(
                f'  <rect class="{COLORS[name]}" x="{left + 0.75:.1f}" y="{base - tall:.1f}" width="{bar - 1.5:.1f}" '
                f'height="{tall:.1f}" rx="1.5"><title>{escape(tip)}</title></rect>'
            )
            if name.startswith("ours"):
                text = f"{100 * ratio:.0f}" if panel.unit == "%" else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
                lines.append(
                    f'  <text class="value" x="{left + bar / 2:.1f}" y="{base - tall - 4:.1f}" text-anchor="middle">'
                    f"{text}</text>"
                )
        lines.append(
            f'  <text class="small" x="{LEFT + (index + 0.5) * group:.1f}" y="{base + 17}" text-anchor="middle">'
            f"{escape(task.replace('/', ' '))}</text>"
        )
    lines.append(f'  <line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    return lines
