"""Sections on environments and renderers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from readme_sections.parts import CHART, missing, stored, table


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


SECTIONS: dict[str, Callable[[], str]] = {
    "environments": environments_text,
    "raycast-fidelity": raycast_fidelity_text,
    "raycast-speed": raycast_speed_text,
    "raycast-samples": raycast_samples_text,
}
