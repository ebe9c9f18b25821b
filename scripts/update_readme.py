"""Rewrite the sections of README.md and docs/ that come from the code and from stored measurements.

    python scripts/update_readme.py                 rewrite what is out of date
    python scripts/update_readme.py runs/NAME ...   first store the metrics.json of these runs in bench/results/
    python scripts/update_readme.py --check         change nothing; status 1 and the files' names if one would change

A section stands between `<!-- BEGIN name -->` and `<!-- END name -->`; its name is a key of SECTIONS. Figures come from
the JSON files of bench/results/ and nowhere else. A figure without a file is left out, and the section says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aime import cli
from aime.documented_names import Becomes, Entry, Kept, Only, Retired
from aime.documented_tables import TABLES
from aime.evaluation.protocol import EvaluationConfig
from aime.legacy.names import MODULES
from aime.training import TrainConfig
from aime.training.cli import field_docs
from aime.training.config import PRESETS as TRAIN_PRESETS
from aime.world_model import WorldModelConfig
from aime.world_model.config import ALIASES, PRESETS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
CHART = ROOT / "docs" / "benchmark_environments.svg"
SERIES = {
    "model": "AIME, mean of 16 rollouts",
    "model_single": "AIME, one rollout",
    "rssm": "small RSSM, mean of 16 rollouts",
    "rssm_tuned": "tuned RSSM, mean of 16 rollouts",
    "copy_last": "copy the last frame",
    "mean_image": "mean image",
}
"""Rows of the open-loop table, and what they are called there."""

Row = Sequence[str]


def table(header: Row, rows: Iterable[Row], first_right: int = 1) -> str:
    """A Markdown table; columns from `first_right` on are aligned to the right."""
    rule = ["---" if index < first_right else "---:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


# ---------------------------------------------------------------------------------------------- from the code


def plain(value: Any) -> str:
    """A value as it is written in a table."""
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(plain, value)) + ")"
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(entry)}" for name, entry in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def default_values(config: type[Any]) -> dict[str, Any]:
    """The default of every field of a configuration."""
    defaults = {}
    for entry in dataclasses.fields(config):
        made = entry.default_factory
        defaults[entry.name] = entry.default if made is dataclasses.MISSING else made()
    return defaults


def fields_table(config: type[Any]) -> str:
    """Every field of a configuration: name, default, meaning."""
    docs = field_docs(config)
    rows = [
        (f"`{name}`", plain(default), " ".join(docs[name].split())) for name, default in default_values(config).items()
    ]
    return table(("field", "default", "meaning"), rows, first_right=3)


def presets_table(config: type[Any], presets: dict[str, dict[str, Any]], unset: str) -> str:
    """The fields that some preset sets, one column a preset; the default where a preset leaves it."""
    defaults = {name: unset if value is None else plain(value) for name, value in default_values(config).items()}
    names = [name for name in defaults if any(name in preset for preset in presets.values())]
    rows = [
        (f"`{name}`", *(plain(preset[name]) if name in preset else defaults[name] for preset in presets.values()))
        for name in names
    ]
    return table(("field", *presets), rows)


def aliases_table() -> str:
    """The older constructor names, and the fields they mean."""
    return table(("older name", "field"), [(f"`{old}`", f"`{new}`") for old, new in ALIASES.items()], first_right=2)


def arguments_table() -> str:
    """The documented constructor arguments of every class, and what becomes of each."""
    rows = [
        (f"`{cls}`", f"`{name}`", fate(entry)) for cls, made in TABLES.items() for name, entry in made.entries.items()
    ]
    return table(("class", "argument", "here"), rows, first_right=3)


def fate(entry: Entry) -> str:
    """What becomes of a documented argument, in words."""
    if isinstance(entry, str):
        return f"`{entry}`"
    if isinstance(entry, Becomes):
        return entry.says
    if isinstance(entry, Kept):
        return f"for the trainer and `optimizer`: `{entry.option}`"
    if isinstance(entry, Only):
        return f"{plain(entry.value)} is what happens; anything else warns: {entry.advice}"
    if isinstance(entry, Retired):
        return f"warns: {entry.advice}"
    return "the module is moved there"


def old_paths_table() -> str:
    """The import paths of the older documents, and what they lead to."""
    rows = []
    for name, names in MODULES.items():
        targets = {names} if isinstance(names, str) else {target.partition(":")[0] for target in names.values()}
        what = "the whole of it" if isinstance(names, str) else ", ".join(f"`{entry}`" for entry in names)
        rows.append((f"`{name}`", what, ", ".join(sorted(targets))))
    return table(("module", "names", "from"), rows, first_right=3)


def commands_table() -> str:
    """The subcommands of `aime`."""
    rows = [(f"`aime {name}`", line) for name, (_, _, line) in cli.COMMANDS.items()]
    return table(("command", "what it does"), rows, first_right=2)


# ---------------------------------------------------------------------------------------------- from measurements


def stored(benchmark: str) -> list[tuple[str, Any]]:
    """Name and contents of the result files of one benchmark, in order of their names."""
    records = [(path.name, json.loads(path.read_text())) for path in sorted(RESULTS.glob("*.json"))]
    return [
        (name, record) for name, record in records if isinstance(record, dict) and record.get("benchmark") == benchmark
    ]


def missing(what: str, command: str) -> str:
    """What stands in the place of figures that were not measured."""
    return f"Not measured yet: {what}. `{command}` measures it."


def estimate(value: float | None, error: float | None, digits: int = 2) -> str:
    """A figure and its standard error; a hyphen where it was not computed."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


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
    runs = sorted(RESULTS.glob("run-*.json"))
    if not runs:
        return missing("a trained model on held-out episodes", "make train && python scripts/update_readme.py runs/*")
    return "\n\n".join(run_section(json.loads(path.read_text())) for path in runs)


def headline_text() -> str:
    """Of every trained model, what it foresees 15 frames ahead beside what others do: one row each."""
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("run-*.json"))]
    if not runs:
        return missing("a trained model on held-out episodes", "make train && python scripts/update_readme.py runs/*")
    names = [name for name in SERIES if name != "model_single"]
    rows = []
    for run in runs:
        values, bars = run["open_loop"]["15"]["psnr_body"], run["stderr"]["open_loop"]["15"]["psnr_body"]
        cells = (estimate(values.get(name), bars.get(name)) for name in names)
        seconds = run["seconds"]["train"]
        rows.append((run["task"], *cells, "-" if seconds is None else f"{seconds / 60:.1f}"))
    head = (
        "15 frames ahead, psnr_body (dB)",
        *(SERIES[name].partition(",")[0] for name in names),
        "minutes of training",
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
        lines += ["", table((title, *(f"{horizon} ahead" for horizon in horizons), "CPU s"), rows)]
    names = {"qpos_r2": "positions", "qvel_r2": "velocities", "reward_r2": "reward"}
    probes = [f"{title} {estimate(record['probe'][name], errors['probe'][name])}" for name, title in names.items()]
    return "\n".join([*lines, "", f"Linear probes of AIME's state, R²: {', '.join(probes)}."])


def open_loop_text() -> str:
    """The open-loop benchmark: four tasks, those without a file named."""
    sections = []
    for task in OPEN_LOOP_TASKS:
        files = sorted(RESULTS.glob(f"run-{task}-laptop-seed1.json"))
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


def control_text() -> str:
    """Agents that learnt in imagination: what they reached, and on the way."""
    found = stored("control")
    if not found:
        return missing("an agent that learns in imagination", "aime control")
    rows = []
    for name, record in found:
        curve = [point for point in record["curve"] if "evaluation/return" in point]
        shown = curve[:: max(len(curve) // 6, 1)]
        way = ", ".join(f"{point['frames'] / 1e3:.0f}k {point['evaluation/return']:.0f}" for point in shown)
        rows.append(
            (
                f"{record['task']}, {record['observations']}",
                str(record["seed"]),
                f"{record['minutes']:.0f} / {record['cpu_seconds'] / 60:.1f}",
                f"{record['frames'] / 1e3:,.0f}k",
                f"{record['updates']:,}",
                estimate(record["return"], record["standard_error"], 0),
                way,
                f"`{name}`",
            )
        )
    head = ("task", "seed", "minutes, wall / CPU", "frames", "updates", "return", "evaluations on the way", "file")
    return table(head, rows, first_right=1)


def control_split_text() -> str:
    """Where an agent's time goes, and what kernels and ray caster save of it."""
    found = stored("control_split")
    if not found:
        return missing("where an agent's time goes", "python -m bench.control_split")
    name, record = found[-1]
    steps, playing = record["seconds_a_step"], record["playing_seconds_per_1000_frames"]
    count = record["steps_per_1000_frames"]

    def row(what: str, drawn: str, backend: str) -> tuple[str, ...]:
        model, acting = (count * steps[backend][part] for part in ("model", "actor_critic"))
        seconds = (playing[drawn], model, acting, playing[drawn] + model + acting)
        return (what, *(f"{value:.2f}" for value in seconds))

    rows = [
        row("as it is", "raycast", "chosen"),
        row("PyTorch's own kernels", "raycast", "torch"),
        row("MuJoCo's rasteriser, fast", "gl, fast", "chosen"),
    ]
    head = ("CPU seconds per 1,000 environment frames", "physics and frames", "model", "actor and critic", "sum")
    return f"{record['task']}, one thread, {record['device']} (`{name}`).\n\n{table(head, rows)}"


def environment_section(name: str, record: dict[str, Any]) -> str:
    """Control steps and pictures per second of one benchmark of the environments."""
    machine, settings = record["machine"], record["settings"]
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    shared = machine["load_average"] > machine["cores"]
    clock = "CPU time" if shared else "wall clock"
    lines = [
        f"Environments on {machine['cores']} cores ({machine['cpu']}; {versions}; `{name}`):",
        f"{settings['num_envs']} environments for control steps, {settings['pixel_envs']} for pictures.",
        f"Action repeat {settings['action_repeat']}. Per second of {clock}; in brackets, how many times faster the",
        "first column is, the median of the ratios of interleaved rounds.",
        "dm_control runs its environments one after another; mj_step and mujoco.rollout are physics alone.",
    ]
    if shared:
        lines.append(f"The machine was shared: load average {machine['load_average']:.0f}.")
    for key, title in (
        ("control_steps", "control steps/s"),
        ("pictures", f"{settings['size']}x{settings['size']} pictures/s"),
    ):
        contestants = list(dict.fromkeys(one for rates in record[key].values() for one in rates))
        rows = [
            (task, *(environment_cell(rates.get(one), rates[contestants[0]], shared) for one in contestants))
            for task, rates in record[key].items()
        ]
        lines += ["", table((title, *contestants), rows)]
    for contestant, command in record.get("absent", {}).items():
        lines += ["", f"Not measured: {contestant} (`{command}`)."]
    if CHART.exists() and "absent" in record:
        lines += ["", f"![Control steps and pictures of each task and peer]({CHART.name})"]
    return "\n".join(lines)


def environment_cell(rate: dict[str, Any] | None, own: dict[str, Any], shared: bool) -> str:
    """A rate and how many times faster our own is; a hyphen where it was not measured."""
    if rate is None:
        return "-"
    key = "per_cpu_second" if shared else "per_second"
    ratio = rate.get("ours_over_cpu" if shared else "ours_over") or own[key] / rate[key]
    return f"{rate[key]:,.0f}" + ("" if rate is own else f" ({ratio:.2f}x)")


def environments_text() -> str:
    """Environments against dm_control."""
    found = stored("env")
    if not found:
        return missing("environments against dm_control", "aime bench env")
    return "\n\n".join(environment_section(name, record) for name, record in found)


def raycast_record() -> tuple[str, Any] | None:
    """The stored measurement of the ray caster, if there is one with figures in it."""
    found = [(name, record) for name, record in stored("raycast") if record["fidelity"]]
    return found[-1] if found else None


def raycast_fidelity_text() -> str:
    """The ray caster's pictures against MuJoCo's own, task by task."""
    found = raycast_record()
    if found is None:
        return missing("the ray caster against MuJoCo's renderer", "aime bench raycast")
    name, record = found
    settings = record["settings"]
    rows = [
        (
            task,
            f"{row['psnr']:.1f}",
            f"{row['psnr_worst']:.1f}",
            f"{row['mean_difference']:.2f}",
            f"{100 * row['segmentation']:.2f}",
            f"{100 * row['segmentation_worst']:.2f}",
        )
        for task, row in record["fidelity"].items()
    ]
    header = ("task", "PSNR (dB)", "worst picture", "mean abs. difference (of 255)", "same geom (%)", "worst picture")
    size = settings["size"]
    return f"{settings['poses']} pictures of {size} x {size} a task (`{name}`).\n\n{table(header, rows)}"


def raycast_speed_text() -> str:
    """Pictures per second of the ray caster and of GL."""
    found = raycast_record()
    if found is None or not found[1]["speed"]:
        return missing("the ray caster's speed", "aime bench raycast")
    name, record = found
    machine, size = record["machine"], record["settings"]["size"]
    rows = []
    for task, rates in record["speed"].items():
        cells = []
        for threads in ("1 thread", "2 threads"):
            gl, raycast = (rates[f"{renderer}, {threads}"]["per_second"] for renderer in ("gl", "raycast"))
            cells += [f"{gl:,.0f}", f"{raycast:,.0f}", f"{rates['ratio'][threads]:.0f}x"]
        rows.append((task, *cells))
    header = (
        f"{size} x {size} pictures/s",
        *(f"{one}, {threads}" for threads in ("1 thread", "2 threads") for one in ("GL exact", "ray caster", "ratio")),
    )
    origin = f"{machine['cpu']}, {machine['cores']} cores, {machine['instruction_set']}, `{name}`"
    note = ""
    if machine["load_average"] > machine["cores"]:
        note = f" The machine was shared (load average {machine['load_average']:.0f}): only ratios compare."
    return f"{origin}; all contestants of a task in turn in one run.{note}\n\n{table(header, rows)}"


def raycast_samples_text() -> str:
    """Error and time for each number of rays a pixel."""
    found = raycast_record()
    if found is None or not found[1]["samples"]:
        return missing("error and time by the number of samples", "aime bench raycast")
    rows = [
        (f"{task}, {count}", f"{row['milliseconds']:.2f}", f"{row['psnr']:.1f}", f"{row['mean_difference']:.2f}")
        for task, counts in found[1]["samples"].items()
        for count, row in counts.items()
    ]
    return table(("task, samples a pixel", "ms a picture", "PSNR (dB)", "mean abs. difference"), rows)


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


def step_text() -> str:
    """The time-parallel pass against the per-frame oracle."""
    found = stored("step")
    if not found:
        return missing("the time-parallel pass against the per-frame one", "aime bench step")
    rows = []
    for name, record in found:
        for row in record["results"]:
            sizes = f"{row['batch']:.0f} x {row['frames']:.0f}"
            times = (f"{row['sequence_seconds']:.3f} s", f"{row['per_frame_seconds']:.3f} s", f"{row['ratio']:.2f}x")
            rows.append((f"{record['device']}, {record['threads']} threads (`{name}`)", sizes, *times))
    header = ("forward + backward, laptop preset", "B x T", "time-parallel", "per frame", "ratio")
    return table(header, rows)


def step_profile_text() -> str:
    """Share of the kernels in a training step, on PyTorch's own and on the chosen backends."""
    found = stored("step-profile")
    if not found:
        return missing("the kernels' share of a training step", "aime bench step --profile")
    rows = []
    for name, record in found:
        for profile in record["profiles"]:
            times = profile["step_seconds"]
            ratio = f"{times['torch'] / times['chosen']:.2f}x"
            title = f"**{profile['preset']}, whole step** (`{name}`, {record['threads']} threads)"
            rows.append((title, f"{times['torch']:.3f} s", f"{times['chosen']:.3f} s", ratio))
            for op in profile["ops"]:
                cells = [f"{1e3 * op['seconds'][way]:.2f} ms ({op['share'][way]:.1%})" for way in ("torch", "chosen")]
                ratio = f"{op['seconds']['torch'] / op['seconds']['chosen']:.2f}x"
                rows.append((f"{op['op']} x {op['calls']}", *cells, ratio))
    return table(("training step", "PyTorch's kernels", "chosen backends", "ratio"), rows)


def kernel_rows(record: Any) -> list[dict[str, Any]]:
    """The measurements of a kernel benchmark's file: a list, or under `results`; none for another kind of file."""
    rows = record if isinstance(record, list) else record.get("results", [])
    return [row for row in rows if isinstance(row, dict) and {"op", "peer", "ratio"} <= row.keys()]


def kernels_text() -> str:
    """Kernels against their peers: how many times faster, over all shapes measured."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        groups: dict[tuple[str, str, str], list[float]] = {}
        for row in kernel_rows(json.loads(path.read_text())):
            if row["ratio"] is not None:
                groups.setdefault((row["op"], row["backend"], row["peer"]), []).append(float(row["ratio"]))
        for (op, backend, peer), ratios in groups.items():
            spread = (f"{min(ratios):.2f}", f"{statistics.median(ratios):.2f}", f"{max(ratios):.2f}")
            rows.append((f"{op}, {backend} against {peer} (`{path.name}`)", str(len(ratios)), *spread))
    if not rows:
        return missing("kernels against their peers", "aime bench kernels")
    parts = [table(("kernel, times faster", "shapes", "least", "median", "most"), rows)]
    for name, record in stored("kernels"):
        parts += [floors_table(record), *roofline(name, record)]
    return "\n\n".join(parts)


def floors_table(record: Mapping[str, Any]) -> str:
    """Every case of a kernel benchmark: our fastest backend, its distance to the floor, its memory, fastest peer."""
    cases: dict[tuple[str, str], list[Any]] = {}
    for row in record["measurements"]:
        cases.setdefault((row["op"], row["size"]), []).append(row)
    rows = []
    for (op, size), found in cases.items():
        ours = [row for row in found if row["implementation"].startswith("aime ")]
        peers = [row for row in found if not row["implementation"].startswith("aime ")]
        best = min(ours, key=lambda row: row["milliseconds"])
        peer = min(peers, key=lambda row: row["milliseconds"], default=None)
        cells = (
            f"{milliseconds(best)} ({best['implementation'].removeprefix('aime ')})",
            "-" if best["times_floor"] is None else f"{best['times_floor']:.1f}",
            "-" if best["memory_ratio"] is None else f"{best['memory_ratio']:.2f}",
            "too large" if peer is None else f"{milliseconds(peer)} ({peer['implementation']})",
        )
        rows.append((f"{op}, {size}", *cells))
    return table(("kernel and size", "ours", "times the floor", "memory", "fastest peer"), rows)


def milliseconds(row: Mapping[str, Any]) -> str:
    """A time with three digits, or whole."""
    value = row["milliseconds"]
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def roofline(name: str, record: Mapping[str, Any]) -> list[str]:
    """What the floor is, and its picture, if it was drawn."""
    floor = record.get("floor")
    if floor is None:
        return []
    picture = f"kernels/roofline-{Path(name).stem.removeprefix('kernels-')}.svg"
    text = (
        f"The floor of `{name}` is {floor['bandwidth'] / 1e9:.0f} GB/s or {floor['operations'] / 1e9:.0f} GFLOP/s "
        f"({floor['source']}), whichever takes longer; memory is the peak over inputs and results."
    )
    return [text, *([f"![Roofline of the kernels]({picture})"] if (ROOT / "docs" / picture).exists() else [])]


FROM_MEASUREMENTS: dict[str, Callable[[], str]] = {
    "headline": headline_text,
    "runs": runs_text,
    "open-loop": open_loop_text,
    "planners": planners_text,
    "control": control_text,
    "control-split": control_split_text,
    "environments": environments_text,
    "raycast-fidelity": raycast_fidelity_text,
    "raycast-speed": raycast_speed_text,
    "raycast-samples": raycast_samples_text,
    "transfer": transfer_text,
    "step": step_text,
    "step-profile": step_profile_text,
    "kernels": kernels_text,
}
FROM_CODE: dict[str, Callable[[], str]] = {
    "commands": commands_table,
    "world-model-config": lambda: fields_table(WorldModelConfig),
    "world-model-presets": lambda: presets_table(WorldModelConfig, PRESETS, ""),
    "world-model-aliases": aliases_table,
    "documented-arguments": arguments_table,
    "old-paths": old_paths_table,
    "train-config": lambda: fields_table(TrainConfig),
    "train-presets": lambda: presets_table(TrainConfig, TRAIN_PRESETS, "-"),
    "evaluation-config": lambda: fields_table(EvaluationConfig),
}
SECTIONS = FROM_MEASUREMENTS | FROM_CODE
MARKED = re.compile(r"<!-- BEGIN (?P<name>[\w-]+) -->\n.*?<!-- END (?P=name) -->", re.DOTALL)


def rewritten(text: str, sections: Mapping[str, Callable[[], str]] = SECTIONS) -> str:
    """The text with its marked sections, those among `sections`, made anew.

    Raises:
        ValueError: a marker names no section.
    """

    def section(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in SECTIONS:
            raise ValueError(f"section: expected one of {', '.join(SECTIONS)}, found {name!r}")
        if name not in sections:
            return match[0]
        return f"<!-- BEGIN {name} -->\n\n{sections[name]()}\n\n<!-- END {name} -->"

    return MARKED.sub(section, text)


def draw_charts() -> None:
    """Draw the environments' benchmark anew from its stored run."""
    sys.path.insert(0, str(ROOT))
    chart = importlib.import_module("bench.environments.chart").chart
    for _, record in stored("env"):
        if "absent" in record:  # not a run of an older version
            CHART.write_text(chart(record))


def pages() -> list[Path]:
    """The files that may have marked sections."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def store_run(run: Path) -> Path:
    """Copy a run's metrics.json to bench/results/ under a name that says what was trained."""
    record = json.loads((run / "metrics.json" if run.is_dir() else run).read_text())
    target = RESULTS / f"run-{record['task']}-{record['preset']}-seed{record['seed']}.json"
    RESULTS.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=2) + "\n")
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run directories, or metrics.json files, to store first")
    parser.add_argument("--check", action="store_true", help="change nothing, report what is out of date")
    options = parser.parse_args(arguments)
    for run in options.runs:
        print(f"stored {store_run(run).relative_to(ROOT)}")
    if not options.check:
        draw_charts()
    stale = [page for page in pages() if rewritten(page.read_text()) != page.read_text()]
    for page in stale:
        if not options.check:
            page.write_text(rewritten(page.read_text()))
        print(f"{page.relative_to(ROOT)}: {'out of date' if options.check else 'rewritten'}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
