"""Charts as inline SVG: they follow the page's colours (light and dark), need no library and stay sharp."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 36


@dataclass(frozen=True)
class Series:
    """One line: ``color`` names a CSS variable (``s1`` .. ``s8``, ``ink``, ``muted``); NaN breaks the line."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    color: str = "s1"
    dashed: bool = False
    markers: bool = False


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside [low, high], about ``count`` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    for factor in (1, 2, 2.5, 5, 10):
        if (high - low) / (step * factor) <= count:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """A short number: 1200 -> 1.2k."""
    magnitude = abs(value)
    if magnitude >= 1e6:
        return f"{value / 1e6:g}M"
    if magnitude >= 1e4:
        return f"{value / 1e3:g}k"
    if 0 < magnitude < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.4g}"


class _Frame:
    """Scales, grid and axes of one chart."""

    def __init__(
        self,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        size: tuple[int, int],
        labels: tuple[str, str],
        log: bool = False,
        x_ticks: Sequence[float] | None = None,
    ) -> None:
        self.size, self.labels, self.log = size, labels, log
        self.x_low, self.x_high = x_range if x_range[1] > x_range[0] else (x_range[0] - 0.5, x_range[0] + 0.5)
        low, high = y_range
        if log:
            low, high = math.log10(low), math.log10(high)
        pad = 0.05 * (high - low) or 0.5
        self.y_low, self.y_high = low - pad, high + pad
        self.x_ticks = list(x_ticks) if x_ticks is not None else ticks(self.x_low, self.x_high)

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (self.size[0] - LEFT - RIGHT)

    def y(self, value: float) -> float:
        if self.log:
            value = math.log10(value) if value > 0 else float("nan")
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return self.size[1] - BOTTOM - share * (self.size[1] - TOP - BOTTOM)

    def y_ticks(self) -> list[float]:
        if not self.log:
            return ticks(self.y_low, self.y_high)
        decades = range(math.ceil(self.y_low), math.floor(self.y_high) + 1)
        values = [10.0**decade for decade in decades]
        return values if len(values) > 1 else [10.0**value for value in ticks(self.y_low, self.y_high, 3)]

    def wrap(self, body: str, title: str) -> str:
        width, height = self.size
        parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
        for value in self.y_ticks():
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{label(value)}</text>')
        for value in self.x_ticks:
            x = self.x(value)
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{height - BOTTOM + 15}" text-anchor="middle">{label(value)}</text>'
            )
        base = height - BOTTOM
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{width - RIGHT}" y1="{base}" y2="{base}"/>')
        x_label, y_label = self.labels
        if x_label:
            parts.append(
                f'<text class="axis-label" x="{(LEFT + width - RIGHT) / 2}" y="{height - 4}" '
                f'text-anchor="middle">{escape(x_label)}</text>'
            )
        if y_label:
            middle = (TOP + base) / 2
            parts.append(
                f'<text class="axis-label" transform="translate(11 {middle}) rotate(-90)" '
                f'text-anchor="middle">{escape(y_label)}</text>'
            )
        return "".join(parts) + body + "</svg>"


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def line_chart(
    series: Sequence[Series],
    title: str,
    x_label: str = "",
    y_label: str = "",
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    log: bool = False,
    x_ticks: Sequence[float] | None = None,
    shade_until: float | None = None,
) -> str:
    """Lines over a common x axis; ``shade_until`` shades x below it (the observed context)."""
    ys = np.concatenate([_finite(item.y) for item in series])
    xs = np.concatenate([_finite(item.x) for item in series])
    if log:
        ys = ys[ys > 0]
    if ys.size == 0:
        return '<p class="none">no data</p>'
    frame = _Frame(
        (float(xs.min()), float(xs.max())), (float(ys.min()), float(ys.max())), size, (x_label, y_label), log, x_ticks
    )
    body = []
    if shade_until is not None:
        right = frame.x(min(shade_until, frame.x_high))
        body.append(
            f'<rect class="shade" x="{LEFT}" y="{TOP}" width="{max(0.0, right - LEFT):.1f}" '
            f'height="{size[1] - TOP - BOTTOM}"/>'
        )
    for item in series:
        points, pen = [], "M"
        for x, y in zip(item.x, item.y, strict=True):
            height = frame.y(float(y)) if math.isfinite(float(y)) else float("nan")
            if not math.isfinite(height):
                pen = "M"
                continue
            points.append(f"{pen}{frame.x(float(x)):.1f} {height:.1f}")
            pen = "L"
        dash = ' stroke-dasharray="5 4"' if item.dashed else ""
        body.append(
            f'<path class="line" style="stroke:var(--{item.color})"{dash} d="{"".join(points)}">'
            f"<title>{escape(item.name)}</title></path>"
        )
        if item.markers:
            for x, y in zip(item.x, item.y, strict=True):
                if math.isfinite(float(y)):
                    tip = f"{escape(item.name)}: {float(y):.2f} at {label(float(x))}"
                    body.append(
                        f'<circle r="3" cx="{frame.x(float(x)):.1f}" cy="{frame.y(float(y)):.1f}" '
                        f'style="fill:var(--{item.color})"><title>{tip}</title></circle>'
                    )
    return frame.wrap("".join(body), title)


def bar_chart(
    values: Sequence[float] | np.ndarray,
    title: str,
    x_label: str = "",
    y_label: str = "",
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    color: str = "s1",
    reference: float | None = None,
    centers: Sequence[float] | None = None,
) -> str:
    """Bars from zero; ``reference`` draws a dashed level."""
    heights = np.nan_to_num(np.asarray(values, dtype=np.float64))
    if heights.size == 0:
        return '<p class="none">no data</p>'
    at = np.arange(1, heights.size + 1, dtype=np.float64) if centers is None else np.asarray(centers, dtype=np.float64)
    half = 0.5 if heights.size == 1 else 0.5 * float(at[1] - at[0])
    highest = max(float(heights.max()), reference or 0.0, 1e-9)
    frame = _Frame((float(at[0]) - half, float(at[-1]) + half), (0.0, highest), size, (x_label, y_label))
    frame.y_low = 0.0
    if centers is None and heights.size <= 24:
        frame.x_ticks = list(at)
    width = frame.x(at[0] + half) - frame.x(at[0] - half)
    gap = min(2.0, 0.2 * width)
    base = frame.y(0.0)
    body = []
    for x, height in zip(at, heights, strict=True):
        top = frame.y(float(height))
        body.append(
            f'<rect x="{frame.x(float(x)) - width / 2 + gap / 2:.2f}" y="{top:.1f}" width="{width - gap:.2f}" '
            f'height="{base - top:.1f}" style="fill:var(--{color})"><title>{label(float(x))}: {label(float(height))}'
            "</title></rect>"
        )
    if reference is not None:
        y = frame.y(reference)
        body.append(f'<line class="reference" x1="{LEFT}" x2="{size[0] - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    return frame.wrap("".join(body), title)


def stacked_areas(
    shares: np.ndarray, title: str, x_label: str = "", y_label: str = "", *, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> str:
    """Shares (T, K) that sum to one, stacked over time; colours repeat after eight, fainter."""
    length, count = shares.shape
    frame = _Frame((0.0, float(max(length - 1, 1))), (0.0, 1.0), size, (x_label, y_label))
    frame.y_low, frame.y_high = 0.0, 1.0
    edges = np.concatenate([np.zeros((length, 1)), np.cumsum(shares, axis=1)], axis=1)
    body = []
    for k in range(count):
        upper = [f"{frame.x(t):.1f} {frame.y(float(edges[t, k + 1])):.1f}" for t in range(length)]
        lower = [f"{frame.x(t):.1f} {frame.y(float(edges[t, k])):.1f}" for t in reversed(range(length))]
        opacity = 0.9 if k < 8 else 0.45
        tip = f"component {k + 1}: mean weight {shares[:, k].mean():.3f}"
        body.append(
            f'<path class="area" style="fill:var(--s{k % 8 + 1});opacity:{opacity}" '
            f'd="M{"L".join(upper + lower)}Z"><title>{tip}</title></path>'
        )
    return frame.wrap("".join(body), title)


def legend(entries: Sequence[tuple[str, str, bool]]) -> str:
    """Swatches of (name, color, dashed)."""
    items = "".join(
        f'<span><i class="{"dashed" if dashed else ""}" style="--c:var(--{color})"></i>{escape(name)}</span>'
        for name, color, dashed in entries
    )
    return f'<div class="legend">{items}</div>'
