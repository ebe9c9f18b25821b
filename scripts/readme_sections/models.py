"""Sections on trained models, from their metrics.json: tables of runs, the open-loop benchmark, planners, transfer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from readme_sections.parts import estimate, missing, result_files, stored, table

SERIES = {
    "model": "AIME, mean of 16 rollouts",
    "model_single": "AIME, one rollout",
    "rssm": "small RSSM, mean of 16 rollouts",
    "rssm_tuned": "tuned RSSM, mean of 16 rollouts",
    "copy_last": "copy the last frame",
    "mean_image": "mean image",
}
"""Rows of the open-loop table, and what they are called there."""


def run_section(record: dict[str, Any]) -> str:
    """The tables of one trained model, from its metrics.json."""
    errors, seconds = record["stderr"], record["seconds"]
    times = [f"{name} {value:.0f} s" for name, value in seconds.items() if value is not None]
    size = f"{record['parameters'] / 1e6:.2f} M parameters" if record["parameters"] else "size unknown"
    seen = f"{record['frames_trained']:,} frames trained" if record["frames_trained"] else "frames unknown"
    origin = f"commit {record['commit'][:7]}" if record["commit"] else "commit unknown"
    lines = [
        f"**{record['task']}, preset {record['preset']}, seed {record['seed']}**: {size}, {seen}.",
        f"{', '.join(times)}, {record['device']}, {origin}.",
        "Held-out episodes, mean ± standard error over episodes.",
        "",
    ]
    horizons = list(record["open_loop"])
    ahead = tuple(f"{h} ahead" for h in horizons)
    costs = record.get("training", {})
    rows = []
    for name, title in SERIES.items():
        values = [record["open_loop"][horizon]["psnr_body"].get(name) for horizon in horizons]
        if any(value is not None for value in values):
            bars = [errors["open_loop"][horizon]["psnr_body"].get(name) for horizon in horizons]
            spent = [costs.get(cost, {}).get(name) for cost in ("cpu_seconds", "frames")]
            trained = ("-" if cost is None else f"{cost:,.0f}" for cost in spent)
            rows.append((title, *(estimate(*pair) for pair in zip(values, bars, strict=True)), *trained))
    heads = ("open loop, psnr_body (dB, pixels of moving bodies)", *ahead, "CPU s of training", "frames")
    lines += [table(heads, rows), ""]
    rows = []
    for metric in ("psnr_union", "crps_body", "spread_ratio", "action_shuffle", "psnr"):
        values = [record["open_loop"][horizon].get(metric, {}).get("model") for horizon in horizons]
        if any(value is not None for value in values):
            bars = [errors["open_loop"][horizon][metric].get("model") for horizon in horizons]
            rows.append((metric, *(estimate(*pair) for pair in zip(values, bars, strict=True))))
    lines += [table(("open loop, AIME", *ahead), rows), ""]
    rows = []
    for group in ("reconstruction", "one_step_prior", "probe", "codebook", "mixture", "slots"):
        for name, value in record[group].items():
            if value is not None:
                rows.append((f"{group} {name}", estimate(value, errors[group][name], 3)))
    for horizon, value in record["tokens"]["accuracy"].items():
        if value is not None:
            rows.append((f"token accuracy, {horizon} ahead", estimate(value, errors["tokens"]["accuracy"][horizon], 3)))
            copied = record["tokens"].get("copied", {}).get(horizon)
            rows.append((f"... of copying the last tokens, {horizon} ahead", estimate(copied, None, 3)))
    return "\n".join([*lines, table(("other figures", "value"), rows)])


def runs_text() -> str:
    """Trained models."""
    runs = result_files("run-*.json")
    if not runs:
        return missing("a trained model on held-out episodes", "make train && python scripts/update_readme.py runs/*")
    return "\n\n".join(run_section(json.loads(path.read_text())) for path in runs)


def headline_text() -> str:
    """Of every trained model, what it foresees 15 frames ahead beside what others do: one row each."""
    runs = [json.loads(path.read_text()) for path in result_files("run-*.json")]
    if not runs:
        return missing("a trained model on held-out episodes", "make train && python scripts/update_readme.py runs/*")
    names = [name for name in SERIES if name != "model_single"]
    rows, tasks = [], [run["task"] for run in runs]
    for run in runs:
        named = run["task"] if tasks.count(run["task"]) == 1 else f"{run['task']}, seed {run['seed']}"
        values, bars = run["open_loop"]["15"]["psnr_body"], run["stderr"]["open_loop"]["15"]["psnr_body"]
        cells = (estimate(values.get(name), bars.get(name)) for name in names)
        seconds = run["training"]["cpu_seconds"]["model"]
        rows.append((named, *cells, "-" if seconds is None else f"{seconds / 60:.1f}"))
    head = (
        "15 frames ahead, psnr_body (dB)",
        *(SERIES[name].partition(",")[0] for name in names),
        "CPU minutes of training",
    )
    return table(head, rows)


OPEN_LOOP_TASKS = ("cartpole-swingup", "reacher-easy", "cheetah-run", "walker-walk")
OPEN_LOOP_METRICS = {
    "psnr_body": "psnr_body, dB: pixels of the true bodies",
    "psnr_union": "psnr_union, dB: pixels of the true and of the drawn bodies",
    "crps_body": "crps_body, grey levels (low is good): the samples as a distribution",
    "action_shuffle": "action_shuffle: error under another episode's actions over that under the true ones",
}


def open_loop_section(record: dict[str, Any]) -> str:
    """One task of the open-loop benchmark: every series, figure and horizon, and the probes of the model's state."""
    errors, horizons = record["stderr"], list(record["open_loop"])
    costs = record["training"]["cpu_seconds"]
    lines = [f"**{record['task']}**"]
    for metric, title in OPEN_LOOP_METRICS.items():
        rows = []
        for name, label in SERIES.items():
            values = [record["open_loop"][horizon].get(metric, {}).get(name) for horizon in horizons]
            if name == "model_single" or all(value is None for value in values):
                continue
            bars = [errors["open_loop"][horizon][metric].get(name) for horizon in horizons]
            spent = costs.get(name)
            cells = (estimate(*pair) for pair in zip(values, bars, strict=True))
            rows.append((label, *cells, "-" if spent is None else f"{spent:,.0f}"))
        if rows:  # what could not be told of the task's pictures has none
            lines += ["", table((title, *(f"{horizon} ahead" for horizon in horizons), "CPU s"), rows)]
    names = {"qpos_r2": "positions", "qvel_r2": "velocities", "reward_r2": "reward"}
    probes = [f"{title} {estimate(record['probe'][name], errors['probe'][name])}" for name, title in names.items()]
    return "\n".join([*lines, "", f"Linear probes of AIME's state, R²: {', '.join(probes)}."])


def open_loop_text() -> str:
    """The open-loop benchmark: four tasks, those without a file named."""
    sections = []
    for task in OPEN_LOOP_TASKS:
        files = result_files(f"benchmark-{task}.json")
        if files:
            sections.append(open_loop_section(json.loads(files[0].read_text())))
        else:
            sections.append(f"**{task}**: not measured yet.")
    return "\n\n".join(sections)


def planners_text() -> str:
    """Planners with the exact simulator as their model."""
    found = stored("planners")
    if not found:
        return missing("planning with the exact simulator", "python -m bench.planners")
    name, record = found[-1]
    rows = []
    for row in record["rows"]:
        settings, decision = row["settings"], row["decision"]
        size = f"{settings['iterations']} x {settings['samples']} x {settings['horizon']}"
        returns = ", ".join(f"{value:.0f}" for value in row["returns"])
        each = decision["cpu_ms_median"] / len(row["returns"])
        rows.append(
            (
                f"{row['domain']} {row['task']}",
                row["planner"],
                size,
                str(row["action_repeat"]),
                returns,
                f"{each:.0f} ms",
            )
        )
    head = ("task", "planner", "rounds x samples x horizon", "action repeat", "returns", "CPU time a decision")
    return f"Seed {record['rows'][0]['seed']}, {record['device']} (`{name}`).\n\n{table(head, rows, first_right=4)}"


def transfer_text() -> str:
    """Models trained on one renderer's frames and evaluated on the other's."""
    found = stored("transfer")
    if not found:
        return missing("training on one renderer's frames and evaluating on the other's", "python -m bench.transfer")
    name, record = found[-1]
    settings, results = record["settings"], record["trained_on"]
    columns = [(trained, evaluated) for trained in results for evaluated in results[trained]]
    rows = []
    for figure in results["gl"]["gl"]:
        cells = [results[trained][evaluated][figure] for trained, evaluated in columns]
        rows.append((figure, *(estimate(cell["mean"], cell["stderr"], 2) for cell in cells)))
    header = ("trained on -> evaluated on", *(f"{trained} -> {evaluated}" for trained, evaluated in columns))
    return (
        f"{settings['domain']} {settings['task']}, preset {settings['preset']}, {settings['steps']} steps of training, "
        f"{settings['episodes']} episodes of {settings['episode_steps']} steps, seed {settings['seed']}; "
        f"GL quality {settings['quality']} (`{name}`). Mean ± standard error over held-out episodes.\n\n"
        + table(header, rows)
    )


SECTIONS: dict[str, Callable[[], str]] = {
    "headline": headline_text,
    "runs": runs_text,
    "open-loop": open_loop_text,
    "planners": planners_text,
    "transfer": transfer_text,
}
