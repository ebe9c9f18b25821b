"""Sections on agents: what they reached, and where their time goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aime.control.actor_critic import ActorCriticConfig
from aime.control.config import DEFAULTS
from readme_sections.parts import estimate, missing, stored, table


def machine(record: dict[str, Any]) -> str:
    """Where it ran and how, as far as it is not the default on a processor."""
    device, config = str(record.get("device", "")), record["config"]
    gpu = f", {device.removeprefix('NVIDIA ').split()[0]}" if device.startswith("NVIDIA") else ""
    usual = DEFAULTS[record["observations"]]
    batch, ratio = config.get("batch_size", 16), config["train_ratio"]
    more = "" if batch == usual["batch_size"] else f", batches of {batch}"
    more += "" if ratio == usual["train_ratio"] else f", {ratio} frames replayed"
    held = f", actions of {config['action_repeat']} control steps" if config["action_repeat"] > 2 else ""
    discount = config["actor_critic"]["discount"]
    valued = "" if discount == ActorCriticConfig().discount else f", discount {discount:g}"
    return gpu + more + held + valued


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
                f"{record['task']}, {record['observations']}{machine(record)}",
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


SECTIONS: dict[str, Callable[[], str]] = {"control": control_text, "control-split": control_split_text}
