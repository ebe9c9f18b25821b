"""The evaluation's summary in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from aime.evaluation.evaluate import Evaluation
from aime.evaluation.record import SERIES, TRAINED

PROBE_ROWS = 16
TITLES = {
    "psnr_body": "psnr_body, open loop",
    "psnr_union": "psnr_union, open loop (bodies of the target and of the prediction)",
    "psnr": "psnr, open loop",
    "ssim": "ssim, open loop",
    "crps_body": "crps_body, open loop (low is good)",
    "spread_ratio": "spread_ratio, open loop (1 is calibrated)",
    "action_shuffle": "action_shuffle, open loop (1: actions are not used)",
}


def _cell(value: float | None, error: float | None, digits: int) -> str:
    if value is None:
        return "[dim]-[/dim]"
    return f"{value:.{digits}f}" + ("" if error is None else f" [dim]±{error:.{digits}f}[/dim]")


def summary_tables(evaluation: Evaluation, record: Mapping[str, Any]) -> list[Table]:
    """One table per image metric, body-masked first, then of samples, training, probes and the other figures."""
    tables = [_figure_table(metric, record) for metric in TITLES]
    costs = Table(title="training", title_justify="left")
    for head in ("forecast", "CPU seconds", "frames", "parameters"):
        costs.add_column(head, justify="left" if head == "forecast" else "right")
    for name in TRAINED:
        if evaluation.open_loop.scores.get(name) is not None:
            values = (cost[name] for cost in record["training"].values())
            costs.add_row(name, *("-" if value is None else f"{value:,.0f}" for value in values))
    tables.append(costs)
    if record["probe_columns"]:
        tables.append(_probe_table(record["probe_columns"]))
    others = Table(title="other figures", title_justify="left")
    others.add_column("figure")
    others.add_column("value", justify="right")
    for group in ("reconstruction", "one_step_prior", "probe", "codebook", "mixture", "slots"):
        for name, value in record[group].items():
            if value is not None:  # what is missing is named below the tables, with the reason
                others.add_row(f"{group} {name}", _cell(value, record["stderr"][group][name], 3))
    for horizon, value in record["tokens"]["accuracy"].items():
        if value is None:
            continue
        error = record["stderr"]["tokens"]["accuracy"][horizon]
        copied = _cell(record["tokens"]["copied"][horizon], None, 3)
        others.add_row(f"token accuracy, {horizon} ahead (copying the last: {copied})", _cell(value, error, 3))
    return [*tables, others]


def _figure_table(metric: str, record: Mapping[str, Any]) -> Table:
    """A metric of every series that has it, at every horizon."""
    table = Table(title=TITLES[metric], title_justify="left")
    table.add_column("forecast")
    for horizon in record["open_loop"]:
        table.add_column(f"{horizon} ahead", justify="right")
    digits = 3 if metric == "ssim" else 2
    errors = record["stderr"]["open_loop"]
    for series in SERIES:
        if any(figures[metric][series] is not None for figures in record["open_loop"].values()):
            cells = (
                _cell(figures[metric][series], errors[horizon][metric][series], digits)
                for horizon, figures in record["open_loop"].items()
            )
            table.add_row(series, *cells)
    return table


def _probe_table(columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """R^2 of each column, the first ``PROBE_ROWS``; metrics.json has them all."""
    table = Table(title="probe R^2 by quantity", title_justify="left")
    for head in ("quantity", "linear", "nonlinear", "exact state, linear"):
        table.add_column(head, justify="left" if head == "quantity" else "right")
    for name, column in list(columns.items())[:PROBE_ROWS]:
        table.add_row(name, *(_cell(column[readout], None, 3) for readout in ("linear", "nonlinear", "exact")))
    if len(columns) > PROBE_ROWS:
        table.add_row(f"... {len(columns) - PROBE_ROWS} more in metrics.json")
    return table


def print_summary(evaluation: Evaluation, record: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the tables, and why a figure is missing."""
    console = console or Console()
    console.print(
        f"{record['task'] or 'held-out episodes'}: {len(evaluation.episodes)} held-out episodes, "
        f"{evaluation.clips} clips of {evaluation.clip_length} frames, evaluated in {evaluation.seconds:.0f} s"
    )
    for table in summary_tables(evaluation, record):
        console.print(table)
    for name, reason in evaluation.not_computed.items():
        if name in ("lpips", "fvd"):  # nobody who did not ask for them wants to be told; evaluation.json says it
            continue
        console.print(f"[dim]not computed: {name}: {reason}[/dim]")
