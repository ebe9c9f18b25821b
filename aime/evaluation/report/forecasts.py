"""Open-loop figures of the report: charts over the horizon, a table per metric, and what each forecast cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from aime.evaluation.evaluate import Evaluation
from aime.evaluation.record import TRAINED
from aime.evaluation.report.numbers import number
from aime.evaluation.report.svg import Series, legend, line_chart

COLORS = {"model": "s1", "model_single": "s1", "copy_last": "s2", "mean_image": "s3", "rssm": "s4", "rssm_tuned": "s5"}
NAMES = {
    "model": "{model}, mean of {samples} samples",
    "model_single": "{model}, one sample",
    "copy_last": "copy last frame",
    "mean_image": "mean training image",
    "rssm": "RSSM, mean of {samples} samples",
    "rssm_single": "RSSM, one sample",
    "rssm_tuned": "tuned RSSM, mean of {samples} samples",
    "rssm_tuned_single": "tuned RSSM, one sample",
}


@dataclass(frozen=True)
class Metric:
    """How a metric is shown."""

    title: str
    sentence: str
    """What it says, where the title does not."""
    sign: int = 1
    """1: the largest is best, -1: the smallest, 0: neither."""
    digits: int = 2


METRICS = {
    "psnr_body": Metric("Body-masked PSNR, dB (moving bodies only)", ""),
    "psnr_union": Metric(
        "PSNR where a body is or is drawn, dB",
        "Over the pixels of the true bodies and of those in the prediction: a body that is not there costs here.",
    ),
    "psnr": Metric("Whole-frame PSNR, dB", ""),
    "ssim": Metric("SSIM, whole frame", "", digits=3),
    "crps_body": Metric(
        "CRPS of the pixels that bodies reach, grey levels",
        "How good the samples are as a distribution, fair for any number of them; a forecast without samples scores "
        "its absolute error, and low is good.",
        sign=-1,
    ),
    "spread_ratio": Metric(
        "Spread of the samples over the error of their mean",
        "1 is calibrated; below, the rollouts agree with each other more than they are right.",
        sign=0,
    ),
    "action_shuffle": Metric(
        "Error under another episode's actions over the error under the true ones",
        "1 means that the actions are not used; above, that forecasts depend on them.",
        sign=0,
    ),
}


def _name(series: str, evaluation: Evaluation) -> str:
    return NAMES.get(series, series).format(samples=evaluation.config.samples, model=evaluation.name)


def _figure_table(metric: str, evaluation: Evaluation, record: Mapping[str, Any]) -> str:
    horizons = list(record["open_loop"])
    names = [
        name for name in record["open_loop"][horizons[0]][metric] if evaluation.open_loop.scores.get(name) is not None
    ]
    shown = METRICS[metric]
    rows = []
    for name in names:
        if all(record["open_loop"][horizon][metric][name] is None for horizon in horizons):
            continue
        cells = []
        for horizon in horizons:
            row = record["open_loop"][horizon][metric]
            value, error = row[name], record["stderr"]["open_loop"][horizon][metric][name]
            if value is None:
                cells.append('<td class="null">-</td>')
                continue
            others = [shown.sign * other for other in row.values() if other is not None]
            best = shown.sign != 0 and shown.sign * value >= max(others)
            spread = "" if error is None else f'<span class="se">± {error:.{shown.digits}f}</span>'
            cells.append(f'<td><span class="{"best" if best else ""}">{value:.{shown.digits}f}</span>{spread}</td>')
        swatch = f'<i class="swatch" style="--c:var(--{COLORS.get(name, "s5")})"></i>'
        rows.append(f"<tr><td>{swatch}{escape(_name(name, evaluation))}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{horizon} frame{'s' if int(horizon) > 1 else ''} ahead</th>" for horizon in horizons)
    sentence = f'<p class="note">{escape(shown.sentence)}</p>' if shown.sentence else ""
    return (
        f'{sentence}<div class="scroll"><table class="figures"><caption>{escape(shown.title)}</caption>'
        f"<tr><th>forecast</th>{head}</tr>{''.join(rows)}</table></div>"
    )


def forecast_section(evaluation: Evaluation, record: Mapping[str, Any]) -> str:
    """Charts, tables and costs of every forecaster."""
    note = (
        f'<p class="note">{evaluation.config.context} frames are observed, then only the actions are known. Means over '
        f"{len(evaluation.episodes)} held-out episodes ({evaluation.clips} clips) with standard errors; the best of "
        "each column is bold. Bodies are a few percent of the pixels, so the body-masked figure comes first.</p>"
    )
    charts = []
    for metric in ("psnr_body", "psnr_union", "psnr"):
        series = [
            Series(
                _name(name, evaluation),
                np.arange(1, len(score.curve[metric]) + 1),
                score.curve[metric],
                COLORS.get(name, "s5"),
                dashed=name.endswith("_single"),
            )
            for name, score in evaluation.open_loop.scores.items()
            if metric in score.curve
        ]
        if series:
            chart = line_chart(series, METRICS[metric].title, "frames ahead", "dB")
            charts.append(f"<div><h3>{METRICS[metric].title}</h3>{chart}</div>")
    keys = legend(
        [
            (_name(name, evaluation), COLORS.get(name, "s5"), name.endswith("_single"))
            for name in evaluation.open_loop.scores
        ]
    )
    tables = "".join(
        _figure_table(metric, evaluation, record)
        for metric in METRICS
        if any(row[metric]["model"] is not None for row in record["open_loop"].values())
    )
    besides = _cost_table(evaluation, record) + _filtering_table(evaluation, record)
    return f'{note}{keys}<div class="columns">{"".join(charts)}</div>{tables}{besides}'


def _cost_table(evaluation: Evaluation, record: Mapping[str, Any]) -> str:
    """What each trained forecaster had: equal CPU seconds are the condition of the comparison."""
    rows = []
    for name in TRAINED:
        if evaluation.open_loop.scores.get(name) is None:
            continue
        values = (cost[name] for cost in record["training"].values())
        cells = "".join('<td class="null">-</td>' if value is None else f"<td>{value:,.0f}</td>" for value in values)
        rows.append(f"<tr><td>{escape(_name(name, evaluation))}</td>{cells}</tr>")
    return (
        '<div class="scroll"><table class="figures"><caption>What each was trained for: CPU seconds of the process, '
        "all threads together</caption><tr><th>forecast</th><th>CPU seconds</th><th>frames</th><th>parameters</th></tr>"
        f"{''.join(rows)}</table></div>"
    )


def _filtering_table(evaluation: Evaluation, record: Mapping[str, Any]) -> str:
    rows = []
    for title, key in (("posterior reconstruction", "reconstruction"), ("one-step prior", "one_step_prior")):
        cells = "".join(f"<td>{number(record[key][metric])}</td>" for metric in ("psnr_body", "psnr"))
        rows.append(f"<tr><td>{title}</td>{cells}</tr>")
    baseline = evaluation.reconstruction_baseline
    cells = "".join(f"<td>{number(baseline[metric].mean)}</td>" for metric in ("psnr_body", "psnr"))
    rows.append(f"<tr><td>mean training image, same frames</td>{cells}</tr>")
    return (
        '<div class="scroll"><table class="figures"><caption>While observing</caption>'
        f"<tr><th></th><th>psnr_body, dB</th><th>psnr, dB</th></tr>{''.join(rows)}</table></div>"
    )
