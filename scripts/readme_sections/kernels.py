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


def alone(row: Mapping[str, Any]) -> float | None:
    """Milliseconds on the device in a CUDA graph; none where events had to be put around the host's call."""
    value: float | None = row.get("device_milliseconds") if row.get("device_clock") == "graph" else None
    return value


def captured(record: Any) -> set[tuple[str, str, str]]:
    """Op, size and implementation of what was timed in a CUDA graph."""
    rows = record.get("measurements", []) if isinstance(record, dict) else []
    return {(row["op"], row["size"], row["implementation"]) for row in rows if alone(row) is not None}


def kernels_text() -> str:
    """Kernels against their peers: how many times faster, over all shapes measured.

    By the median of the rounds, by the least times of both, which a busy machine disturbs less (the medians of a few
    rounds flatter whoever allocates less), and on a GPU by the time on the device alone.
    """
    rows = []
    for path in result_files("*.json"):
        groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        record = json.loads(path.read_text())
        graphs = captured(record)
        for row in kernel_rows(record):
            if row["ratio"] is not None:
                both = {(row["op"], row["size"], name) for name in (f"aime {row['backend']}", row["peer"])}
                if not both <= graphs:
                    row["device_ratio"] = None
                groups.setdefault((row["op"], row["backend"], row["peer"]), []).append(row)
        for (op, backend, peer), found in groups.items():
            kinds = ("ratio", "least_ratio", "device_ratio")
            cells = (spread([float(row[kind]) for row in found if row.get(kind) is not None]) for kind in kinds)
            rows.append((f"{op}, {backend} against {peer} (`{path.name}`)", str(len(found)), *cells))
    if not rows:
        return missing("kernels against their peers", "aime bench kernels")
    title = "times faster: smallest, middle and largest of the shapes"
    header = (title, "shapes", "by medians", "by least times", "on the device")
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
    """Every case of a kernel benchmark: our fastest backend, its distance to the floor, its memory, fastest peer.

    The fastest by least times; on a GPU by the time on the device, which is what the floor is compared with there.
    """
    cases: dict[tuple[str, str], list[Any]] = {}
    for row in record["measurements"]:
        cases.setdefault((row["op"], row["size"]), []).append(row)
    on_device = any(row.get("device_milliseconds") is not None for row in record["measurements"])
    fastest = "device_milliseconds" if on_device else "least_milliseconds"
    rows = []
    for (op, size), found in cases.items():
        ours = [row for row in found if row["implementation"].startswith("aime ")]
        peers = [row for row in found if not row["implementation"].startswith("aime ")]
        best = min(ours, key=lambda row: row[fastest])
        peer = min(peers, key=lambda row: row[fastest], default=None)
        cells = (
            f"{milliseconds(best)} ({best['implementation'].removeprefix('aime ')})",
            "-" if best["times_floor"] is None else f"{best['times_floor']:.1f}",
            "-" if best["memory_ratio"] is None else f"{best['memory_ratio']:.2f}",
            "too large" if peer is None else f"{milliseconds(peer)} ({peer['implementation']})",
            "-" if peer is None else ratios(best, peer),
        )
        rows.append((f"{op}, {size}", *cells))
    clock = " (wall, device)" if on_device else ""
    faster = f"times faster: medians, least{', device' if on_device else ''}"
    header = ("kernel and size", f"ours{clock}", "times the floor", "memory", f"fastest peer{clock}", faster)
    return table(header, rows)


def ratios(best: Mapping[str, Any], peer: Mapping[str, Any]) -> str:
    """Of medians, of least times, and on the device where both have such a time."""
    found = [peer[kind] / best[kind] for kind in ("milliseconds", "least_milliseconds")]
    ours, theirs = alone(best), alone(peer)
    return ", ".join(f"{ratio:.2f}" for ratio in [*found, *([] if ours is None or theirs is None else [theirs / ours])])


def milliseconds(row: Mapping[str, Any]) -> str:
    """A time with three digits, or whole; that on the device beside it where there is one."""
    values = [row["milliseconds"], alone(row)]
    return ", ".join(f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms" for value in values if value is not None)


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
