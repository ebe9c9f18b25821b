"""The log of a run as HTML: where it stands, and a chart for each of its scalars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from aime.evaluation.report.numbers import duration
from aime.evaluation.report.svg import Series, legend, line_chart

POINTS = 240  # of a line; more are averaged
FIRST = ("total_loss", "recon_loss", "kl_z", "perceiver_loss", "hierarchical_kl", "attention_kl", "grad_norm")
LAST = ("learning_rate", "beta", "frames_per_second", "data_stall", "bad_steps")
NO_CURVE = ("step", "epoch", "frames", "seconds", "cpu_seconds")
HELD_OUT = "validation/"
LOG_RATIO = 30.0

Row = Mapping[str, float]


def curves(history: Sequence[Row]) -> str:
    """Tiles and charts of the rows of metrics.jsonl, HTML; held-out losses lie over those of training."""
    if not history:
        return '<p class="none">No line is logged yet.</p>'
    keys = dict.fromkeys(key.removeprefix(HELD_OUT) for row in history for key in row if key not in NO_CURVE)
    order = [key for key in FIRST if key in keys]
    order += [key for key in keys if key not in (*FIRST, *LAST)] + [key for key in LAST if key in keys]
    panels = [f"<div><h3>{escape(key)}</h3>{chart}</div>" for key in order if (chart := _chart(history, key))]
    keys_of_lines = legend([("training", "s1", False), ("held out", "s3", False)])
    return f'{_tiles(history)}{keys_of_lines}<div class="small-multiples">{"".join(panels)}</div>'


def _chart(history: Sequence[Row], key: str) -> str:
    """The chart of one scalar; empty where it has not two values yet."""
    series = []
    for name, color, markers in ((key, "s1", False), (HELD_OUT + key, "s3", True)):
        rows = np.array([(row["step"], row[name]) for row in history if name in row], dtype=np.float64)
        if len(rows):
            steps, values = _thin(rows.reshape(-1, 2))
            series.append(Series(name, steps, values, color, markers=markers and len(steps) <= 40))
    values = np.concatenate([np.asarray(item.y) for item in series])
    finite = values[np.isfinite(values)]
    if finite.size < 2:
        return ""
    log = bool((finite > 0).all()) and float(finite.max() / finite.min()) > LOG_RATIO
    return line_chart(series, key, "step", size=(360, 180), log=log)


def _thin(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) rows of step and value as means of consecutive ones, so that at most `POINTS` remain."""
    means = np.array([part.mean(0) for part in np.array_split(rows, min(POINTS, len(rows)))])
    return means[:, 0], means[:, 1]


def _tiles(history: Sequence[Row]) -> str:
    latest: dict[str, float] = {}
    for row in history:
        latest.update(row)
    tiles = [
        ("step", f"{latest['step']:,.0f}", f"{latest.get('frames', 0):,.0f} frames"),
        ("loss", _figure(latest, "total_loss"), f"held out {_figure(latest, HELD_OUT + 'total_loss')}"),
        ("frames a second", _figure(latest, "frames_per_second"), f"epoch {_figure(latest, 'epoch')}"),
        ("trained for", duration(latest.get("seconds")) or "-", f"{latest.get('bad_steps', 0):.0f} steps skipped"),
        ("waited for data", f"{100 * latest.get('data_stall', 0):.0f} %", "share of the last steps"),
    ]
    return '<div class="tiles">' + "".join(map(_tile, tiles)) + "</div>"


def _figure(latest: Row, key: str) -> str:
    return f"{latest[key]:.5g}" if key in latest else "not yet"


def _tile(tile: tuple[str, str, str]) -> str:
    name, value, beside = map(escape, tile)
    return (
        f'<div class="tile"><div class="name">{name}</div><div class="value">{value}</div>'
        f'<div class="beside">{beside}</div></div>'
    )
