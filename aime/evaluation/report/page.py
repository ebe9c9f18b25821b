"""report.html: one file that holds everything it shows and asks nothing of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from aime.evaluation.evaluate import Evaluation
from aime.evaluation.report.films import film_section, map_section
from aime.evaluation.report.forecasts import forecast_section
from aime.evaluation.report.knowledge import codebook_section, mixture_section, probe_section
from aime.evaluation.report.numbers import duration, number
from aime.evaluation.report.style import STYLE
from aime.evaluation.report.svg import Series, line_chart

LOSS_PANELS = 12
FIRST_LOSSES = ("total_loss", "recon_loss", "kl_z", "perceiver_loss", "hierarchical_kl", "attention_kl", "grad_norm")


def write_report(
    path: Path,
    evaluation: Evaluation,
    record: Mapping[str, Any],
    history: Sequence[Mapping[str, float]] = (),
) -> None:
    """Write the report.

    Args:
        path: of the HTML file.
        evaluation: what was measured.
        record: the contents of metrics.json.
        history: rows of the training log, each with "step" and scalars; empty when there is no log.
    """
    sections = [
        ("How far ahead it sees", forecast_section(evaluation, record)),
        ("Open loop beside the truth", _film_intro(evaluation) + film_section(evaluation)),
        ("Attention and slots", _MAP_NOTE + map_section(evaluation)),
        ("What the state knows", probe_section(evaluation, record)),
        ("Mixture prior", mixture_section(evaluation, record)),
        ("Codebook and tokens", codebook_section(evaluation, record)),
        ("Training", _training(history)),
        ("Protocol", _protocol(evaluation)),
    ]
    body = "".join(f"<section><h2>{escape(title)}</h2>{content}</section>" for title, content in sections)
    title = f"{evaluation.name} on {record['task'] or 'held-out episodes'}"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{_facts(record)}{_tiles(record)}{body}{_footer(record)}</main></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _facts(record: Mapping[str, Any]) -> str:
    seconds = record["seconds"]
    facts = {
        "preset": record["preset"],
        "seed": record["seed"],
        "parameters": f"{record['parameters'] / 1e6:.2f} M" if record["parameters"] else None,
        "frames trained": f"{record['frames_trained']:,}" if record["frames_trained"] else None,
        "collected in": duration(seconds["collect"]),
        "trained in": duration(seconds["train"]),
        "CPU seconds of training": duration(record["training"]["cpu_seconds"]["model"]),
        "evaluated in": duration(seconds["evaluate"]),
        "trained on frames of": record["renderer"]["train"],
        "evaluated on frames of": record["renderer"]["evaluate"],
        "device": record["device"],
        "commit": str(record["commit"])[:10] if record["commit"] else None,
    }
    shown = (f"<span>{name} <b>{escape(str(value))}</b></span>" for name, value in facts.items() if value is not None)
    return f'<div class="facts">{"".join(shown)}</div>'


def _tiles(record: Mapping[str, Any]) -> str:
    tiles = []
    for horizon, metrics in record["open_loop"].items():
        body = metrics["psnr_body"] if metrics["psnr_body"]["model"] is not None else metrics["psnr"]
        if body["model"] is None:
            continue
        metric = "psnr_body" if body is metrics["psnr_body"] else "psnr"
        rivals = {
            name: body[name] for name in ("copy_last", "mean_image", "rssm", "rssm_tuned") if body[name] is not None
        }
        best = max(rivals, key=lambda name: rivals[name])
        gain = round(body["model"] - rivals[best], 1) + 0.0  # no minus sign before a zero
        tiles.append(
            (
                f"{metric}, {horizon} frame{'s' if int(horizon) > 1 else ''} ahead",
                f'{body["model"]:.1f} <span class="unit">dB</span>',
                f'<span class="{"gain" if gain >= 0.05 else ""}">{gain:+.1f} dB</span> to {best.replace("_", " ")}',
            )
        )
    reconstruction = record["reconstruction"]["psnr_body"]
    if reconstruction is not None:
        tiles.append(("psnr_body, reconstruction", f'{reconstruction:.1f} <span class="unit">dB</span>', "posterior"))
    probe = record["probe"]
    if probe["qpos_r2"] is not None:
        velocity = number(probe["qvel_r2"])
        tiles.append(("R² of positions from [h, z]", f"{probe['qpos_r2']:.2f}", f"velocities {velocity}"))
    cards = "".join(
        f'<div class="tile"><div class="name">{escape(name)}</div><div class="value">{value}</div>'
        f'<div class="beside">{beside}</div></div>'
        for name, value, beside in tiles
    )
    return f'<div class="tiles">{cards}</div>'


def _film_intro(evaluation: Evaluation) -> str:
    return (
        f'<p class="note">The first {evaluation.config.context} frames (grey part of the bar) are observed, and the '
        "model shows its reconstruction; from there (blue) it runs on actions alone. Error maps are dark where right, "
        "bright where wrong.</p>"
    )


_MAP_NOTE = (
    '<p class="note">Posterior maps while observing. Attention brightens what it looks at; each pixel of the slot row '
    "takes the colour of the slot that claims it most; the rows under it show the slots one by one.</p>"
)


def _training(history: Sequence[Mapping[str, float]]) -> str:
    if not history:
        return '<p class="none">No training log beside the checkpoint.</p>'
    skip = {"step", "epoch", "frames", "seconds", "cpu_seconds", "time"}
    keys = list(dict.fromkeys(key for row in history for key in row if key not in skip))
    keys = [key for key in FIRST_LOSSES if key in keys] + [key for key in keys if key not in FIRST_LOSSES]
    panels: list[str] = []
    for key in keys:
        rows = [(row["step"], row[key]) for row in history if key in row and "step" in row]
        steps, values = _thin(np.array(rows, dtype=np.float64))
        if len(panels) == LOSS_PANELS or np.unique(values).size < 2:
            continue
        positive = values[values > 0]
        log = positive.size == values.size and float(positive.max() / positive.min()) > 30.0
        chart = line_chart([Series(key, steps, values)], key, "step", size=(360, 180), log=log)
        panels.append(f"<div><h3>{escape(key)}</h3>{chart}</div>")
    return f'<div class="small-multiples">{"".join(panels)}</div>'


def _thin(rows: np.ndarray, points: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Means of consecutive rows, so that at most ``points`` remain."""
    bins = np.array_split(rows, min(points, len(rows)))
    means = np.array([part.mean(0) for part in bins])
    return means[:, 0], means[:, 1]


def _protocol(evaluation: Evaluation) -> str:
    config = evaluation.config
    episodes = ", ".join(str(episode) for episode in evaluation.episodes)
    text = (
        f"<p>Held-out episodes ({escape(config.split)} split): {episodes}. Clips of {evaluation.clip_length} frames, "
        f"{config.starts} per episode at most; squared errors are pooled per episode, PSNR is taken per episode (peak "
        "to peak 255) and then averaged. The body mask is that of the target frame, the same for every forecast. "
        f"Each predictive mean is over {config.samples} rollouts that share nothing but the observed frames and the "
        "actions.</p>"
    )
    if not evaluation.not_computed:
        return text
    reasons = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(reason)}</dd>" for name, reason in evaluation.not_computed.items()
    )
    return f'{text}<h3>Not computed</h3><dl class="reasons">{reasons}</dl>'


def _footer(record: Mapping[str, Any]) -> str:
    versions = " · ".join(f"{escape(name)} {escape(str(value))}" for name, value in record["versions"].items())
    return f"<footer>{versions}</footer>"
