"""Sections on the training step and on kernels against their rivals."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from readme_sections.parts import ROOT, missing, result_files, stored, table


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
    """Kernels against their peers: how many times faster, over all shapes measured.

    By the median of the rounds, and by the least times of both, which a busy machine disturbs less: the medians of a
    few rounds flatter whoever allocates less.
    """
    rows = []
    for path in result_files("*.json"):
        groups: dict[tuple[str, str, str], list[tuple[float, float | None]]] = {}
        for row in kernel_rows(json.loads(path.read_text())):
            if row["ratio"] is not None:
                least = row.get("least_ratio")
                pair = float(row["ratio"]), None if least is None else float(least)
                groups.setdefault((row["op"], row["backend"], row["peer"]), []).append(pair)
        for (op, backend, peer), pairs in groups.items():
            cells = (spread([ratio for ratio, _ in pairs]), spread([least for _, least in pairs if least is not None]))
            rows.append((f"{op}, {backend} against {peer} (`{path.name}`)", str(len(pairs)), *cells))
    if not rows:
        return missing("kernels against their peers", "aime bench kernels")
    header = ("times faster: smallest, middle and largest of the shapes", "shapes", "by medians", "by least times")
    parts = [table(header, rows)]
    for name, record in stored("kernels"):
        parts += [measured_on(name, record), floors_table(record), *roofline(name, record)]
    return "\n\n".join(parts)


def spread(ratios: list[float]) -> str:
    """Smallest, middle and largest; a hyphen without any."""
    if not ratios:
        return "-"
    return f"{min(ratios):.2f}, {statistics.median(ratios):.2f}, {max(ratios):.2f}"


def measured_on(name: str, record: Mapping[str, Any]) -> str:
    """Machine, load and rounds of a kernel benchmark."""
    machine, rounds = record["machine"], [row["rounds"] for row in record["measurements"]]
    load = machine["load_average"]
    busy = "" if load <= machine["threads"] else "; others computed on it meanwhile"
    clock = "processor time, " if machine.get("clock") == "processor" else ""
    return (
        f"`{name}`: {machine['device']}, {machine['threads']} threads, torch {machine['torch']}, load average "
        f"{load:.1f} at the start{busy}; {clock}{min(rounds)} to {max(rounds)} rounds, implementations in turns."
    )


def floors_table(record: Mapping[str, Any]) -> str:
    """Every case of a kernel benchmark: our fastest backend, its distance to the floor, its memory, fastest peer."""
    cases: dict[tuple[str, str], list[Any]] = {}
    for row in record["measurements"]:
        cases.setdefault((row["op"], row["size"]), []).append(row)
    rows = []
    for (op, size), found in cases.items():
        ours = [row for row in found if row["implementation"].startswith("aime ")]
        peers = [row for row in found if not row["implementation"].startswith("aime ")]
        best = min(ours, key=lambda row: row["least_milliseconds"])
        peer = min(peers, key=lambda row: row["least_milliseconds"], default=None)
        ratios = "-"
        if peer is not None:
            middle, least = (peer[key] / best[key] for key in ("milliseconds", "least_milliseconds"))
            ratios = f"{middle:.2f}, {least:.2f}"
        cells = (
            f"{milliseconds(best)} ({best['implementation'].removeprefix('aime ')})",
            "-" if best["times_floor"] is None else f"{best['times_floor']:.1f}",
            "-" if best["memory_ratio"] is None else f"{best['memory_ratio']:.2f}",
            "too large" if peer is None else f"{milliseconds(peer)} ({peer['implementation']})",
            ratios,
        )
        rows.append((f"{op}, {size}", *cells))
    return table(
        ("kernel and size", "ours", "times the floor", "memory", "fastest peer", "times faster: medians, least"), rows
    )


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


SECTIONS: dict[str, Callable[[], str]] = {
    "step": step_text,
    "step-profile": step_profile_text,
    "kernels": kernels_text,
}
