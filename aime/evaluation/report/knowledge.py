"""What the model's state, its mixture prior and its tokens hold: the report's sections of probes, mixture, codebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from aime.evaluation.evaluate import Evaluation
from aime.evaluation.report.numbers import number
from aime.evaluation.report.svg import Series, bar_chart, legend, line_chart, stacked_areas


def probe_section(evaluation: Evaluation, record: Mapping[str, Any]) -> str:
    """Readouts beside the truth, and R^2 by column with the exact state's beside it."""
    probes = evaluation.probes
    if probes is None:
        return f'<p class="none">Not computed: {escape(evaluation.not_computed.get("probe", "no probe"))}.</p>'
    linear, nonlinear = probes.linear, probes.nonlinear
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{column['group']}</td>"
        + "".join(f"<td>{number(column[readout])}</td>" for readout in ("linear", "nonlinear", "exact"))
        + "</tr>"
        for name, column in record["probe_columns"].items()
    )
    charts = []
    rows_of_clip = evaluation.probe_rows[0]
    first = evaluation.clip_length - len(rows_of_clip)
    for column, name in enumerate(linear.targets.names[:8]):
        times = np.arange(first, evaluation.clip_length)
        series = [
            Series("truth", times, linear.targets.values[rows_of_clip, column], "ink"),
            Series("linear readout", times, linear.prediction[rows_of_clip, column], "s1"),
            Series("nonlinear readout", times, nonlinear.prediction[rows_of_clip, column], "s2"),
        ]
        charts.append(f"<div><h3>{escape(name)}</h3>{line_chart(series, name, 'frame', size=(360, 170))}</div>")
    keys = legend([("truth", "ink", False), ("linear readout", "s1", False), ("nonlinear readout", "s2", False)])
    return (
        '<p class="note">A ridge regression from [h, z], and the same with a small hidden layer, fitted on training '
        "episodes and scored here on held-out ones. <i>Exact state</i> is what a linear readout of the true physics, "
        "in the form of these columns, reaches: where that is low, so must a model's be. Group <i>rate</i> is shown "
        f"for comparison and in no mean. Lines: {escape(evaluation.open_loop.film_clips.labels[0])}.</p>{keys}"
        f'<div class="small-multiples">{"".join(charts)}</div>'
        '<div class="scroll"><table class="figures"><caption>R² by quantity</caption>'
        "<tr><th>quantity</th><th>group</th><th>linear</th><th>nonlinear</th><th>exact state, linear</th></tr>"
        f"{rows}</table></div>"
    )


def mixture_section(evaluation: Evaluation, record: Mapping[str, Any]) -> str:
    """Weights over time, use of the components, calibration."""
    weights = evaluation.shown.get("weights")
    if weights is None:
        return '<p class="none">The model gives no mixture prior.</p>'
    figures = record["mixture"]
    charts = [
        (
            f"Weights over time, {evaluation.open_loop.film_clips.labels[0]}",
            stacked_areas(weights[0].numpy(), "mixture weights over time", "frame", "weight"),
        )
    ]
    shares = evaluation.histograms.get("responsibilities")
    if shares is not None:
        chart = bar_chart(shares, "share of frames by component", "component", "share of frames", color="s1")
        charts.append(("Which component explains the frames", chart))
    pit = evaluation.histograms.get("pit")
    if pit is not None:
        density = pit / pit.sum() * len(pit)
        centers = ((np.arange(len(pit)) + 0.5) / len(pit)).tolist()
        chart = bar_chart(
            density,
            "probability integral transform",
            "CDF of the prior at z",
            "density",
            reference=1.0,
            centers=centers,
        )
        charts.append(("Calibration: flat is right, a hump is a prior too wide, a bowl too narrow", chart))
    panels = "".join(f"<div><h3>{escape(title)}</h3>{chart}</div>" for title, chart in charts)
    return (
        f'<p class="note">Components in use {number(figures["components_used"], 1)} (each explains at least 1 % of an '
        f"episode) · NLL of z {number(figures['nll'])} nats · CRPS {number(figures['crps'], 3)}.</p>"
        f'<div class="columns">{panels}</div>'
    )


def codebook_section(evaluation: Evaluation, record: Mapping[str, Any]) -> str:
    """Use of the codes and accuracy of the next tokens."""
    counts = evaluation.histograms.get("codebook")
    if counts is None:
        return '<p class="none">The model gives no tokens.</p>'
    figures, accuracy = record["codebook"], record["tokens"]["accuracy"]
    ordered = np.sort(counts)[::-1] / counts.sum()
    chart = bar_chart(ordered, "use of each code", "codes, most used first", "share of tokens", size=(1120, 240))
    usage = "not computed" if figures["usage"] is None else f"{figures['usage']:.0%}"
    tokens = " · ".join(
        f"{horizon} ahead {number(value, 3)} (repeating the last tokens: "
        f"{number(evaluation.token_accuracy_copied[int(horizon)].mean, 3)})"
        for horizon, value in accuracy.items()
    )
    return (
        f'<p class="note">Perplexity {number(figures["perplexity"], 1)} of {len(counts)} codes, {usage} of them used. '
        f"Next-token accuracy: {tokens}.</p>{chart}"
    )
